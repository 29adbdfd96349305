"""The code location that `workspace.yaml` names: the definitions for `$AMORO_CONF_DIR/config.yaml`.

Importing it loads Dagster and nothing heavy beside it: the definitions load the other modules.
"""

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions for `$AMORO_CONF_DIR/config.yaml`."""
    from dagster_amoro.code_location import build_definitions  # noqa: PLC0415 - see above
    from dagster_amoro.config import load_settings  # noqa: PLC0415

    built = build_definitions(load_settings())
    # One process per asset run: a process per step would take longer than the step itself.
    return dg.Definitions.merge(built, dg.Definitions(executor=dg.in_process_executor))
