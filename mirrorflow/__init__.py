"""Mirrorflow: a durable workflow engine behind one typed GraphQL schema."""
