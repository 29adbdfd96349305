"""The containers: one file per way of starting a worker."""

from orchestration.containers.command import CommandContainer

__all__ = ["CommandContainer"]
