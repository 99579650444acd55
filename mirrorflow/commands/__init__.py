"""The commands of ``mirrorflow``, a file for each family; each imports what it needs when it runs."""
