"""Keeps fleets of workers alive from Dagster: Apache Amoro's optimizers, or your own."""
