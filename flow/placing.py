"""Where a node may run: on this worker, or offered to all that have what it needs.

A worker drives an instance and makes most attempts itself. Three kinds of nodes are *offered* instead, to be taken by
whoever has the labels and a free place (this worker too):

* nodes that ask for labels which this worker lacks, or for graphics cards, which are counted where they are;
* of a fan-out of more than ``WIDE`` ready nodes, those that would wait long for a place here, if others work too;
* of fewer nodes that would wait long for a place, as many as others have free.
"""

from __future__ import annotations

from collections.abc import Collection

from flow.definition import Node

#: The lane of nodes that are always offered. It has room for any number of them: a place is taken by whoever runs it.
OFFERED = "offered"
#: So many ready nodes of one instance in one lane are a wide fan-out.
WIDE = 100
#: Who gets a place here within this time is not offered: an offer costs about as much as three nodes that do nothing.
SOON_S = 2.0
#: So many workers may die in the middle of one offered node before it is given up.
MAX_DEATHS = 3


def gpus(node: Node, default: int | None = None) -> int:
    """How many graphics cards the node needs; ``default`` is its type's."""
    wanted = node.resources.gpu if node.resources is not None else None
    return wanted if wanted is not None else default or 0


def stays(node: Node, labels: Collection[str], default_gpus: int | None = None) -> bool:
    """Whether a worker with these labels runs the node of an instance that it drives by itself."""
    return gpus(node, default_gpus) == 0 and set(node.runs_on) <= set(labels)


def shared(waiting: int, rate: float, elsewhere: int, workers: int) -> int:
    """How many of the nodes that wait for a place in one lane are to be offered.

    ``rate`` is how many places become free here in a second, ``elsewhere`` how many others had free when they were last
    heard of, and ``workers`` is how many others there are.
    """
    left = waiting - int(rate * SOON_S)
    if left <= 0 or workers == 0:
        return 0
    return left if waiting > WIDE else min(left, elsewhere)
