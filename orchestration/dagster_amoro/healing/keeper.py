"""The parts of a deployment under their former name."""

from dagster_amoro.healing.assembly import Services

Keeper = Services
