"""What is wrong with the parameters of a ``comfyui/prompt`` before it runs: places and outputs that its graph lacks."""

from __future__ import annotations

from typing import Any

from flow import comfyui, mapping
from flow.comfyui import MappingError
from flow.expressions import ExpressionError, pointer_token
from flow.problems import ProblemCode, Problems


def check(parameters: dict[str, Any], pointer: str, problems: Problems) -> None:
    """Tell what doesn't fit the graph. One that comes from a template is only known when it runs."""
    graph = parameters.get("graph")
    if not isinstance(graph, dict):
        return
    if not comfyui.is_graph(graph):
        message = "The graph is not in ComfyUI's API format; save it there with 'Export (API)'."
        problems.add(f"{pointer}/graph", ProblemCode.BAD_PARAMETERS, message)
        return
    for name in ("input_mapping", "inputs"):
        given = parameters.get(name)
        for key, value in given.items() if isinstance(given, dict) else ():
            at = f"{pointer}/{name}/{pointer_token(key)}"
            try:
                _check_entry(graph, name, key, value)
            except MappingError as error:
                problems.add(at, ProblemCode.BAD_MAPPING, str(error))
            except ExpressionError as error:
                problems.add(at, ProblemCode.BAD_EXPRESSION, error.message)
    outputs = parameters.get("outputs")
    wanted = (
        {name: said for name, said in outputs.items() if isinstance(said, str)} if isinstance(outputs, dict) else {}
    )
    for name in comfyui.unknown_outputs(graph, wanted):
        if "{{" not in wanted[name]:
            message = f"{wanted[name]!r} is no node of the graph, nor a key of one, like '9.images'."
            problems.add(f"{pointer}/outputs/{pointer_token(name)}", ProblemCode.BAD_MAPPING, message)


def _check_entry(graph: dict[str, Any], name: str, key: str, value: Any) -> None:
    """Raises MappingError, ExpressionError."""
    if name == "inputs":
        comfyui.filled(graph, {key: value})
        return
    [(place, source)] = comfyui.sources({key: value})
    comfyui.filled(graph, {str(place): None})
    if "{{" not in str(source):
        mapping.path(source)
