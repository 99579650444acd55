"""What runs tasks: the expansion of folders, the ledger's driver, and where outputs land."""
