"""A definition prepared for running: its edges indexed, the bodies of its loops as graphs of their own.

A node's *path* says where in a run it is: its id, and before it the iterations around it, ``resize[3]/encode``.
What comes before the id is the *prefix*, ``resize[3]/``; the prefix of the workflow's own nodes is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flow.controls import LANE, LOOP, PARAMETERS
from flow.definition import Definition, Edge, Node
from flow.reading import read_body


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes and edges of a workflow, or of a loop's body.

    ``lanes`` names, per node, the pool of places that it runs in. ``bodies`` holds, per loop node, its body.
    ``definition`` is the whole workflow's, also in a body.
    """

    definition: Definition
    nodes: Mapping[str, Node]
    incoming: Mapping[str, tuple[Edge, ...]]
    outgoing: Mapping[str, tuple[Edge, ...]]
    lanes: Mapping[str, str]
    bodies: Mapping[str, Graph]

    def within(self, prefix: str) -> Graph:
        """The graph that runs under this prefix. Raises KeyError if there is none."""
        graph = self
        for iteration in prefix.split("/")[:-1]:
            graph = graph.bodies[iteration.rpartition("[")[0]]
        return graph

    def node(self, path: str) -> Node:
        """The node of this path. Raises KeyError if there is none."""
        prefix, id = split(path)
        return self.within(prefix).nodes[id]

    def every_lane(self) -> set[str]:
        """The lanes of all nodes, those in bodies too."""
        return set(self.lanes.values()).union(*(body.every_lane() for body in self.bodies.values()))


def split(path: str) -> tuple[str, str]:
    """A path's prefix and node id."""
    prefix, slash, id = path.rpartition("/")
    return prefix + slash, id


def prepare(definition: Definition, lane: Callable[[Node], str] = lambda node: "default") -> Graph:
    """The graph of a valid definition."""
    return _graph(definition, definition.nodes, definition.edges, lane)


def _graph(definition: Definition, nodes: Sequence[Node], edges: Sequence[Edge], lane: Callable[[Node], str]) -> Graph:
    incoming: dict[str, list[Edge]] = {node.id: [] for node in nodes}
    outgoing: dict[str, list[Edge]] = {node.id: [] for node in nodes}
    for edge in edges:
        incoming[edge.target].append(edge)
        outgoing[edge.source].append(edge)
    return Graph(
        definition=definition,
        nodes={node.id: node for node in nodes},
        incoming={id: tuple(found) for id, found in incoming.items()},
        outgoing={id: tuple(found) for id, found in outgoing.items()},
        lanes={node.id: LANE if node.type in PARAMETERS else lane(node) for node in nodes},
        bodies={
            node.id: _graph(definition, *read_body(node.parameters["body"]), lane)
            for node in nodes
            if node.type == LOOP
        },
    )
