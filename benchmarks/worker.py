"""A worker that does nothing but register: `python -m benchmarks.worker URL ID GROUP CONTAINER`."""

import signal
import sys

from dagster_amoro.worker import Heartbeat

if __name__ == "__main__":
    url, resource_id, group_name, container_name = sys.argv[1:]
    with Heartbeat(
        url, resource_id=resource_id, group_name=group_name, container_name=container_name
    ):
        signal.pause()
