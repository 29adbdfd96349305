"""The containers: one module or folder per way of starting a worker."""
