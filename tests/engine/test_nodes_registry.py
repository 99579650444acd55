"""The registry, its plugins, and the pages that are drawn from it."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import jsonschema
import pytest

from engine.calls import Call, Done
from engine.nodes import image, pictures, reference
from engine.nodes.contract import NodeType, node_type
from engine.nodes.registry import Registry, declared
from engine.placement import Runner

DOCS = Path(__file__).parents[2] / "docs"


def test_the_built_in_types_are_complete() -> None:
    """Every type has a title, a description, and a JSON Schema that describes each parameter."""
    registry = Registry.load()
    assert {"core/noop", "http/request", "image/preprocess", "ai/image-enhance", "ai/image-analyze"} <= {
        kind.name for kind in registry.all()
    }
    for kind in registry.all():
        assert kind.title
        assert len(kind.description) > 20
        jsonschema.Draft202012Validator.check_schema(kind.parameters_schema)
        assert all("description" in about for about in kind.parameters_schema.get("properties", {}).values()), kind.name
    assert set(registry.type_infos()) == {kind.name for kind in registry.all()}


def plugin(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> EntryPoint:
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    return EntryPoint(name, name, "mirrorflow.nodes")


def test_a_broken_plugin_is_reported_and_the_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import errors, modules without a type, and taken names leave the registry as good as it was."""
    registry = Registry.load()
    before = len(registry.all())
    use = "from mirrorflow import node\n"
    good = use + "@node('demo/good', title='Good')\nasync def good(ctx): return 1\n"
    taken = use + "@node('core/noop', title='Mine')\nasync def mine(ctx): return 1\n"
    for name, source in (("good", good), ("taken", taken), ("empty", "")):
        registry.add_plugin(plugin(monkeypatch, f"plugin_{name}", source))
    registry.add_plugin(EntryPoint("gone", "no_such_module_at_all", "mirrorflow.nodes"))
    assert len(registry.all()) == before + 1
    assert registry.get("demo/good") is not None
    assert [problem.plugin.split(" ")[0] for problem in registry.problems] == ["plugin_taken", "plugin_empty", "gone"]
    kept = registry.get("core/noop")
    assert kept is not None
    assert kept.title == "Nothing"


def test_without_the_extra_the_picture_nodes_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the missing packages and the command."""
    assert pictures.missing() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = pictures.missing()
    assert reason is not None
    assert "PIL" in reason
    assert "pip install 'mirrorflow[image]'" in reason


async def test_an_unavailable_type_refuses_to_run(tmp_path: Path) -> None:
    """The failure carries the reason."""
    kind = node_type(image.preprocess)
    assert kind is not None
    lacking = NodeType(**{name: getattr(kind, name) for name in kind.__slots__} | {"unavailable": "install it"})
    runner = Runner(Registry([lacking]), data_dir=tmp_path)
    outcome = await runner.run(Call(kind.name, "i", "p", "a", "a", 1, {}, None, "k"), lambda said: None)
    assert not isinstance(outcome, Done)
    assert (outcome.failure.code, outcome.failure.message) == ("NODE_TYPE_UNAVAILABLE", "install it")


def test_the_public_face_is_light() -> None:
    """A plugin's import of ``mirrorflow`` loads neither the database, the server nor an HTTP client."""
    code = "import mirrorflow, sys; mirrorflow.node; mirrorflow.Context; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"sqlalchemy", "strawberry", "httpx", "jsonschema", "PIL", "pydantic"} & set(loaded)


def test_the_reference_is_up_to_date() -> None:
    """docs/node-reference.md is what the built-in types declare now."""
    assert (DOCS / "node-reference.md").read_text() == reference.page(
        kind for kind in Registry.load().all() if kind.handler.__module__.startswith("engine.nodes.")
    ), "run `make docs`"


async def test_the_guide_works_as_it_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first example of docs/node-types.md, taken from the page, is loaded as a plugin and runs."""
    example = re.findall(r"```python\n(.*?)```", (DOCS / "node-types.md").read_text(), re.DOTALL)[0]
    registry = Registry()
    registry.add_plugin(plugin(monkeypatch, "text_nodes", example))
    assert registry.problems == []
    runner = Runner(registry, data_dir=tmp_path)
    call = Call("text/shout", "i", "p", "a", "a", 1, {"text": "hey", "times": 2}, None, "k")
    assert await runner.run(call, lambda said: None) == Done({"text": "HEY HEY"})
    assert declared(sys.modules["text_nodes"])[0].description == "Gives the text in capitals."
