"""All that touches Dagster, but the audit: the sensor, its cursor and metrics, and the jobs."""
