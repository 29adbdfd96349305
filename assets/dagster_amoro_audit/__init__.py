"""The audit: what happened to each group's orphans, as Dagster assets."""
