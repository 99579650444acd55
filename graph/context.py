"""What resolvers get: the engine, who is asking, and loaders that live for one operation."""

from __future__ import annotations

from collections.abc import Callable

from engine.access import Actor
from engine.engine import Engine
from graph.loaders import Loaders


class Context:
    """One operation's surroundings.

    A subscription calls ``refresh`` before each item: what was read for the last one is old.
    """

    __slots__ = ("actor", "engine", "load")

    def __init__(self, engine: Engine, actor: Actor | None) -> None:
        self.engine = engine
        self.actor = actor
        self.load = Loaders(engine, actor.project_id if actor else "")

    def refresh(self) -> None:
        """Forget everything that was read."""
        self.load = Loaders(self.engine, self.load.project_id)


def contexts(engine: Engine) -> Callable[[Actor | None, object], Context]:
    """Makes the context of each operation: the ``ContextFactory`` that the wire asks for."""

    def context(actor: Actor | None, connection: object = None) -> Context:
        return Context(engine, actor)

    return context
