"""Which environment does a program get? The one that this host gives its programs, not Dagster's.

Whoever runs Dagster has passwords of databases, keys of clouds and folders of a configuration in
the environment, and none of them is a worker's business. So what is passed on is chosen by name.
"""

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_JAVA_HOME: Final = "JAVA_HOME"
_PASSED_ON: Final = frozenset(
    [
        *("PATH", "LD_LIBRARY_PATH", _JAVA_HOME),  # where programs and their libraries are
        *("HOME", "USER", "LOGNAME", "SHELL"),  # whose they are: Hadoop takes its user from there
        *("LANG", "LANGUAGE", "TZ"),  # how they write texts and times; LC_* as well
        *("TMPDIR", "TMP", "TEMP"),  # where there is room for their files
        # How this host reaches others, and whom it trusts: without these a program reaches nobody.
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR"),
    ]
)
HADOOP: Final = frozenset(
    [
        *("HADOOP_HOME", "HADOOP_CONF_DIR", "HADOOP_CLASSPATH", "HADOOP_USER_NAME"),
        *("HADOOP_YARN_HOME", "YARN_CONF_DIR", "HIVE_CONF_DIR", "KRB5_CONFIG", "KRB5CCNAME"),
    ]
)
"""Where Hadoop is and who one is there: what clients of a cluster need, and no secret itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The variables of a program."""

    variables: Mapping[str, str] = field(repr=False)  # all of them; they can hold secrets
    own: Mapping[str, str] = field(repr=False)  # those that were set for it, not passed on
    notes: tuple[str, ...] = ()  # what was left out, and why


def is_passed_on(name: str) -> bool:
    """Whether every program gets this variable of ours."""
    return name in _PASSED_ON or name.startswith("LC_")


def chosen(names: Container[str] = ()) -> dict[str, str]:
    """What is passed on of our own environment, and the variables of these names as well."""
    return {
        name: value for name, value in os.environ.items() if is_passed_on(name) or name in names
    }


def build(passed: Mapping[str, str], own: Mapping[str, Mapping[str, str]]) -> Environment:
    """The environment of what is passed on and of what is set, by where that was said.

    Later ones come before earlier ones, but a JAVA_HOME without a `bin/java` replaces none: with
    it nothing starts, where the next best one would do. AMS's own file brings such a one.
    """
    variables: dict[str, str] = {}
    ours: dict[str, str] = {}
    notes = []
    for source, layer in {"the environment of Dagster": passed, **own}.items():
        found = dict(layer)
        home = found.get(_JAVA_HOME)
        if home is not None and not Path(home, "bin", "java").is_file():
            del found[_JAVA_HOME]
            notes.append(f"{_JAVA_HOME} of {source} is left out: there is no {home}/bin/java")
        variables |= found
        ours |= found if source in own else {}
    return Environment(variables=variables, own=ours, notes=tuple(notes))
