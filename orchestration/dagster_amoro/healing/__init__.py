"""What acts: ticks, restarts, scaling, operator verbs. It knows nothing of Dagster."""
