"""The control, table and storage nodes, the output check, and the confinement of paths."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.artifacts import ArtifactMissing, ArtifactStore
from engine.calls import LogLine
from engine.files import Files, PathRefused
from engine.output import OutputRefused, encoded
from tests.engine.nodes_bench import Bench, bench


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


# ---- control


async def test_noop_and_log_give_their_input_on(nodes: Bench) -> None:
    """Whatever comes in goes out; the line is in the log with its level and fields."""
    assert await nodes.done("core/noop", {"a": [1]}) == {"a": [1]}
    assert await nodes.done("core/log", {"a": 1}, message={"b": 2}, level="warning", fields={"c": 3}) == {"a": 1}
    assert nodes.said == [LogLine("warning", '{"b":2}', {"c": 3})]


async def test_transform_gives_its_output_parameter(nodes: Bench) -> None:
    """The templates are resolved before the handler is called, so the rest is to hand it on."""
    assert await nodes.done("core/transform", output=[{"x": None}]) == [{"x": None}]


async def test_fail_fails_as_told(nodes: Bench) -> None:
    """Message, category, code and retryability are the parameters'."""
    code, category, broke = await nodes.broke("core/fail", message="no", category="TIMEOUT", retryable=False)
    assert (code, category, broke.failure.message) == ("FAILED_BY_DEFINITION", "TIMEOUT", "no")
    assert broke.failure.retryable is False


async def test_validate_lists_every_mismatch(nodes: Bench) -> None:
    """A value that fits goes on; another fails with a pointer for each place."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"minLength": 2}}, "required": ["c"]}
    assert await nodes.done("core/validate", {"c": 1}, schema=schema) == {"c": 1}
    code, category, broke = await nodes.broke("core/validate", {}, value={"a": "x", "b": "y"}, schema=schema)
    assert (code, category) == ("VALUE_INVALID", "VALIDATION")
    assert {problem["pointer"] for problem in broke.failure.details["problems"]} == {"", "/a", "/b"}


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/x"}, {"pattern": "("}])
async def test_validate_refuses_a_schema_that_is_none(nodes: Bench, schema: dict[str, Any]) -> None:
    """Nothing is fetched from the network, and a bad pattern is no crash."""
    assert (await nodes.broke("core/validate", "x", schema=schema))[:2] == ("BAD_SCHEMA", "VALIDATION")


async def test_a_pattern_that_would_backtrack_for_ever_is_answered(nodes: Bench) -> None:
    """Patterns are matched in linear time."""
    schema = {"pattern": "^(a+)+$"}
    assert (await nodes.broke("core/validate", "a" * 60 + "b", schema=schema, timeout=30))[0] == "VALUE_INVALID"


async def test_parameters_that_do_not_fit_are_told_by_their_place(nodes: Bench) -> None:
    """A template may yield anything: what comes out is checked again when the node runs."""
    code, category, broke = await nodes.broke("bench/fib", n="many")
    assert (code, category) == ("PARAMETERS_INVALID", "VALIDATION")
    assert broke.failure.details == {"pointer": "/parameters/n"}
    assert await nodes.done("bench/fib", n=10) == {"n": 10, "value": 55}


# ---- output


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return {"a": value}


@pytest.mark.parametrize(
    ("output", "pointer"),
    [
        (float("nan"), ""),
        ([1, {"a/b": float("inf")}], "/1/a~1b"),
        ({"x": "\ud800"}, "/x"),
        ({"x": ["a\0b"]}, "/x/0"),
        ({"\0": 1}, "/\0"),
        ({1: 2}, "/1"),
        ((1, 2), ""),
        ({"x": datetime(2026, 1, 1)}, "/x"),  # noqa: DTZ001
        ({"x": b"x"}, "/x"),
        ({"x": {1, 2}}, "/x"),
        (object(), ""),
        ([10**5_000], "/0"),
        (cyclic(), "/a/0"),
        (nested(65), "/0" * 64),
        (nested(5_000), "/0" * 64),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(output: Any, pointer: str) -> None:
    """Nothing is turned into null or text silently."""
    with pytest.raises(OutputRefused) as refused:
        encoded(output)
    assert refused.value.failure.code == "OUTPUT_NOT_JSON"
    if "\0" not in pointer and 1 not in (output if isinstance(output, dict) else {}):
        assert refused.value.failure.details == {"pointer": pointer}


def test_harmless_lookalikes_are_accepted() -> None:
    """The text ``\\u0000`` is not a NUL, 64 levels are allowed, and so are large numbers."""
    output: Any
    for output in ("\\u0000", nested(64), 2**70, -(2**70), [[]] * 200, True, None, -0.0):
        assert encoded(output)[0] == output


def test_the_output_is_a_copy() -> None:
    """What a handler does to its object later changes nothing."""
    output = {"a": [1]}
    plain, _ = encoded(output)
    output["a"].append(2)
    assert plain == {"a": [1]}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab/~é", max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_all_json_is_accepted_unchanged(value: Any) -> None:
    """Any JSON value comes back equal, and its text is that value's."""
    plain, text = encoded(value)
    assert plain == value
    assert json.loads(text) == value


# ---- files


def test_paths_stay_within_the_roots(tmp_path: Path) -> None:
    """Neither dots, absolute paths nor symlinks lead out; reading looks in each root, writing begins in the first."""
    first, second, outside = tmp_path / "first", tmp_path / "second", tmp_path / "outside"
    for folder in (first, second, outside):
        folder.mkdir()
    (outside / "secret").write_text("x")
    (second / "here").write_text("x")
    (first / "way-out").symlink_to(outside)
    files = Files([first, second])
    assert files.reading("here") == second / "here"
    assert files.reading(str(second / "here")) == second / "here"
    assert files.writing("new/here") == first / "new/here"
    for path in (
        "../outside/secret",
        "way-out/secret",
        str(outside / "secret"),
        "/etc/passwd",
        "",
        "a\0b",
        "~/x/../../..",
    ):
        with pytest.raises(PathRefused) as refused:
            files.reading(path)
        assert refused.value.code in ("PATH_NOT_ALLOWED", "FILE_NOT_FOUND")
    for path in ("../outside/new", "way-out/new", str(outside / "new"), "/etc/new", "x" * 5_000 + "\0"):
        with pytest.raises(PathRefused) as refused:
            files.writing(path)
        assert refused.value.code == "PATH_NOT_ALLOWED"
    with pytest.raises(PathRefused) as refused:
        files.reading("nowhere")
    assert refused.value.code == "FILE_NOT_FOUND"


def test_artifacts_are_stored_once_under_their_digest(tmp_path: Path) -> None:
    """The same content is one file; a file of any size can be put; what isn't there is missing."""
    store = ArtifactStore(tmp_path)
    one, two = store.put_bytes(b"x" * 3_000_000), store.put_bytes(b"x" * 3_000_000)
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    three = store.put_file(tmp_path / "source")
    assert one.sha256 == two.sha256 == three.sha256
    assert one.id != two.id
    assert store.path(one.sha256) == tmp_path / one.sha256[:2] / one.sha256[2:4] / one.sha256
    assert not list((tmp_path / "tmp").iterdir())
    assert store.discard(one.sha256)
    for missing in (one, {"sha256": "../../etc/passwd"}, {}):
        with pytest.raises(ArtifactMissing):
            store.read_bytes(missing)


# ---- storage/file


async def test_a_file_is_stored_with_its_metadata(nodes: Bench) -> None:
    """A copy of the source, its digest, and the metadata beside it; no draft is left."""
    (nodes.files / "in.bin").write_bytes(b"abc")
    output = await nodes.done("storage/file", {"path": "in.bin"}, path="out/deep/copy.bin", metadata={"by": "me"})
    assert output["location"] == str(nodes.files / "out/deep/copy.bin")
    assert (output["size"], output["filename"]) == (3, "copy.bin")
    assert output["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json.loads((nodes.files / "out/deep/copy.bin.meta.json").read_text()) == {"by": "me"}
    assert sorted(path.name for path in (nodes.files / "out/deep").iterdir()) == ["copy.bin", "copy.bin.meta.json"]


async def test_conflicts_are_solved_as_asked(nodes: Bench) -> None:
    """Overwrite, another name, or a failure; the same content is no conflict, so a retry has no second effect."""
    first = await nodes.done("storage/file", path="a.txt", content="one")
    renamed = await nodes.done("storage/file", path="a.txt", content="two", on_conflict="rename")
    again = await nodes.done("storage/file", path="a.txt", content="two", on_conflict="rename")
    assert (first["filename"], renamed["filename"], again["filename"]) == ("a.txt", "a-2.txt", "a-2.txt")
    assert (await nodes.broke("storage/file", path="a.txt", content="two", on_conflict="fail"))[0] == "FILE_EXISTS"
    assert (await nodes.done("storage/file", path="a.txt", content="one", on_conflict="fail"))["filename"] == "a.txt"
    await nodes.done("storage/file", path="a.txt", content={"three": 3})
    assert (nodes.files / "a.txt").read_text() == '{"three":3}'


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"path": "/etc/x", "content": "x"}, "PATH_NOT_ALLOWED"),
        ({"path": "../x", "content": "x"}, "PATH_NOT_ALLOWED"),
        ({"path": "x", "source": "/etc/passwd"}, "PATH_NOT_ALLOWED"),
        ({"path": "x", "source": "nowhere"}, "FILE_NOT_FOUND"),
        ({"path": "x"}, "FILE_NOT_NAMED"),
        ({"path": ".", "content": "x"}, "PATH_IS_FOLDER"),
    ],
)
async def test_a_file_that_can_not_be_stored_is_refused(nodes: Bench, parameters: Any, code: str) -> None:
    """Outside the roots, without a source, or onto a folder: VALIDATION with a code, and nothing is written."""
    assert (await nodes.broke("storage/file", **parameters))[:2] == (code, "VALIDATION")
    assert not list(nodes.files.iterdir())


# ---- data/csv


async def test_a_table_is_read_with_types(nodes: Bench) -> None:
    """Columns of numbers give numbers, mixed ones text, empty cells null; codes with leading zeros stay text."""
    text = 'n,x,code,mixed,"with, comma"\n1,1.5,007,a,"say ""hi"""\n,-2e3,008,2,\n'
    table = await nodes.done("data/csv", text=text)
    assert table["columns"] == ["n", "x", "code", "mixed", "with, comma"]
    assert table["rows"][0] == {"n": 1, "x": 1.5, "code": "007", "mixed": "a", "with, comma": 'say "hi"'}
    assert table["rows"][1] == {"n": None, "x": -2000.0, "code": "008", "mixed": "2", "with, comma": None}
    assert table["count"] == 2


async def test_a_table_is_written_and_read_again(nodes: Bench) -> None:
    """What is written comes back; a missing value is an empty cell."""
    rows = [{"a": 1, "b": "x,y"}, {"a": 2, "c": [1]}]
    assert (await nodes.done("data/csv-write", path="t.csv", rows=rows))["count"] == 2
    assert (nodes.files / "t.csv").read_text() == 'a,b,c\n1,"x,y",\n2,,[1]\n'
    assert (await nodes.done("data/csv", path="t.csv"))["rows"][1] == {"a": 2, "b": None, "c": "[1]"}


@pytest.mark.parametrize("text", ["a,b\n1\n", "a,a\n1,2\n", 'a\n"x\n'])
async def test_a_bad_table_is_refused(nodes: Bench, text: str) -> None:
    """Rows of unequal length, repeated names and broken quotes are told, not guessed at."""
    assert (await nodes.broke("data/csv", text=text))[:2] == ("BAD_TABLE", "VALIDATION")
