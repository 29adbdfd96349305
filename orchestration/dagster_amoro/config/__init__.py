"""What the configuration says: `config.yaml` and the environment, as frozen settings.

One file serves AMS and this project: `ams:` and `containers:` are read as AMS reads them, `keeper:`
and `fleet:` hold what Amoro has no key for, and variables that begin with `AMS` or `KEEPER_`
overrule the keys. All that is wrong is reported at once, without secrets. All keys are in
docs/configuration.md.
"""

from dagster_amoro.config.load import load_settings
from dagster_amoro.config.models import SETTINGS, Setting
from dagster_amoro.config.settings import (
    AmsSettings,
    ApplyFleet,
    AuditSettings,
    HighAvailability,
    Mode,
    RegistryMode,
    Settings,
)
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.values import parse_duration

__all__ = [
    "SETTINGS",
    "AmsSettings",
    "ApplyFleet",
    "AuditSettings",
    "ContainerSettings",
    "HighAvailability",
    "Mode",
    "RegistryMode",
    "Setting",
    "Settings",
    "load_settings",
    "parse_duration",
]
