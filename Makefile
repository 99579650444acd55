# Needs Python 3.11 or newer, with its venv module, and make. Everything else is installed into .venv at locked versions.
.POSIX:
.PHONY: help run test check format docs schema bench soak graphiql lock clean

VENV = .venv
BIN = $(VENV)/bin
# A stamp is named by what it depends on: another lock, another folder, another stamp. Nothing is compared by time.
WORLD := $(shell (cat pyproject.toml requirements.lock; pwd) | cksum | tr ' ' '-')
GRAPHIQL := $(shell cat web/graphiql/package*.json 2>/dev/null | cksum | tr ' ' '-')
RUN_STAMP = .stamps/run-$(WORLD)
TEST_STAMP = .stamps/test-$(WORLD)
GRAPHIQL_STAMP = .stamps/graphiql-$(GRAPHIQL)
# Where the environment forbids bytecode, every start would compile a hundred thousand lines again: seconds.
export PYTHONDONTWRITEBYTECODE =
INSTALL = $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint requirements.lock

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

run: $(RUN_STAMP) $(GRAPHIQL_STAMP)  ## install what is missing, then serve; the first time with the examples and a run of each photo
	@exec $(BIN)/mirrorflow serve --examples

test: $(TEST_STAMP)  ## every test, as many files at a time as there are cores
	@$(BIN)/pytest -n logical --maxprocesses 6 --dist loadfile --no-loadscope-reorder

check: $(TEST_STAMP) $(GRAPHIQL_STAMP)  ## what CI runs: style, types, tests, generated files, breaking changes of the schema
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.docs --check
	$(BIN)/mirrorflow schema --check schema.graphql
	$(BIN)/python -m tests.schema_changes
	$(BIN)/pytest -n logical --maxprocesses 6 --dist loadfile --no-loadscope-reorder

format: $(TEST_STAMP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(TEST_STAMP)  ## write the generated pages of docs/ again
	$(BIN)/python -m tests.docs

schema: $(TEST_STAMP)  ## write schema.graphql again
	$(BIN)/mirrorflow schema > schema.graphql.new && mv schema.graphql.new schema.graphql

bench: $(TEST_STAMP)  ## the figures of docs/performance.md, as JSON lines
	@$(BIN)/python -m bench

soak: $(TEST_STAMP)  ## long chaos runs
	@$(BIN)/pytest -m soak

graphiql: $(RUN_STAMP)  ## bundle GraphiQL again
	@rm -f $(GRAPHIQL_STAMP) && $(MAKE) --no-print-directory $(GRAPHIQL_STAMP)

lock:  ## write requirements.lock again (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --all-extras \
		pyproject.toml --output-file requirements.lock

clean:  ## remove what was installed and built, never the data folder
	rm -rf $(VENV) .stamps mirrorflow/static/graphiql web/graphiql/node_modules

$(RUN_STAMP):
	@sh tools/venv.sh $(VENV)
	@echo "Installing Mirrorflow into $(VENV) (once; a minute or two) …"
	@$(INSTALL) --editable '.[image]'
	@$(BIN)/python -m compileall -q flow db engine graph mirrorflow
	@mkdir -p .stamps && touch $@

$(TEST_STAMP): $(RUN_STAMP)
	@echo "Installing what the tests need (once) …"
	@$(INSTALL) --editable '.[image,ai,distributed,test]'
	@mkdir -p .stamps && touch $@

# GraphiQL is a convenience: without it the page at /graphql says how to get it, and everything else works.
$(GRAPHIQL_STAMP): $(RUN_STAMP)
	@$(BIN)/python -m mirrorflow.graphiql_build || \
		echo "GraphiQL could not be bundled (see above); \`make graphiql\` tries again. Everything else works."
	@mkdir -p .stamps && touch $@
