"""The worker's side, which is a distribution of its own: see `dagster_amoro_worker`."""

from dagster_amoro_worker import Heartbeat

__all__ = ["Heartbeat"]
