"""Where a URL of Amoro leads, as the driver is told: a table, to which a line is easily added.

Whatever says which host, database or schema is meant is kept, or the URL is refused.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from dagster_amoro.config import load_settings
from dagster_amoro.config.jdbc import parse_url, url_flaws
from dagster_amoro.config.sources import show
from dagster_amoro.core.errors import ConfigError

# Beside a text: hosts, ports, database, and what else the driver is told, where it matters here.
UNDERSTOOD: Final[list[tuple[str, str, str | None, str, dict[str, str]]]] = [
    # One host.
    ("jdbc:postgresql://db/amoro", "db", None, "amoro", {}),
    ("jdbc:postgresql://db:5433/amoro", "db", "5433", "amoro", {}),
    ("jdbc:postgresql:///amoro", "localhost", None, "amoro", {}),
    ("jdbc:postgresql:amoro", "localhost", None, "amoro", {}),
    ("jdbc:postgresql:amoro?sslmode=require", "localhost", None, "amoro", {"sslmode": "require"}),
    ("jdbc:postgresql://db/my%20db", "db", None, "my db", {}),
    ("jdbc:postgresql://[::1]:5433/amoro", "::1", "5433", "amoro", {}),
    ("jdbc:mysql://db/amoro", "db", None, "amoro", {}),
    ("jdbc:mysql://[::1]:3307/amoro", "::1", "3307", "amoro", {}),
    ("jdbc:mysql://address=(host=db)(port=3307)/amoro", "db", "3307", "amoro", {}),
    ("jdbc:mysql://address=(protocol=tcp)(host=db)(port=3307)/a", "db", "3307", "a", {}),
    ("jdbc:mysql://(host=db,port=3307)/amoro", "db", "3307", "amoro", {}),
    ("jdbc:mysql://( HOST = db , port = 3307 )/amoro", "db", "3307", "amoro", {}),
    ("jdbc:mysql://(port=3307)/amoro", "localhost", "3307", "amoro", {}),
    ("jdbc:mariadb://address=(host=db)(port=3307)/amoro", "db", "3307", "amoro", {}),
    # Several.
    ("jdbc:postgresql://a:1,b:2/amoro", "a,b", "1,2", "amoro", {}),
    ("jdbc:postgresql://a,b:2,/amoro", "a,b,localhost", "5432,2,5432", "amoro", {}),
    ("jdbc:postgresql://[::1]:1,[fe80::2]/amoro", "::1,fe80::2", "1,5432", "amoro", {}),
    ("jdbc:mysql://a:1,b/amoro", "a,b", "1,3306", "amoro", {}),
    ("jdbc:mysql://[a:1,b]/amoro", "a,b", "1,3306", "amoro", {}),
    ("jdbc:mysql://(host=a,port=1),(host=b,port=2)/amoro", "a,b", "1,2", "amoro", {}),
    ("jdbc:mysql://[(host=a,port=1),(port=2,host=b)]/amoro", "a,b", "1,2", "amoro", {}),
    ("jdbc:mysql://address=(host=a)(port=1),address=(host=b)/d", "a,b", "1,3306", "d", {}),
    ("jdbc:mysql://a:1,(host=b,port=2),address=(host=c)(port=3)/d", "a,b,c", "1,2,3", "d", {}),
    ("jdbc:mariadb://a,b:2/amoro", "a,b", "3306,2", "amoro", {}),
    ("postgresql://db/amoro?host=a,b&port=1,2", "a,b", "1,2", "amoro", {}),
    ("postgresql://a,b/amoro", "a,b", None, "amoro", {}),
    ("mysql://u@/amoro?host=a,b&port=1,2", "a,b", "1,2", "amoro", {}),
    # Which of several.
    *(
        (
            f"jdbc:postgresql://a,b/amoro?targetServerType={kind}",
            "a,b",
            "5432,5432",
            "amoro",
            {"target_session_attrs": session},
        )
        for kind, session in (
            ("primary", "read-write"),
            ("master", "read-write"),
            ("preferPrimary", "read-write"),
            ("secondary", "read-only"),
            ("slave", "read-only"),
            ("preferSecondary", "prefer-standby"),
            ("preferSlave", "prefer-standby"),
        )
    ),
    ("jdbc:postgresql://a,b/d?targetServerType=any", "a,b", "5432,5432", "d", {}),
    (
        "postgresql://db/amoro?target_session_attrs=primary",
        "db",
        None,
        "amoro",
        {"target_session_attrs": "primary"},
    ),
    # Which schema. The last of two counts, and pgJDBC sends `currentSchema` after `options`.
    *(
        (f"jdbc:postgresql://db/amoro?{text}", "db", None, "amoro", {"options": options})
        for text, options in (
            ("currentSchema=keeper", "-csearch_path=keeper"),
            ("options=-c%20search_path=keeper", "-c search_path=keeper"),
            ("options=-c+search_path%3Dkeeper", "-c search_path=keeper"),
            ("options=-c search_path=a&currentSchema=b", "-c search_path=a -csearch_path=b"),
            ("options=-c%20role=owner", "-c role=owner"),
        )
    ),
    # What leads nowhere else.
    ("jdbc:postgresql://db/amoro?loadBalanceHosts=true&service=", "db", None, "amoro", {}),
    ("jdbc:mysql://db/amoro?dnsSrv=false&autoReconnect=true", "db", None, "amoro", {}),
]

# Beside a text: what is said of it.
HEEDED: Final = "says of a host what cannot be heeded; of each its host and port are"
JAVAS: Final = "which only Java's driver can follow; name the host"
REFUSED: Final[list[tuple[str, str]]] = [
    *(
        (f"jdbc:postgresql://db/amoro?{key}=x", f"sets {key}, {JAVAS}")
        for key in ("service", "PGHOST")
    ),
    *(
        (f"jdbc:postgresql://db/amoro?{key}=1", f"sets {key}, {JAVAS}")
        for key in ("PGPORT", "PGDBNAME")
    ),
    ("jdbc:postgresql://db/amoro?socketFactory=x.Unix", f"sets socketFactory, {JAVAS}"),
    (
        "jdbc:postgresql://db/amoro?targetServerType=best",
        "a targetServerType that is none of any, pr",
    ),
    ("jdbc:postgresql://a,b:99999/amoro", "names a port beyond 1 to 65535"),
    ("jdbc:postgresql://(host=a)/amoro", "accepted is jdbc:postgresql://host[:port]/database"),
    ("jdbc:postgresql://a:1:2/amoro", "accepted is jdbc:postgresql://host[:port]/database"),
    ("postgresql://a:1,b:2/amoro", "several hosts as ?host=a,b&port=1,2"),
    ("postgresql://db/amoro?host=a,b&port=1,2,3", "names neither one port nor as many as hosts"),
    ("mysql://u@/amoro?host=a,b,c&port=1,2", "names neither one port nor as many as hosts"),
    ("jdbc:mysql://db/amoro?localSocket=/x", f"sets localsocket, {JAVAS}"),
    ("jdbc:mysql://db/amoro?DNSSRV=true", f"sets dnssrv, {JAVAS}"),
    ("jdbc:mysql://db/amoro?socksProxyHost=x", f"sets socksproxyhost, {JAVAS}"),
    ("jdbc:mysql://(host=a,user=me)/amoro", HEEDED),
    ("jdbc:mysql://address=(host=a)(protocol=pipe)/amoro", HEEDED),
    ("jdbc:mysql://address=(host=a)(type=replica)/amoro", HEEDED),
    ("jdbc:mysql://(host=a,port=x)/amoro", HEEDED),
    ("jdbc:mysql://(host=a/amoro", "accepted is jdbc:postgresql://host[:port]/database"),
    ("jdbc:mysql://address=host=a/amoro", "accepted is jdbc:postgresql://host[:port]/database"),
    ("jdbc:mysql://a,b:0/amoro", "names a port beyond 1 to 65535"),
    *(
        (f"jdbc:mysql:{kind}://a,b/amoro", f"of the kind {kind}, for several hosts; name the host")
        for kind in ("replication", "loadbalance", "failover")
    ),
]


def told(text: str) -> dict[str, Any]:
    """What SQLAlchemy tells the driver about a URL's way."""
    url = parse_url(text)
    assert url is not None
    assert list(url_flaws(url)) == []
    _, arguments = url.get_dialect()().create_connect_args(url)
    return dict(arguments)


@pytest.mark.parametrize(("text", "hosts", "ports", "database", "more"), UNDERSTOOD)
def test_where_a_url_leads(
    text: str, hosts: str, ports: str | None, database: str, more: dict[str, str]
) -> None:
    """Hosts, ports and database arrive at the driver, and what chooses among them."""
    found = told(text)
    assert found["host"] == hosts
    assert (None if ports is None else str(found["port"])) == ports
    assert found.get("dbname", found.get("database")) == database
    names = ("options", "target_session_attrs", "sslmode")
    assert {name: found[name] for name in names if name in found} == more


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, text: str, why: str) -> None:
    """With the key, and with what would be right."""
    kind = "postgres" if "postgresql" in text else "mysql"
    keys = {"database": {"type": kind, "url": text}, "server-expose-host": "ams"}
    (tmp_path / "config.yaml").write_text(json.dumps({"ams": keys}))
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path, {})
    (line,) = str(caught.value).splitlines()
    assert "ams.database.url is " in line
    assert why in line


def test_hosts_are_shown_where_there_are_several() -> None:
    """An error that left them out would say nothing of where it is about."""
    shown = show("ams.database.url", "jdbc:mysql://a:1,b:2/amoro?password=hunter2")
    assert "host=a%2Cb" in shown
    assert "hunter2" not in shown
