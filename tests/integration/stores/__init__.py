"""What registry and ledger promise, kept on every database that they run on."""
