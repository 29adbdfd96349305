import dataclasses
import json
import os
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.config import (
    SETTINGS,
    RegistryMode,
    Setting,
    Settings,
    load_settings,
    parse_duration,
)
from dagster_amoro.config.sources import RESTART_KEYS, environment_key, show
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.core.policy import Backoff, OnExhausted, RestartPolicy
from dagster_amoro_worker.durations import UNITS

SQLITE = "ams: {database.type: sqlite}\n"
POSTGRES = (
    "ams: {database.type: postgres, database.url: 'jdbc:postgresql://db/amoro', "
    "server-expose-host: ams}\n"
)
SECRET = "hunter2"  # noqa: S105 - it opens nothing
GRACE = "ams.optimizer.auto-restart-grace-period"
CHECK = "ams.optimizer-group.min-parallelism-check-interval"
AMORO_KEYS = (
    "database.jdbc-driver-class",
    "server-expose-host",
    "thrift-server.optimizing-service.bind-port",
    "http-server.bind-port",
    "http-server.rest-auth-type",
    "admin-username",
    "optimizer.task-ack-timeout",
    "optimizer.polling-timeout",
    "optimizer.max-planning-parallelism",
    "optimizer.task-execute-timeout",
    "self-optimizing.refresh-group-interval",
    "ha.enabled",
    "ha.type",
    "ha.cluster-name",
    "ha.zookeeper-address",
    "ha.use-master-slave-mode",
    "ha.heartbeat-interval",
    "shade.identifier",
    "shade.sensitive-keywords",
)


def load(folder: Path, text: str, **environ: str) -> Settings:
    """What a folder with this config.yaml, and this environment, are read as."""
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return load_settings(folder, environ)


def problems(folder: Path, text: str, **environ: str) -> list[str]:
    """The lines of the error that this configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **environ)
    return str(caught.value).splitlines()


def problem(folder: Path, text: str, **environ: str) -> str:
    """The same where there is only one."""
    (line,) = problems(folder, text, **environ)
    return line


def with_key(key: str, value: object) -> str:
    """A configuration that is right but for this one key, written as JSON, which is YAML."""
    sections: dict[str, dict[str, object]] = {"ams": {"database.type": "sqlite"}, "keeper": {}}
    section, _, rest = key.partition(".")
    sections[section][rest] = value
    return json.dumps(sections)


# --- Where the configuration comes from -------------------------------------------------------


def test_the_bundled_configuration_is_standalone_and_starts_nothing(tmp_path: Path) -> None:
    """Without AMORO_CONF_DIR there is a registry of our own, auto-restart off, no containers."""
    settings = load_settings(environ={"DAGSTER_HOME": str(tmp_path)})
    assert settings.registry is RegistryMode.STANDALONE
    assert settings.database_url == sa.URL.create("sqlite", database=f"{tmp_path}/registry.db")
    assert not settings.restart.enabled
    assert settings.containers == {}


def test_the_bundled_configuration_lies_in_the_package() -> None:
    """What is inside the package is inside the wheel."""
    assert files("dagster_amoro.config").joinpath("standalone", "config.yaml").is_file()


def test_the_bundled_configuration_is_a_template_for_every_key() -> None:
    """Each key is in it, set or as a comment."""
    text = (
        files("dagster_amoro.config")
        .joinpath("standalone", "config.yaml")
        .read_text(encoding="utf-8")
    )
    for setting in SETTINGS:
        assert f"{setting.key.rpartition('.')[2]}:" in text


def test_an_installed_amoros_folder_is_named_by_the_environment(tmp_path: Path) -> None:
    """AMORO_CONF_DIR says where config.yaml is, as it does for AMS."""
    (tmp_path / "config.yaml").write_text(SQLITE, encoding="utf-8")
    settings = load_settings(environ={"AMORO_CONF_DIR": str(tmp_path)})
    assert settings.source == tmp_path / "config.yaml"


def test_the_environment_of_the_process_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without arguments, folder and overrides come from os.environ."""
    (tmp_path / "config.yaml").write_text(SQLITE, encoding="utf-8")
    monkeypatch.setenv("AMORO_CONF_DIR", str(tmp_path))
    monkeypatch.setenv("AMS_OPTIMIZER_AUTO__RESTART__MAX__RETRIES", "9")
    settings = load_settings()
    assert settings.source.parent == tmp_path
    assert settings.restart.max_retries == 9


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that changes its folder later still knows its file."""
    (tmp_path / "config.yaml").write_text(SQLITE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_settings(Path(), {}).source == tmp_path / "config.yaml"


# --- Defaults and the table of keys -----------------------------------------------------------


def test_keys_that_are_left_out_have_the_documented_defaults(tmp_path: Path) -> None:
    """The defaults are those that the contract with Amoro's proposal names."""
    settings = load(tmp_path, SQLITE)
    assert settings.restart == RestartPolicy(
        enabled=False,
        max_retries=5,
        grace_period=timedelta(minutes=5),
        stable_after=timedelta(hours=1),
        backoff=Backoff.CONSTANT,
        backoff_cap=timedelta(hours=1),
        backoff_jitter=0.1,
        on_exhausted=OnExhausted.CLEAN_UP,
    )
    assert settings.check_interval == timedelta(minutes=5)
    assert settings.heartbeat_timeout == timedelta(minutes=1)
    assert settings.max_restarts_per_run == 200
    assert settings.claim_timeout == timedelta(minutes=15)
    assert settings.containers == {}


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.key for setting in SETTINGS])
def test_every_default_is_accepted_by_its_own_parser(setting: Setting) -> None:
    """The table cannot promise a default that the file would not be allowed to say."""
    setting.reader.parse(setting.default)


def test_the_table_names_each_key_once() -> None:
    """docs/configuration.md is made from it."""
    keys = [setting.key for setting in SETTINGS]
    assert len(keys) == len(set(keys))
    assert all(setting.reader.accepts for setting in SETTINGS)


def test_null_means_left_out(tmp_path: Path) -> None:
    """A key without a value has its default, as for AMS."""
    assert load(tmp_path, with_key(GRACE, None)).restart.grace_period == timedelta(minutes=5)


def test_empty_sections_are_sections_left_out(tmp_path: Path) -> None:
    """A section whose lines are all commented out is no mistake."""
    settings = load(tmp_path, f"{SQLITE}keeper:\ncontainers:\n")
    assert settings.max_restarts_per_run == 200


def test_keys_may_be_nested_or_dotted(tmp_path: Path) -> None:
    """Both forms, and mixtures of them, name one key."""
    text = """
        ams:
          database: {type: sqlite}
          optimizer.auto-restart-enabled: TRUE
          optimizer:
            auto-restart-max-retries: "7"
            heart-beat-timeout: 90 s
          "optimizer-group": {min-parallelism-check-interval: 30000}
        keeper: {registry: standalone, max-restarts-per-run: 1, claim-timeout: 1h}
    """
    settings = load(tmp_path, text)
    assert settings.restart.enabled
    assert settings.restart.max_retries == 7
    assert settings.heartbeat_timeout == timedelta(seconds=90)
    assert settings.check_interval == timedelta(seconds=30)
    assert settings.max_restarts_per_run == 1
    assert settings.claim_timeout == timedelta(hours=1)


def test_what_is_only_amoros_is_ignored(tmp_path: Path) -> None:
    """Amoro's own keys, lists among them, and unknown top-level sections do not disturb."""
    ams = {"database.type": "sqlite", **{key: ["x"] for key in AMORO_KEYS}}
    assert load(tmp_path, json.dumps({"ams": ams, "catalogs": [1], "x": None})).containers == {}


# --- The environment --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("AMS_DATABASE_PASSWORD", "ams.database.password"),
        ("AMS_DATABASE_JDBC__DRIVER__CLASS", "ams.database.jdbc-driver-class"),
        ("AMS_SERVER__EXPOSE__HOST", "ams.server-expose-host"),
        ("AMS_OPTIMIZER_HEART__BEAT__TIMEOUT", "ams.optimizer.heart-beat-timeout"),
        (
            "AMS_THRIFT__SERVER_OPTIMIZING__SERVICE_BIND__PORT",
            "ams.thrift-server.optimizing-service.bind-port",
        ),
        ("AMS_A___B", "ams.a-b"),
        ("AMSTERDAM", "ams.amsterdam"),
        ("AMSDATABASE_URL", "ams.amsdatabase.url"),
        ("AMS", "ams.ams"),
    ],
)
def test_names_of_variables_become_keys_by_amoros_rule(name: str, key: str) -> None:
    """One underscore is a dot, two or more are a hyphen, and AMS needs no underscore after it."""
    assert environment_key(name) == key


_words = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)


@given(st.lists(st.lists(_words, min_size=1, max_size=4), min_size=1, max_size=4))
def test_every_key_has_a_variable_that_sets_it(parts: list[list[str]]) -> None:
    """Writing a dot as one underscore and a hyphen as two is undone by the rule."""
    name = "AMS_" + "_".join("__".join(words) for words in parts).upper()
    assert environment_key(name) == "ams." + ".".join("-".join(words) for words in parts)


@given(st.text(max_size=30))
def test_no_variable_makes_a_key_with_an_underscore(rest: str) -> None:
    """Whatever follows AMS, only dots and hyphens are left between the words."""
    assert "_" not in (environment_key(f"AMS{rest}") or "_")


def test_the_environment_overrules_the_file(tmp_path: Path) -> None:
    """Both forms of a key in the file give way to the variable."""
    settings = load(tmp_path, with_key(GRACE, "1h"), AMS_OPTIMIZER_AUTO__RESTART__GRACE__PERIOD="2")
    assert settings.restart.grace_period == timedelta(milliseconds=2)


def test_the_environment_does_not_change_containers(tmp_path: Path) -> None:
    """Names that begin as ours do may be somebody else's: Kubernetes names ports of services so."""
    other = dict.fromkeys(
        (
            *("AMS_KEEPER_REGISTRY", "AMS_CONTAINERS", "KEEPER_", "KEEPER_PORT"),
            *("KEEPER_HOME", "KEEPER_NODE", "KEEPER_NAME", "KEEPER_GROUPS", "KEEPER_REGISTRY_PORT"),
            *("KEEPER_SERVER_SERVICE_HOST", "KEEPER_AMS_PORT_1261_TCP"),
        ),
        "x",
    )
    assert load(tmp_path, SQLITE, **other) == load(tmp_path, SQLITE)


@pytest.mark.parametrize("name", ["KEEPER_CLAIM_TIMEOUT", "KEEPER_CLAIM__TIMEOUT"])
def test_the_environment_overrules_keeper_too(tmp_path: Path, name: str) -> None:
    """Its keys have no dots, so one underscore is as good as two."""
    text = with_key("keeper.claim-timeout", "1h")
    assert load(tmp_path, text, **{name: "2h"}).claim_timeout == timedelta(hours=2)


def test_a_misspelt_variable_for_keeper_is_reported(tmp_path: Path) -> None:
    """One that nearly is a key would have no effect, and nobody would know."""
    line = problem(tmp_path, SQLITE, KEEPER_CLAIM_TIMOUT="2h")
    assert line.startswith("environment variable KEEPER_CLAIM_TIMOUT: keeper.claim-timout is '2h'")
    assert "did you mean keeper.claim-timeout?" in line


def test_two_variables_for_one_key_are_both_named(tmp_path: Path) -> None:
    """Which of the two would win could not be told; values are not shown."""
    environ = {"AMS_DATABASE_PASSWORD": SECRET, "AMS_Database_password": SECRET}
    line = problem(tmp_path, SQLITE, **environ)
    assert "AMS_DATABASE_PASSWORD and AMS_Database_password" in line
    assert "ams.database.password" in line
    assert SECRET not in line


def test_a_bad_value_from_the_environment_names_the_variable(tmp_path: Path) -> None:
    """Who looks for it in the file would not find it."""
    line = problem(tmp_path, SQLITE, AMS_OPTIMIZER_AUTO__RESTART__ENABLED="on")
    assert line.startswith("environment variable AMS_OPTIMIZER_AUTO__RESTART__ENABLED: ")
    assert f"{RESTART_KEYS[0]} is 'on'; accepted is true or false" in line


# --- Durations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, timedelta(0)),
        (1500, timedelta(milliseconds=1500)),
        ("1500", timedelta(milliseconds=1500)),
        ("5min", timedelta(minutes=5)),
        (" 5 Minutes\t", timedelta(minutes=5)),
        ("2 d", timedelta(days=2)),
        ("007h", timedelta(hours=7)),
        ("3 \u00b5s", timedelta(microseconds=3)),
        ("1999 ns", timedelta(microseconds=1)),
        ("9223372036854775807 ns", timedelta(microseconds=9223372036854775)),
        ("999999999 d", timedelta(days=999999999)),
        ("0" * 5000, timedelta(0)),
    ],
)
def test_durations_are_read_as_amoro_reads_them(value: object, expected: timedelta) -> None:
    """A whole number, then a unit in any case, or none for milliseconds."""
    assert parse_duration(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "min", "1m", "1w", "3us", "1.5h", "1h30m", "-1s", "+1s", "1 0s", "1e3"),
        *(
            "\u0661s",
            "5\u00a0min",
            "5 \u039cs",
            "9223372036854775808 ns",
            "9" * 5000,
            "1000000000 d",
        ),
        *(True, False, None, 1.0, -1, [1], timedelta(1)),
    ],
)
def test_anything_else_is_no_duration(value: object) -> None:
    """The error says what would be one, whatever was wrong."""
    with pytest.raises(ValueError, match="accepted is a whole number with one of the units"):
        parse_duration(value)


@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(["", " ", "\t "]),
    st.booleans(),
)
def test_every_unit_scales_its_number(number: int, unit: str, space: str, upper: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
    """The number counts units, case and white space count nothing."""
    label = unit.upper() if upper and unit.isascii() else unit
    expected = timedelta(microseconds=number * UNITS[unit] // 1000)
    assert parse_duration(f"{space}{number}{space}{label}{space}") == expected


@given(st.text(max_size=12) | st.from_regex(r"\s*[0-9]*\s*[a-z\u00b5]*\s*", fullmatch=True))
def test_a_text_is_a_duration_or_a_value_error(text: str) -> None:
    """No text, however odd, ends in another kind of error or in a negative duration."""
    try:
        assert parse_duration(text) >= timedelta(0)
    except ValueError as error:
        assert "accepted is" in str(error)  # noqa: PT017 - either outcome is right


# --- Values that are accepted or not ----------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ams.optimizer.auto-restart-enabled", "tRuE"),
        ("ams.optimizer.auto-restart-enabled", False),
        ("ams.optimizer.auto-restart-max-retries", 0),
        ("ams.optimizer.auto-restart-max-retries", 2147483647),
        ("ams.optimizer.auto-restart-max-retries", "2147483647"),
        (GRACE, 0),
        (GRACE, "36500 d"),
        (CHECK, "1s"),
        (CHECK, 1000),
        ("ams.optimizer.heart-beat-timeout", "1 micro"),
        ("keeper.claim-timeout", 1),
        ("keeper.max-restarts-per-run", 1),
        ("keeper.registry", "standalone"),
    ],
)
def test_values_at_the_edge_are_accepted(tmp_path: Path, key: str, value: object) -> None:
    """The last value on the right side of each boundary."""
    load(tmp_path, with_key(key, value))


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("ams.optimizer.auto-restart-enabled", "yes", "true or false"),
        ("ams.optimizer.auto-restart-enabled", " true", "true or false"),
        ("ams.optimizer.auto-restart-enabled", 1, "true or false"),
        ("ams.optimizer.auto-restart-max-retries", -1, "from 0 to 2147483647"),
        ("ams.optimizer.auto-restart-max-retries", 2147483648, "from 0 to 2147483647"),
        ("ams.optimizer.auto-restart-max-retries", "2147483648", "from 0 to 2147483647"),
        ("ams.optimizer.auto-restart-max-retries", 5.0, "from 0 to 2147483647"),
        ("ams.optimizer.auto-restart-max-retries", True, "from 0 to 2147483647"),
        ("ams.optimizer.auto-restart-max-retries", "five", "from 0 to 2147483647"),
        ("ams.optimizer.auto-restart-max-retries", [5], "from 0 to 2147483647"),
        (GRACE, "5m", "units d, h, min, s, ms"),
        (GRACE, True, "units d, h, min, s, ms"),
        (GRACE, "36501 d", "up to 36500 d"),
        (GRACE, "9999999999 d", "up to 36500 d"),
        (CHECK, 999, "from 1 s, the shortest that Dagster's sensors know"),
        ("ams.optimizer.heart-beat-timeout", 0, "more than 0"),
        ("ams.optimizer.heart-beat-timeout", "999 ns", "more than 0"),
        ("keeper.claim-timeout", "0 h", "more than 0"),
        ("keeper.max-restarts-per-run", 0, "from 1 to 2147483647"),
        ("keeper.registry", "Standalone", "attached, or standalone"),
        ("keeper.registry", ["standalone"], "attached, or standalone"),
        ("ams.database.type", "PostgreSQL", "postgres, mysql or sqlite"),
        ("ams.database.type", 5, "postgres, mysql or sqlite"),
        ("ams.database.username", ["me"], "a text"),
    ],
)
def test_a_value_that_is_not_accepted_is_reported_with_all_that_helps(
    tmp_path: Path, key: str, value: object, accepted: str
) -> None:
    """File, key, value and what is accepted stand in one line."""
    line = problem(tmp_path, with_key(key, value))
    assert line.startswith(f"{tmp_path / 'config.yaml'}: {key} is {value!r}; accepted is ")
    assert accepted in line


def test_the_check_interval_is_whole_seconds(tmp_path: Path) -> None:
    """Dagster counts in seconds; what AMS was given beyond them is cut off."""
    assert load(tmp_path, with_key(CHECK, 1999)).check_interval == timedelta(seconds=1)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    """Nobody has to start again to see the next mistake."""
    text = """
        ams:
          optimizer: {auto-restart-enabled: maybe, heart-beat-timeout: 0}
        keeper: {claim-timeout: soon, clam: 1}
        containers: [{name: a}]
    """
    lines = problems(tmp_path, text, AMS_OPTIMIZER_AUTO__RESTART__MAX__RETRIES="-1")
    found = [line.partition(": ")[2].split(" ")[0] for line in lines]
    assert sorted(found) == [
        "ams.database.type",
        "ams.optimizer.auto-restart-enabled",
        "ams.optimizer.auto-restart-max-retries",
        "ams.optimizer.heart-beat-timeout",
        "containers[0].container-impl",
        "keeper.claim-timeout",
        "keeper.clam",
    ]


def test_long_values_are_cut_in_errors(tmp_path: Path) -> None:
    """An error stays readable, and on its line."""
    line = problem(tmp_path, with_key("keeper.claim-timeout", "a\n" * 5000))
    assert len(line) < 500


# --- Keys that do not exist -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("keeper.max-restart-per-run", "keeper.max-restarts-per-run"),
        ("keeper.settings.claim_timeout", "keeper.claim-timeout"),
        ("ams.optimizer.auto-restart-max-retry", "ams.optimizer.auto-restart-max-retries"),
        ("ams.optimizer.auto-restart.enabled", "ams.optimizer.auto-restart-enabled"),
        ("ams.optimiser.auto-restart-enabled", "ams.optimizer.auto-restart-enabled"),
        ("ams.optimizer.autorestart-grace-period", GRACE),
        ("ams.auto-restart-enabled", "ams.optimizer.auto-restart-enabled"),
    ],
)
def test_a_misspelt_key_of_ours_is_reported_with_the_one_meant(
    tmp_path: Path, key: str, meant: str
) -> None:
    """A setting that silently had no effect would be found out in an outage."""
    line = problem(tmp_path, with_key(key, 7))
    assert line.startswith(f"{tmp_path / 'config.yaml'}: {key} is 7, but there is no such key;")
    assert f"did you mean {meant}?" in line
    assert "accepted are " in line


@pytest.mark.parametrize("key", ["keeper.x", "ams.optimizer.auto-restart"])
def test_unknown_keys_that_resemble_none_are_reported_too(tmp_path: Path, key: str) -> None:
    """What begins like ours is meant for us."""
    assert f"{key} is 1, but there is no such key" in problem(tmp_path, with_key(key, 1))


def test_a_key_written_as_a_map_is_unknown_below_it(tmp_path: Path) -> None:
    """A map where a value belongs does not pass for a key left out."""
    line = problem(tmp_path, with_key("keeper.claim-timeout", {"minutes": 5}))
    assert "keeper.claim-timeout.minutes is 5, but there is no such key" in line


def test_a_single_underscore_for_a_hyphen_is_reported(tmp_path: Path) -> None:
    """The slip that is easiest to make with the variables' names."""
    line = problem(tmp_path, SQLITE, AMS_OPTIMIZER_AUTO_RESTART_ENABLED="true")
    assert line.startswith("environment variable AMS_OPTIMIZER_AUTO_RESTART_ENABLED: ")
    assert "did you mean ams.optimizer.auto-restart-enabled?" in line


@pytest.mark.parametrize("section", ["ams", "keeper"])
def test_nested_and_dotted_forms_of_one_key_exclude_each_other(
    tmp_path: Path, section: str
) -> None:
    """Which of the two would win could not be told."""
    text = f"{section}: {{a.b: 1, a: {{b: 2}}}}"
    (line,) = (line for line in problems(tmp_path, text) if "not both" in line)
    assert line == (
        f"{tmp_path / 'config.yaml'}: {section}.a.b is 1 in one place and 2 in another; "
        "accepted is the nested or the dotted form, not both"
    )


# --- Files that cannot be read ----------------------------------------------------------------


def test_a_missing_file_is_reported_with_its_path(tmp_path: Path) -> None:
    """And with the variable that says where it is looked for."""
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "none", {})
    assert f"{tmp_path / 'none' / 'config.yaml'}: cannot be read" in str(caught.value)
    assert "$AMORO_CONF_DIR" in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_reported(tmp_path: Path) -> None:
    """Other reasons than a missing file are named as well."""
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read \(Is a directory\)"):
        load_settings(tmp_path, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_reported(tmp_path: Path) -> None:
    """Missing permissions are an error of the configuration like any other."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_settings(folder, {})


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("", "holds null"),
        ("- ams", "holds a list"),
        ("ams", "holds a text"),
        ("5", "holds a number"),
        ("a: [", "is not YAML (line 1, column 5: "),
        ("a: b: c", "is not YAML (line 1, column 5: mapping values are not allowed here)"),
        ("a: 1\n---\nb: 2", "is not YAML (line 2, column 1: but found another document)"),
        ("a: 2024-13-45", "is not YAML"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        ("a: !!python/name:os.system x", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_map_is_reported(tmp_path: Path, text: str, flaw: str) -> None:
    """What was found instead is named, and where reading stopped."""
    line = problem(tmp_path, text)
    assert line.startswith(f"{tmp_path / 'config.yaml'}: {flaw}")
    assert line.endswith("; accepted is a map with ams, containers and keeper")


def test_a_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are no YAML."""
    (tmp_path / "config.yaml").write_bytes(b"ams: \xff\xfe\xfa")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_settings(tmp_path, {})


@pytest.mark.parametrize("section", ["ams", "keeper"])
def test_a_section_that_is_no_map_is_reported(tmp_path: Path, section: str) -> None:
    """With what it is instead."""
    source = tmp_path / "config.yaml"
    assert f"{source}: {section} is a list; accepted is a map" in problems(
        tmp_path, f"{section}: [1]"
    )


def test_a_section_that_holds_itself_is_reported(tmp_path: Path) -> None:
    """YAML can write such a thing down; it has no end."""
    lines = problems(tmp_path, "ams: &all {again: *all}")
    assert any("ams is nested without end" in line for line in lines)


# --- The database -----------------------------------------------------------------------------


def database(folder: Path, kind: str, url: str | None, **environ: str) -> sa.URL:
    """The URL that these two keys come to."""
    return load(folder, database_text(kind, url), **environ).database_url


def database_text(kind: str | None, url: str | None, **more: str) -> str:
    """A configuration with these keys below `ams.database`."""
    keys = {"type": kind, "url": url, **more}
    return json.dumps({"ams": {"database": keys, "server-expose-host": "ams"}})


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("postgres", "jdbc:postgresql://db/amoro", "postgresql+psycopg://db/amoro"),
        (
            "postgres",
            "jdbc:postgresql://10.0.0.1:5433/amoro?prepareThreshold=0&options=-c%20x=y",
            "postgresql+psycopg://10.0.0.1:5433/amoro?options=-c x=y",
        ),
        ("postgres", "jdbc:postgresql://[::1]:5432/amoro", "postgresql+psycopg://[::1]:5432/amoro"),
        ("postgres", "jdbc:postgresql:///amoro", "postgresql+psycopg://localhost/amoro"),
        (
            "mysql",
            "jdbc:mysql://127.0.0.1:3306/my%20db?useUnicode=true&characterEncoding=utf8",
            "mysql+pymysql://127.0.0.1:3306/my%20db?charset=utf8mb4",
        ),
        (
            "mysql",
            "jdbc:mysql://db/amoro?user=me&password=p%26w",
            "mysql+pymysql://me:p&w@db/amoro?charset=utf8mb4",
        ),
        ("postgres", "postgresql://u:p%40w@db/amoro", "postgresql+psycopg://u:p%40w@db/amoro"),
        ("postgres", "postgresql+psycopg://db/amoro", "postgresql+psycopg://db/amoro"),
        ("postgres", "postgresql://db/amoro?sslmode=require", None),
        ("mysql", "mysql://db:3307/amoro", "mysql+pymysql://db:3307/amoro"),
        ("mysql", "mysql+mysqldb://db/amoro", "mysql+mysqldb://db/amoro"),
    ],
)
def test_servers_are_named_in_both_forms(
    tmp_path: Path, kind: str, text: str, expected: str | None
) -> None:
    """JDBC keeps what has an equivalent; SQLAlchemy keeps everything."""
    expected = expected or text.replace("://", "+psycopg://")
    assert database(tmp_path, kind, text) == sa.make_url(expected)


def test_credentials_come_from_their_own_keys(tmp_path: Path) -> None:
    """They are quoted by whoever renders the URL, so any character may be in them."""
    password = "p@ss:w/rd?%"  # noqa: S105 - a test's
    text = database_text("mysql", "jdbc:mysql://db/amoro", username="amoro")
    url = load(tmp_path, text, AMS_DATABASE_PASSWORD=password).database_url
    assert (url.username, url.password, url.host) == ("amoro", password, "db")


def test_credentials_in_the_url_win(tmp_path: Path) -> None:
    """What the URL says is not replaced; what it does not say is added."""
    text = database_text("mysql", "mysql://me@db/amoro", username="root", password=SECRET)
    url = load(tmp_path, text).database_url
    assert (url.username, url.password) == ("me", SECRET)


def test_without_credentials_the_driver_decides(tmp_path: Path) -> None:
    """Empty texts are no credentials."""
    text = database_text("mysql", "mysql://db/amoro", username="", password="")
    url = load(tmp_path, text).database_url
    assert (url.username, url.password) == (None, None)


def test_a_password_that_yaml_takes_for_a_number_is_still_a_text(tmp_path: Path) -> None:
    """AMS would use the number's text as well."""
    text = (
        "ams: {server-expose-host: ams, "
        "database: {type: mysql, url: 'mysql://db/a', username: 1.0, password: 123}}"
    )
    url = load(tmp_path, text).database_url
    assert (url.username, url.password) == ("1.0", "123")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:////data/me@home/r.db", "/data/me@home/r.db"),
        ("sqlite+pysqlite:////data/r.db", "/data/r.db"),
        ("jdbc:sqlite:/data/r.db?journal_mode=WAL", "/data/r.db"),
        ("sqlite:///r.db", "{folder}/r.db"),
        ("jdbc:sqlite:sub/r.db", "{folder}/sub/r.db"),
    ],
)
def test_sqlite_paths_are_absolute(tmp_path: Path, text: str, path: str) -> None:
    """A relative one starts at the folder of config.yaml, for every process the same."""
    url = database(tmp_path, "sqlite", text)
    assert url.get_backend_name() == "sqlite"
    assert url.database == path.format(folder=tmp_path)
    assert (url.username, url.password) == (None, None)


def test_sqlite_without_a_url_lies_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DAGSTER_HOME is not set; nothing is created yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    url = database(tmp_path / "conf", "sqlite", None)
    assert url.database == str(tmp_path / ".dagster-amoro" / "registry.db")
    assert not (tmp_path / ".dagster-amoro").exists()


@pytest.mark.parametrize(
    ("kind", "text", "flaw"),
    [
        ("sqlite", "sqlite://", "in memory"),
        ("sqlite", "sqlite:///", "in memory"),
        ("sqlite", "sqlite:///:memory:", "in memory"),
        ("sqlite", "jdbc:sqlite:", "in memory"),
        ("sqlite", "jdbc:sqlite::memory:", "in memory"),
        ("sqlite", "jdbc:sqlite::resource:x.db", "is not a plain path"),
        ("sqlite", "sqlite:///file:x?mode=memory&uri=true", "is not a plain path"),
        ("sqlite", "sqlite:///x?mode=memory&uri=true", "is not a plain path"),
        ("sqlite", "sqlite://data/r.db", "has a host"),
        ("sqlite", "sqlite+aiosqlite:///r.db", "asynchronous driver"),
        ("postgres", "postgresql+asyncpg://db/amoro", "asynchronous driver"),
        ("mysql", "mysql+nosuch://db/amoro", "driver that SQLAlchemy does not know"),
        ("mysql", "mysql://db", "names no database"),
        ("mysql", "jdbc:mysql://db/", "names no database"),
        ("mysql", "jdbc:mysql://db:99999/a", "names a port"),
        ("postgres", "jdbc:mysql://db/amoro", "an unreachable combination"),
        ("mysql", "postgresql://db/amoro", "an unreachable combination"),
        ("mysql", "sqlite:///r.db", "an unreachable combination"),
        ("sqlite", "mysql://db/amoro", "an unreachable combination"),
        ("postgres", "jdbc:derby:/tmp/amoro/derby;create=true", "an unreachable combination"),
    ],
)
def test_databases_that_cannot_be_used_are_reported(
    tmp_path: Path, kind: str, text: str, flaw: str
) -> None:
    """With the URL, which holds no secret here, and what is accepted instead."""
    line = problem(tmp_path, database_text(kind, text))
    assert line.startswith(f"{tmp_path / 'config.yaml'}: ams.database.url is '")
    assert flaw in line
    assert "accepted is jdbc:postgresql://host[:port]/database" in line


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql:u:{SECRET}@db/amoro",
        f"postgresql://u:{SECRET}",
        f"postgresql://u:p@{SECRET}@db/amoro",
        f"mysql://u:p@{SECRET}/word@db/amoro",
        f"jdbc:mysql://u:{SECRET}@db/amoro",
        f"mysql://u/{SECRET}?@db/amoro",
        f"jdbc:mysql://u/:{SECRET}?@db/amoro",
        f"jdbc:mysql://:1/{SECRET}?@db/amoro",
        f"jdbc:postgresql://:1/{SECRET}?a=@db/amoro",
        f"jdbc:oracle://db/amoro?password={SECRET}",
        SECRET,
    ],
)
def test_a_url_that_cannot_be_read_is_not_shown(tmp_path: Path, text: str) -> None:
    """Nobody can tell where in it the password is."""
    line = problem(tmp_path, database_text("mysql", text))
    assert "ams.database.url is ***; accepted is jdbc:" in line
    assert SECRET not in line


@given(
    st.sampled_from(["mysql", "postgresql+psycopg", "jdbc:mysql", "jdbc:postgresql", "postgres"]),
    *[st.text("ab1:/@?#%[]&=", max_size=4)] * 3,
)
def test_no_password_that_was_written_unescaped_is_shown(
    scheme: str, user: str, before: str, after: str
) -> None:
    """Characters that have a meaning in URLs do not move it to where it would be seen."""
    text = f"{scheme}://{user}:{before}{SECRET}{after}@db/amoro"
    assert SECRET not in show("ams.database.url", text)


def test_a_url_of_another_type_is_not_shown_either(tmp_path: Path) -> None:
    """A list with a URL in it may hold a password as well."""
    keys = {"type": "mysql", "url": [f"mysql://u:{SECRET}@h/d"]}
    text = json.dumps({"ams": {"database": keys, "server-expose-host": "ams"}})
    assert "ams.database.url is ***;" in problem(tmp_path, text)


@pytest.mark.parametrize("url", [None, ""])
def test_a_server_without_a_url_is_reported(tmp_path: Path, url: str | None) -> None:
    """Amoro's default URL is Derby's, and of no use."""
    line = problem(tmp_path, database_text("postgres", url))
    shown = "left out" if url is None else "''"
    assert f"ams.database.url is {shown}; accepted is jdbc:postgresql://" in line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("keeper: {}", "left out, which means derby"),
        ("ams: {database.type: derby}", "'derby'"),
        ("ams: {database.url: 'mysql://db/amoro'}", "left out, which means derby"),
    ],
)
def test_derby_is_refused_and_the_way_out_is_said(tmp_path: Path, text: str, shown: str) -> None:
    """Amoro's default cannot be opened from outside its process."""
    line = problem(tmp_path, text)
    assert line.startswith(f"{tmp_path / 'config.yaml'}: ams.database.type is {shown}; accepted is")
    assert "postgres, mysql or sqlite; Derby" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SQLITE, RegistryMode.STANDALONE),
        (POSTGRES, RegistryMode.ATTACHED),
        (f"{SQLITE}keeper: {{registry: standalone}}", RegistryMode.STANDALONE),
        (f"{POSTGRES}keeper: {{registry: standalone}}", RegistryMode.STANDALONE),
        (f"{POSTGRES}keeper: {{registry: attached}}", RegistryMode.ATTACHED),
    ],
)
def test_the_registry_is_amoros_unless_it_cannot_be(
    tmp_path: Path, text: str, expected: RegistryMode
) -> None:
    """Left out, it follows the database."""
    assert load(tmp_path, text).registry is expected


def test_an_attached_sqlite_registry_is_refused(tmp_path: Path) -> None:
    """AMS cannot use SQLite, so nothing could be attached to."""
    line = problem(tmp_path, f"{SQLITE}keeper: {{registry: attached}}")
    assert "keeper.registry is 'attached' with ams.database.type sqlite, an unreachable" in line
    assert "accepted is attached, or standalone, the only one for sqlite" in line


# --- Containers -------------------------------------------------------------------------------


JAVA = "org.apache.amoro.server.manager.LocalOptimizerContainer"


def container_text(properties: str, implementation: str = "my.Worker") -> str:
    """A configuration with one container, its properties in YAML."""
    entry = f"{{name: a, container-impl: {implementation}, properties: {properties}}}"
    return f"{SQLITE}containers: [{entry}]"


def test_containers_are_found_by_name(tmp_path: Path) -> None:
    """With their class, unknown keys of an entry ignored, and no properties where none are."""
    text = f"{SQLITE}containers: [{{name: a, container-impl: {JAVA}, other: [1]}}]"
    container = load(tmp_path, text).containers["a"]
    assert (container.name, container.implementation) == ("a", JAVA)
    assert container.properties == {}


def test_a_later_container_replaces_an_earlier_one(tmp_path: Path) -> None:
    """Amoro's rule for two entries of one name."""
    text = f"{SQLITE}containers: [{{name: a, container-impl: x.Y}}, {{name: a, container-impl: z}}]"
    assert {
        name: each.implementation for name, each in load(tmp_path, text).containers.items()
    } == {"a": "z"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1024", "1024"),
        ("'007'", "007"),
        ("-5", "-5"),
        ("yes", "true"),
        ("False", "false"),
        ("1.0", "1.0"),
        ("-0.25", "-0.25"),
        ("0.001", "0.001"),
        ("0.00025", "2.5E-4"),
        ("9999999.0", "9999999.0"),
        ("10000000.0", "1.0E7"),
        ("-1.25e+30", "-1.25E30"),
        ("-0.0", "-0.0"),
        (".inf", "Infinity"),
        ("-.inf", "-Infinity"),
        (".nan", "NaN"),
        ("''", ""),
    ],
)
def test_properties_are_texts_as_java_writes_them(tmp_path: Path, value: str, text: str) -> None:
    """A worker sees the same text whether AMS or we start it."""
    settings = load(tmp_path, container_text(f"{{x: {value}}}", JAVA))
    assert settings.containers["a"].properties == {"x": text}


def test_a_null_property_is_left_out(tmp_path: Path) -> None:
    """AMS treats it so too."""
    settings = load(tmp_path, container_text("{x: null, y: 1}", JAVA))
    assert settings.containers["a"].properties == {"y": "1"}


def test_the_names_of_properties_are_texts_too(tmp_path: Path) -> None:
    """YAML takes some of them for numbers or switches."""
    settings = load(tmp_path, container_text("{2: a, on: b, export.X: c}"))
    assert settings.containers["a"].properties == {"2": "a", "true": "b", "export.X": "c"}


def test_a_list_is_passed_on_as_json_to_classes_of_ones_own(tmp_path: Path) -> None:
    """A command keeps its words apart, each of them a text."""
    settings = load(tmp_path, container_text("{command: [python, -m, 'w \u00fc', 5, true, 1.0]}"))
    assert settings.containers["a"].properties == {
        "command": '["python","-m","w \u00fc","5","true","1.0"]'
    }


@pytest.mark.parametrize(
    ("properties", "implementation", "place", "found"),
    [
        ("null", "my.Worker", "properties", "null"),
        ("[]", "my.Worker", "properties", "a list"),
        ("text", JAVA, "properties", "a text"),
        ("{x: [a]}", JAVA, "properties.x", "a list"),
        ("{x: {y: 1}}", JAVA, "properties.x", "a map"),
        ("{x: {y: 1}}", "my.Worker", "properties.x", "a map"),
        ("{x: [[a]]}", "my.Worker", "properties.x", "a list"),
        ("{x: [null]}", "my.Worker", "properties.x", "a list"),
        ("{x: 2024-01-01}", JAVA, "properties.x", "a date"),
    ],
)
def test_properties_that_are_no_texts_are_reported(
    tmp_path: Path, properties: str, implementation: str, place: str, found: str
) -> None:
    """By kind, because a property's value may be a secret."""
    line = problem(tmp_path, container_text(properties, implementation))
    source = tmp_path / "config.yaml"
    assert line.startswith(f"{source}: containers[0].{place} is {found}; accepted is a ")
    assert ("list of those" in line) is (implementation == "my.Worker" and place == "properties.x")


@pytest.mark.parametrize(
    ("entries", "flaw"),
    [
        ("{name: a}", "containers is a map; accepted is a list of maps"),
        ("[a]", "containers[0] is a text; accepted is a map with name, container-impl"),
        ("[{container-impl: x}]", "containers[0].name is left out; accepted is a text"),
        ("[{name: ' ', container-impl: x}]", "containers[0].name is ' '; accepted is a text"),
        ("[{name: 5, container-impl: x}]", "containers[0].name is 5; accepted is a text"),
        ("[{name: a}]", "containers[0].container-impl is left out; accepted is a text"),
        ("[{name: a, container-impl: null}]", "containers[0].container-impl is None; accepted"),
    ],
)
def test_entries_that_are_no_containers_are_reported(
    tmp_path: Path, entries: str, flaw: str
) -> None:
    """With their place in the list, since they may have no name."""
    line = problem(tmp_path, f"{SQLITE}containers: {entries}")
    assert line.startswith(f"{tmp_path / 'config.yaml'}: {flaw}")


# --- Secrets, and what cannot be changed ------------------------------------------------------


def test_settings_do_not_show_secrets(tmp_path: Path) -> None:
    """Neither the password nor a container's properties stand in their text."""
    text = (
        "ams: {database: {type: mysql, url: 'mysql://u@db/amoro'}, server-expose-host: ams}\n"
        f"containers: [{{name: a, container-impl: x.Y, properties: {{export.KEY: {SECRET}}}}}]"
    )
    settings = load(tmp_path, text, AMS_DATABASE_PASSWORD=SECRET)
    assert settings.database_url.password == SECRET
    assert SECRET not in f"{settings!r} {settings} {settings.containers['a']}"
    assert "***" in repr(settings)


@pytest.mark.parametrize("name", ["password", "passwd", "sslpassword"])
def test_a_password_in_the_query_part_is_refused(tmp_path: Path, name: str) -> None:
    """SQLAlchemy would show it wherever it shows the URL."""
    line = problem(tmp_path, database_text("mysql", f"mysql://u@db/amoro?{name}={SECRET}"))
    assert "holds a password in its query part" in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "text",
    [
        database_text("oracle", f"mysql://u:{SECRET}@db/amoro"),
        database_text("postgres", f"mysql://u:{SECRET}@db/amoro?password={SECRET}"),
        database_text("postgres", f"jdbc:mysql://db/amoro?password={SECRET}"),
        database_text(f"mysql://u:{SECRET}@db/amoro", None),
        json.dumps({"ams": {"database": {"password": [SECRET]}}}),
        json.dumps({"ams": {"database": {"password": SECRET}, "database.password": SECRET}}),
        json.dumps({"ams": {"database": {"url": SECRET}, "database.url": SECRET}}),
        json.dumps({"keeper": {"password": SECRET, "database": f"mysql://u:{SECRET}@db/a"}}),
        f"ams: {{database: {{password: *{SECRET}}}}}",
        f"ams: {{database: {{password: !{SECRET} x}}}}",
        f'ams: {{database: {{password: "{SECRET}}}}}',
        f"ams: {{database: {{password: {SECRET}: x: y}}}}",
        f"containers: [{{name: a, container-impl: x, properties: [{SECRET}]}}]",
        f"containers: [{{name: a, container-impl: {JAVA}, properties: {{x: [{SECRET}]}}}}]",
        f"containers: {SECRET}",
        f"ams: {SECRET}",
        SECRET,
    ],
)
def test_errors_do_not_show_secrets(tmp_path: Path, text: str) -> None:
    """Whatever is wrong, and wherever; nothing that was raised on the way is chained to them."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    """Neither a field nor what is in one: everyone sees the same configuration."""
    settings = load(tmp_path, container_text("{x: 1}"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.max_restarts_per_run = 5  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.containers["a"].name = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.containers["b"] = settings.containers["a"]  # type: ignore[index]
    with pytest.raises(TypeError):
        settings.containers["a"].properties["x"] = "2"  # type: ignore[index]
