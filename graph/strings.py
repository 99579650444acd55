"""What no text in a document may hold. (Variables are read by ``graph.request``, which refuses the same.)"""

from __future__ import annotations

from typing import Any

from graphql import GraphQLError, StringValueNode
from graphql.validation import ASTValidationRule


class NoNulRule(ASTValidationRule):
    """A literal with the character NUL is refused where it stands: PostgreSQL would refuse it much later."""

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        """Called for every text in a document, block texts and defaults too."""
        if "\0" in node.value:
            self.report_error(GraphQLError("A text can't hold the character NUL (\\u0000).", node))
