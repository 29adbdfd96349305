"""Limits, pauses, leases and groups: which of their settings are accepted, refused, warned of."""

import dataclasses
import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.config import SETTINGS, Mode, Settings, load_settings
from dagster_amoro.config.sources import group_of
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.policy import Backoff, OnExhausted
from dagster_amoro.core.values import DURATION_ACCEPTS
from dagster_amoro.healing.assembly import Services

GRACE = "ams.optimizer.auto-restart-grace-period"
CHECK = "keeper.check-interval"
AMS_CHECK = "ams.optimizer-group.min-parallelism-check-interval"
PART = "a number more than 0, with which nothing would ever be healed, and up to 1"
STABLE = f"{DURATION_ACCEPTS}, not shorter than {GRACE} and up to 36500 d, or 0 to switch it off"
CAP = f"{DURATION_ACCEPTS}, more than 0, not shorter than {GRACE} and up to 36500 d"
INTERVAL = f"{DURATION_ACCEPTS}, from 1 s, the shortest that Dagster's sensors know, up to 36500 d"
LEASE = (
    f"{DURATION_ACCEPTS}, at least twice {CHECK}, at least 10 s more than that, and up to 36500 d"
)


def load(folder: Path, keys: dict[str, Any] | None = None, **environ: str) -> Settings:
    """What these keys, in full, are read as beside an SQLite registry."""
    sections: dict[str, dict[str, Any]] = {"ams": {"database.type": "sqlite"}, "keeper": {}}
    for key, value in (keys or {}).items():
        section, _, rest = key.partition(".")
        sections[section][rest] = value
    (folder / "config.yaml").write_text(json.dumps(sections), encoding="utf-8")
    return load_settings(folder, environ)


def problem(folder: Path, keys: dict[str, Any], **environ: str) -> str:
    """The one line they are refused with, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, keys, **environ)
    return str(caught.value).removeprefix(f"{folder / 'config.yaml'}: ")


def warning(folder: Path, keys: dict[str, Any], **environ: str) -> str:
    """The one thing they are warned of, without the file's name."""
    (line,) = load(folder, keys, **environ).warnings
    return line.removeprefix(f"{folder / 'config.yaml'}: ")


def value_of(settings: Settings, path: str) -> object:
    """A field of the settings, by its dotted name."""
    found: object = settings
    for name in path.split("."):
        found = getattr(found, name)
    return found


# --- Each key by itself -----------------------------------------------------------------------


def test_left_out_they_change_nothing(tmp_path: Path) -> None:
    """No limit but a wide wave, no lease, nothing to warn of."""
    settings = load(tmp_path)
    assert settings.limits == Limits(max_restarts=1000)
    assert settings.mode is Mode.ENFORCE
    assert settings.dynamic_groups == frozenset()
    assert settings.max_keeping_attempts == 3
    assert settings.lease_time is None
    assert settings.deployment == socket.gethostname()
    assert settings.warnings == ()


ACCEPTED: list[tuple[str, object, str, object]] = [
    ("keeper.mode", "dry-run", "mode", Mode.DRY_RUN),
    ("keeper.mode", "enforce", "mode", Mode.ENFORCE),
    ("keeper.max-restarts-per-tick", 1, "limits.max_restarts", 1),
    ("keeper.max-restarts-per-tick", 2147483647, "limits.max_restarts", 2147483647),
    ("keeper.max-orphaned-fraction", 1, "limits.max_orphaned", 1.0),
    ("keeper.max-orphaned-fraction", 0.001, "limits.max_orphaned", 0.001),
    ("keeper.max-orphaned-fraction-overall", 0.5, "limits.max_orphaned_overall", 0.5),
    ("keeper.stable-after", 0, "restart.stable_after", timedelta(0)),
    ("keeper.stable-after", "5min", "restart.stable_after", timedelta(minutes=5)),
    ("keeper.backoff", "exponential", "restart.backoff", Backoff.EXPONENTIAL),
    ("keeper.backoff", "constant", "restart.backoff", Backoff.CONSTANT),
    ("keeper.backoff-cap", "1 micro", "restart.backoff_cap", timedelta(microseconds=1)),
    ("keeper.backoff-jitter", 0, "restart.backoff_jitter", 0.0),
    ("keeper.backoff-jitter", 1, "restart.backoff_jitter", 1.0),
    ("keeper.on-exhausted", "keep", "restart.on_exhausted", OnExhausted.KEEP),
    ("keeper.on-exhausted", "clean-up", "restart.on_exhausted", OnExhausted.CLEAN_UP),
    ("keeper.check-interval", "1s", "check_interval", timedelta(seconds=1)),
    ("keeper.check-interval", 59_999, "check_interval", timedelta(seconds=59)),
    ("keeper.check-interval", "", "check_interval", timedelta(minutes=5)),
    ("keeper.check-interval", "1s", "round_interval", timedelta(minutes=5)),
    ("keeper.lease-time", "10min", "lease_time", timedelta(minutes=10)),
    ("keeper.lease-time", "", "lease_time", None),
    ("keeper.deployment", "x" * 80, "deployment", "x" * 80),
    ("keeper.deployment", 7, "deployment", "7"),
    ("ams.optimizer-group.max-keeping-attempts", 1, "max_keeping_attempts", 1),
]


@pytest.mark.parametrize(("key", "value", "field", "expected"), ACCEPTED)
def test_values_at_the_edge_are_accepted(
    tmp_path: Path, key: str, value: object, field: str, expected: object
) -> None:
    """Each ends up in the field that is made for it."""
    assert value_of(load(tmp_path, {key: value}), field) == expected


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("KEEPER_MODE", "dry-run", "mode", Mode.DRY_RUN),
        ("KEEPER_MAX_RESTARTS_PER_TICK", "5", "limits.max_restarts", 5),
        ("KEEPER_MAX_ORPHANED_FRACTION", "0.5", "limits.max_orphaned", 0.5),
        ("KEEPER_MAX_ORPHANED_FRACTION_OVERALL", ".25", "limits.max_orphaned_overall", 0.25),
        ("KEEPER_STABLE_AFTER", "2h", "restart.stable_after", timedelta(hours=2)),
        ("KEEPER_BACKOFF", "exponential", "restart.backoff", Backoff.EXPONENTIAL),
        ("KEEPER_BACKOFF_CAP", "2h", "restart.backoff_cap", timedelta(hours=2)),
        ("KEEPER_BACKOFF_JITTER", "0", "restart.backoff_jitter", 0.0),
        ("KEEPER_ON_EXHAUSTED", "keep", "restart.on_exhausted", OnExhausted.KEEP),
        ("KEEPER_CHECK_INTERVAL", "10s", "check_interval", timedelta(seconds=10)),
        ("KEEPER_LEASE_TIME", "1h", "lease_time", timedelta(hours=1)),
        ("KEEPER_DEPLOYMENT", " here ", "deployment", "here"),
        ("AMS_OPTIMIZER__GROUP_MAX__KEEPING__ATTEMPTS", "9", "max_keeping_attempts", 9),
    ],
)
def test_the_environment_sets_them_too(
    tmp_path: Path, name: str, value: str, field: str, expected: object
) -> None:
    """As it does the other keys."""
    assert value_of(load(tmp_path, {}, **{name: value}), field) == expected


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        *(("keeper.mode", value, "enforce or dry-run") for value in ("dry_run", "", True)),
        *(
            (key, value, "a whole number from 1 to 2147483647")
            for key in ("keeper.max-restarts-per-tick", "ams.optimizer-group.max-keeping-attempts")
            for value in (0, -1, 2147483648, 1.5, "many", True, [1])
        ),
        *(
            (key, value, PART)
            for key in (
                "keeper.max-orphaned-fraction",
                "keeper.max-orphaned-fraction-overall",
                "keeper.groups.a.b.max-orphaned-fraction",
            )
            for value in (0, 0.0, -0.5, 1.0000001, "50%", "0.0", True, [1])
        ),
        ("keeper.stable-after", "1x", STABLE),
        ("keeper.stable-after", "36501 d", STABLE),
        ("keeper.backoff", "linear", "constant or exponential"),
        ("keeper.backoff-cap", 0, CAP),
        ("keeper.backoff-jitter", 1.1, "a number from 0 to 1"),
        ("keeper.backoff-jitter", -0.1, "a number from 0 to 1"),
        ("keeper.on-exhausted", "cleanup", "clean-up or keep"),
        ("keeper.check-interval", 999, INTERVAL),
        ("keeper.check-interval", "often", INTERVAL),
        ("keeper.lease-time", 0, LEASE),
        ("keeper.lease-time", "soon", LEASE),
        ("keeper.deployment", "x" * 81, "a text of up to 80 characters"),
        ("keeper.deployment", ["x"], "a text of up to 80 characters"),
        ("keeper.groups.etl.dynamic-allocation", "yes", "leave or restart"),
        ("keeper.groups.etl.dynamic-allocation", True, "leave or restart"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, key: str, value: object, accepted: str) -> None:
    """With key, value and what is accepted."""
    shown = repr(value) if len(repr(value)) <= 80 else f"{value!r:.80}..."
    assert problem(tmp_path, {key: value}) == f"{key} is {shown}; accepted is {accepted}"


def test_a_refused_variable_is_named(tmp_path: Path) -> None:
    """Who looks for it in the file would not find it."""
    assert problem(tmp_path, {}, KEEPER_MODE="try") == (
        "environment variable KEEPER_MODE: keeper.mode is 'try'; accepted is enforce or dry-run"
    )


@pytest.mark.parametrize("name", ["", None, "  "])
def test_a_deployment_without_a_name_is_called_as_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """As far as such a name may be long."""
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 100)
    assert load(tmp_path, {"keeper.deployment": name}).deployment == "h" * 80


# --- Keys that do not go together -------------------------------------------------------------


@pytest.mark.parametrize(
    ("grace", "stable", "cap"),
    [
        ("5min", timedelta(hours=1), timedelta(hours=1)),
        ("1h", timedelta(hours=1), timedelta(hours=1)),
        ("3601s", timedelta(seconds=3601), timedelta(seconds=3601)),
    ],
)
def test_left_out_they_are_never_shorter_than_the_grace_period(
    tmp_path: Path, grace: str, stable: timedelta, cap: timedelta
) -> None:
    """A longer grace period takes the place of the default."""
    policy = load(tmp_path, {GRACE: grace, "keeper.backoff": "exponential"}).restart
    assert (policy.stable_after, policy.backoff_cap) == (stable, cap)


@pytest.mark.parametrize(
    ("key", "accepted"), [("keeper.stable-after", STABLE), ("keeper.backoff-cap", CAP)]
)
def test_shorter_than_the_grace_period_they_are_refused(
    tmp_path: Path, key: str, accepted: str
) -> None:
    """Both keys are named, the grace period also where it has its default or is from a variable."""
    keys = {"keeper.backoff": "exponential", key: "299s"}
    assert problem(tmp_path, keys) == (
        f"{key} is '299s' though {GRACE} is left out, which means 5min; accepted is {accepted}"
    )
    grace = {"AMS_OPTIMIZER_AUTO__RESTART__GRACE__PERIOD": "300s"}
    assert problem(tmp_path, keys, **grace) == (
        f"{key} is '299s' though {GRACE} is '300s'; accepted is {accepted}"
    )
    load(tmp_path, {**keys, key: "300s"}, **grace)


def test_what_is_wrong_by_itself_is_not_compared(tmp_path: Path) -> None:
    """One mistake is one line."""
    keys = {GRACE: "long", "keeper.stable-after": "1s", CHECK: 0, "keeper.lease-time": "1s"}
    first, second = problem(tmp_path, keys).splitlines()
    assert first.startswith(f"{GRACE} is 'long'; ")
    assert f"{CHECK} is 0; " in second


def test_a_cap_of_constant_pauses_is_not_compared(tmp_path: Path) -> None:
    """It has no effect, of which a warning tells."""
    assert "keeper.backoff-cap" in warning(tmp_path, {"keeper.backoff-cap": "1s"})


@pytest.mark.parametrize("key", [CHECK, AMS_CHECK])
@pytest.mark.parametrize(
    ("interval", "shortest"), [("5min", 600), ("10s", 20), ("1s", 11), (1999, 11)]
)
def test_a_lease_lasts_two_check_intervals_at_least(
    tmp_path: Path, key: str, interval: object, shortest: int
) -> None:
    """One that lapses between two ticks, or before a run begins, is of no use."""
    keys = {key: interval, "keeper.lease-time": f"{shortest}s"}
    assert load(tmp_path, keys).lease_time == timedelta(seconds=shortest)
    short = f"{shortest * 1000 - 1}ms"
    assert problem(tmp_path, {**keys, "keeper.lease-time": short}) == (
        f"keeper.lease-time is '{short}' though {key} is {interval!r}; accepted is {LEASE}"
    )


def test_our_own_key_says_how_often_we_look_and_amss_how_often_ams_does(tmp_path: Path) -> None:
    """Left out, AMS's serves for both; the rounds of a group are paced by AMS's in any case."""
    settings = load(tmp_path, {AMS_CHECK: "1min"})
    assert settings.check_interval == settings.round_interval == timedelta(minutes=1)
    settings = load(tmp_path, {AMS_CHECK: "1min", CHECK: "10s"})
    assert settings.check_interval == timedelta(seconds=10)
    assert settings.round_interval == timedelta(minutes=1)
    parts = Services.connect(settings).settings
    assert parts.check_interval == timedelta(seconds=10)
    assert parts.round_interval == timedelta(minutes=1)


# --- Groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"groups": {"a.b": {"dynamic-allocation": "restart", "max-orphaned-fraction": 0.5}}},
        {"groups": {"a": {"b": {"dynamic-allocation": "restart", "max-orphaned-fraction": 0.5}}}},
        {"groups.a": {"b.dynamic-allocation": "restart", "b": {"max-orphaned-fraction": 0.5}}},
        {"groups.a.b.dynamic-allocation": "restart", "groups.a.b.max-orphaned-fraction": "0.5"},
    ],
)
def test_groups_are_named_nested_or_dotted(tmp_path: Path, keys: dict[str, Any]) -> None:
    """A name may have dots itself."""
    settings = load(tmp_path, {f"keeper.{key}": value for key, value in keys.items()})
    assert settings.dynamic_groups == {"a.b"}
    assert settings.limits.max_orphaned_of == {"a.b": 0.5}
    assert settings.limits.limit_of("a.b") == 0.5
    assert settings.limits.limit_of("a") == 1


@given(st.text(min_size=1))
def test_every_name_of_a_group_is_found(name: str) -> None:
    """Whatever is in it, keys of groups included."""
    assert group_of(f"keeper.groups.{name}.dynamic-allocation") == name


def test_groups_named_like_keys_are_groups(tmp_path: Path) -> None:
    """What counts is the last word."""
    groups = {"dynamic-allocation": {"dynamic-allocation": "restart"}, "max-orphaned-fraction": {}}
    settings = load(tmp_path, {"keeper.groups": groups})
    assert settings.dynamic_groups == {"dynamic-allocation"}


@pytest.mark.parametrize(
    "groups",
    [
        *(None, {}, {"a": None}, {"a": {}}, {"a": {"dynamic-allocation": None}}, {5: {}}),
        {"a": {"dynamic-allocation": "leave", "max-orphaned-fraction": None}},
    ],
)
def test_groups_without_anything_are_as_left_out(
    tmp_path: Path, groups: dict[Any, Any] | None
) -> None:
    """A group whose lines are all commented out is no mistake."""
    settings = load(tmp_path, {"keeper.groups": groups})
    assert settings.dynamic_groups == frozenset()
    assert settings.limits.max_orphaned_of == {}


def test_what_groups_were_given_cannot_be_changed(tmp_path: Path) -> None:
    """Everyone sees the same configuration."""
    settings = load(tmp_path, {"keeper.groups.a.max-orphaned-fraction": 1})
    with pytest.raises(TypeError):
        settings.limits.max_orphaned_of["b"] = 1.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.mode = Mode.DRY_RUN  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "name", "hint"),
    [
        ("etl.max-orphaned-fractions", 1, "etl", "max-orphaned-fraction"),
        ("etl.dynamic_allocation", "restart", "etl", "dynamic-allocation"),
        ("a.b.dynamic-alloc", "restart", "a.b", "dynamic-allocation"),
        ("a.b.dynamic-allocation.enabled", True, "a.b", "dynamic-allocation"),
        ("etl", 5, "etl", "dynamic-allocation"),
        ("etl", ["dynamic-allocation"], "etl", "dynamic-allocation"),
        ("dynamic-allocation", "restart", "dynamic-allocation", "dynamic-allocation"),
        ("etl.stable-after", "1h", "etl", None),
    ],
)
def test_what_is_no_key_of_a_group_is_refused(
    tmp_path: Path, key: str, value: object, name: str, hint: str | None
) -> None:
    """A group that is no map as well; the group's own keys are named."""
    line = problem(tmp_path, {f"keeper.groups.{key}": value})
    assert line.startswith(f"keeper.groups.{key} is {value!r}, but there is no such key;")
    assert line.endswith(
        f" accepted are keeper.groups.{name}.dynamic-allocation, "
        f"keeper.groups.{name}.max-orphaned-fraction"
    )
    if hint:
        assert f"did you mean keeper.groups.{name}.{hint}?" in line


@pytest.mark.parametrize("value", [5, ["etl"], "etl"])
def test_groups_that_are_no_map_are_refused(tmp_path: Path, value: object) -> None:
    """The keys that there could be are named."""
    line = problem(tmp_path, {"keeper.groups": value})
    assert line.startswith(f"keeper.groups is {value!r}, but there is no such key;")
    assert "keeper.groups.<name>.dynamic-allocation, keeper.groups.<name>.max-orphaned" in line


@pytest.mark.parametrize(
    "name", ["KEEPER_GROUPS_ETL_DYNAMIC_ALLOCATION", "KEEPER_GROUPS_A_LONG_NAME_OF_A_GROUP_X"]
)
def test_groups_have_no_variables(tmp_path: Path, name: str) -> None:
    """One that seems to be for a group is refused, since it would have no effect."""
    line = problem(tmp_path, {}, **{name: "restart"})
    assert line.startswith(f"environment variable {name}: keeper.groups-")
    assert "is 'restart', but there is no such key;" in line
    assert "keeper.groups.<name>.dynamic-allocation" in line


def test_the_table_has_the_settings_of_groups() -> None:
    """With a place for the name."""
    keys = {setting.key for setting in SETTINGS}
    assert {key.rpartition("<name>.")[2] for key in keys if "<name>" in key} == {
        "dynamic-allocation",
        "max-orphaned-fraction",
    }


# --- Warnings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "percent"), [(0.5, "50%"), (0.55, "55%"), (0.999, "99.9%")])
def test_a_share_that_stops_every_group_of_one_is_warned_of(
    tmp_path: Path, share: float, percent: str
) -> None:
    """With the way out."""
    assert warning(tmp_path, {"keeper.max-orphaned-fraction": share}) == (
        f"keeper.max-orphaned-fraction is {share!r}: a group of one resource is never healed, "
        f"since 1 of 1 orphaned is more than {percent}; "
        "set keeper.groups.<name>.max-orphaned-fraction: 1 for such groups."
    )


def test_a_warning_names_the_variable(tmp_path: Path) -> None:
    """Where the value was given, as errors do."""
    (line,) = load(tmp_path, KEEPER_MAX_ORPHANED_FRACTION="0.5").warnings
    origin = "environment variable KEEPER_MAX_ORPHANED_FRACTION"
    assert line.startswith(f"{origin}: keeper.max-orphaned-fraction is '0.5': a group of one ")


def test_a_warning_names_the_file(tmp_path: Path) -> None:
    """The one that was read."""
    (line,) = load(tmp_path, {"keeper.max-orphaned-fraction": 0.5}).warnings
    assert line.startswith(f"{tmp_path / 'config.yaml'}: keeper.max-orphaned-fraction is 0.5: ")


def test_a_share_of_everything_is_warned_of(tmp_path: Path) -> None:
    """A registry of one is never healed with it."""
    assert warning(tmp_path, {"keeper.max-orphaned-fraction-overall": 0.8}) == (
        "keeper.max-orphaned-fraction-overall is 0.8: a registry of one resource is never healed, "
        "since 1 of 1 orphaned is more than 80%; leave it out for such a registry."
    )


def test_a_share_of_one_group_is_warned_of(tmp_path: Path) -> None:
    """Only that group is meant."""
    groups = {"a.b": {"max-orphaned-fraction": 0.25}, "c": {"max-orphaned-fraction": 1}}
    assert warning(tmp_path, {"keeper.groups": groups}) == (
        "keeper.groups.a.b.max-orphaned-fraction is 0.25: this group, if it has one resource, "
        "is never healed, since 1 of 1 orphaned is more than 25%; set it to 1 in that case."
    )


@pytest.mark.parametrize(
    ("key", "value"), [("keeper.backoff-cap", "2h"), ("keeper.backoff-jitter", 0.1)]
)
def test_settings_of_growing_pauses_are_warned_of_where_pauses_do_not_grow(
    tmp_path: Path, key: str, value: object
) -> None:
    """Given, they are meant to have an effect."""
    assert warning(tmp_path, {key: value}) == (
        f"{key} is {value!r}: it has no effect while keeper.backoff is constant; "
        "set keeper.backoff: exponential, or leave it out."
    )
    assert load(tmp_path, {key: value, "keeper.backoff": "exponential"}).warnings == ()
    assert load(tmp_path, {key: None}).warnings == ()


def test_pauses_that_cannot_grow_are_warned_of(tmp_path: Path) -> None:
    """Nothing is doubled."""
    assert warning(tmp_path, {"keeper.backoff": "exponential", GRACE: 0}) == (
        f"keeper.backoff is 'exponential': it has no effect while {GRACE} is 0, since twice "
        "nothing is nothing; set a grace period, or leave it out."
    )


def test_what_is_kept_ready_is_not_warned_of(tmp_path: Path) -> None:
    """Auto-restart may be switched on later."""
    keys = {
        "ams.optimizer.auto-restart-enabled": False,
        "keeper.stable-after": "2h",
        "keeper.backoff": "exponential",
        "keeper.on-exhausted": "keep",
        "keeper.max-restarts-per-tick": 5,
        "keeper.max-orphaned-fraction": 1,
    }
    assert load(tmp_path, keys).warnings == ()


def test_all_warnings_are_given(tmp_path: Path) -> None:
    """One does not hide another."""
    keys: dict[str, Any] = {
        "keeper.backoff-cap": "2h",
        "keeper.backoff-jitter": 0,
        "keeper.max-orphaned-fraction": 0.5,
        "keeper.max-orphaned-fraction-overall": 0.5,
        "keeper.groups": {"a": {"max-orphaned-fraction": 0.5}},
    }
    assert len(load(tmp_path, keys).warnings) == 5
