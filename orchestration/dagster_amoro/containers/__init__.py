"""The containers: one file per way of starting a worker."""

from dagster_amoro.containers.command.container import CommandContainer

__all__ = ["CommandContainer"]
