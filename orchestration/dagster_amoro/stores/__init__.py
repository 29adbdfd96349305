"""The two stores: the registry (Amoro's tables) and the ledger (ours)."""
