"""The schema's history. ``db.migrate`` runs it; there is no ini file."""
