"""What the configuration says: `config.yaml` and the environment, as frozen settings.

The file is Amoro's own, so that one file can serve AMS and this project: `ams:` and `containers:`
are read as AMS reads them, and `keeper:` holds what Amoro has no key for. Environment variables
that begin with `AMS` overrule `ams:`, those that begin with `KEEPER_` overrule `keeper:`.

Whatever is wrong is reported at once, a line per problem, and never with a secret in it. All keys
are in docs/configuration.md.
"""

from dagster_amoro.config.load import load_settings
from dagster_amoro.config.models import SETTINGS, Setting
from dagster_amoro.config.settings import (
    AmsSettings,
    AuditSettings,
    ContainerSettings,
    HighAvailability,
    Mode,
    RegistryMode,
    Settings,
)
from dagster_amoro.config.values import parse_duration

__all__ = [
    "SETTINGS",
    "AmsSettings",
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
