"""The containers: one file per way of starting a worker."""
