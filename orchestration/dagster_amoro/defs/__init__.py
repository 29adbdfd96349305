"""All that touches Dagster, but the audit: the sensor, its cursor and metrics, and the jobs."""

from dagster import DagsterExecutionInterruptedError

from dagster_amoro.containers.base import never_swallow

# Here, so that it holds in each process that runs a job of this package: whatever it imports of
# it, this comes first.
never_swallow(DagsterExecutionInterruptedError)
