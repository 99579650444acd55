"""What a workflow asks of a ComfyUI: the parameters of a ``comfyui/prompt``, and how they are sent.

The node runs them from a workflow; a server of type ``comfyui`` runs them for a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from engine.comfyui.client import ComfyUI, upload_name
from engine.servers.contract import ServerFailed, refused
from flow import comfyanswers as answers
from flow import comfyui
from flow.comfyui import MappingError, Produced

Describe = msgspec.Meta


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    graph: Annotated[
        dict[str, Any], Describe(description="The graph in ComfyUI's API format: node id → `class_type` and `inputs`.")
    ]
    server: Annotated[
        str | None,
        Describe(description="A registered ComfyUI server, or an address. Left out: the project's only one."),
    ] = None
    input_mapping: Annotated[
        dict[str, Any],
        Describe(
            description="What goes into the graph: `node.inputs.field` → a name of the input, `$.<JMESPath>` on it, "
            "`file` for the uploaded file, or a number, a truth value."
        ),
    ] = {}
    inputs: Annotated[
        dict[str, Any], Describe(description="Values for the graph as they are: `node.inputs.field` → value.")
    ] = {}
    defaults: Annotated[
        dict[str, Any], Describe(description="What the input mapping finds where the input doesn't have the name.")
    ] = {}
    file: Annotated[
        str | None,
        Describe(
            description="The file to upload. Left out: `path`, `image` or `file_path` of the input, if it is taken."
        ),
    ] = None
    outputs: Annotated[
        dict[str, str],
        Describe(description="Which outputs are wanted: name → `node` or `node.key`. Left out: all files."),
    ] = {}
    allow_node_errors: Annotated[
        bool, Describe(description="Whether to go on if ComfyUI drops outputs that are not valid.")
    ] = False
    keep: Annotated[
        Literal["file", "artifact"],
        Describe(description="Where the files go: into a folder, or into the artifact store."),
    ] = "file"
    folder: Annotated[
        str | None, Describe(description="The folder for the files. Left out: the work folder of this node.")
    ] = None


def takes_file(prompt: Prompt) -> bool:
    """Whether a file goes into the graph. Raises ServerFailed for a mapping that can't be read."""
    try:
        return prompt.file is not None or comfyui.wants_file(prompt.input_mapping)
    except MappingError as problem:
        raise _bad(problem) from None


async def send(comfy: ComfyUI, prompt: Prompt, input: Any, file: Path | None, id: str, *, said: str = "") -> str:
    """Upload the file, fill the graph, queue it as prompt ``id``; the id that the server gave it.

    ``said``: how the input calls the file: where a mapping takes that, the graph gets the upload. Raises ServerFailed:
    COMFYUI_MAPPING where something doesn't fit the graph, and what ``ComfyUI`` raises.
    """
    if not comfyui.is_graph(prompt.graph):
        raise ServerFailed(refused("COMFYUI_GRAPH", "The graph is not in ComfyUI's API format ('Export (API)')."))
    try:
        _require_outputs(prompt)
        scope = prompt.defaults | (input if isinstance(input, dict) else {})
        place = _place(prompt, file)
        # Looked at before anything is uploaded: what can't go in is told at once.
        values = _values(prompt, scope, file, place, "" if file is None else upload_name(id, file), said)
        comfyui.filled(prompt.graph, values)
        if (found := await comfy.find(id)) is not None:
            return found
        if file is not None:
            values = _values(prompt, scope, file, place, await comfy.upload(file, upload_name(id, file)), said)
        graph = comfyui.filled(prompt.graph, values)
    except MappingError as problem:
        raise _bad(problem) from None
    return await comfy.submit(graph, id, {"outputs": prompt.outputs}, partly=prompt.allow_node_errors)


def _place(prompt: Prompt, file: Path | None) -> str | None:
    """The place that takes the file where the mapping doesn't say."""
    if file is None or comfyui.wants_file(prompt.input_mapping):
        return None
    found = comfyui.loader(prompt.graph)
    return None if found is None else str(found)


def _values(
    prompt: Prompt, scope: Mapping[str, Any], file: Path | None, place: str | None, uploaded: str, said: str
) -> dict[str, Any]:
    if file is None:
        return comfyui.mapped(prompt.input_mapping, scope) | prompt.inputs
    values = comfyui.mapped(prompt.input_mapping, {**scope, comfyui.FILE: uploaded}) | prompt.inputs
    # A path of ours means nothing there.
    ours = {str(file), said} - {""}
    values = {at: uploaded if isinstance(value, str) and value in ours else value for at, value in values.items()}
    if uploaded not in values.values():
        if place is None:
            raise MappingError(
                comfyui.FILE,
                "Nothing in the graph takes the file; say where it goes, with 'input_mapping': "
                f"{{'<node>.inputs.image': '{comfyui.FILE}'}}.",
            )
        values[place] = uploaded
    return values


def _require_outputs(prompt: Prompt) -> None:
    for name in comfyui.unknown_outputs(prompt.graph, prompt.outputs):
        source = prompt.outputs[name]
        raise MappingError(source, f"The output {name!r} is taken from {source!r}, which is no node of the graph.")


def _bad(problem: MappingError) -> ServerFailed:
    return ServerFailed(refused("COMFYUI_MAPPING", str(problem), place=problem.place))


class Made(msgspec.Struct, frozen=True):
    """What a prompt made: the files that were asked for, and names → indexes into ``files``, or texts."""

    files: tuple[Produced, ...]
    texts: dict[str, tuple[str, ...]]
    chosen: dict[str, tuple[int | str, ...]]


def made(end: answers.Succeeded) -> Made:
    """By the note that was sent with the graph: all outputs, or those that it names."""
    outputs = comfyui.produced(end.outputs)
    asked = end.note.get("outputs")
    wanted = {name: said for name, said in asked.items() if isinstance(said, str)} if isinstance(asked, dict) else {}
    if not wanted:
        return Made(outputs.files, dict(outputs.texts), {})
    chosen = comfyui.chosen(outputs, wanted)
    files = tuple(dict.fromkeys(item for items in chosen.values() for item in items if isinstance(item, Produced)))
    places = {file: number for number, file in enumerate(files)}
    named = {
        name: tuple(places[item] if isinstance(item, Produced) else item for item in items)
        for name, items in chosen.items()
    }
    return Made(files, dict(outputs.texts), named)
