"""The domain, pure: what an orphan's story is made of and what is decided about it."""
