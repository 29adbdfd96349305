import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.secrets import HIDDEN, Mask, hide_assigned, is_secret, without_secrets
from tests.helpers.attacks import SPELLINGS, WRITINGS

COMMON = {"true", "false", "none", "null", "yes", "no"}
SECRETS = st.text(min_size=4, max_size=40).filter(
    lambda value: len(value.strip()) >= 4 and value.strip().lower() not in COMMON
)
NAMES = st.sampled_from(
    [
        "password",
        "fs.s3a.secret.key",
        "fs.s3a.access.key",
        "API_KEY",
        "export.AWS_SECRET_ACCESS_KEY",
    ]
)


@given(SECRETS, NAMES, st.text(), st.text())
def test_a_known_secret_never_survives(secret: str, name: str, before: str, after: str) -> None:
    """Wherever it stands, whatever stands around it."""
    assert secret not in Mask({name: secret}).hide(before + secret + after)


@given(st.lists(SECRETS, min_size=1, max_size=4), st.data())
def test_no_known_secret_survives_others(secrets: list[str], data: st.DataObject) -> None:
    """Secrets that overlap or hold one another, or are made of asterisks, go as well."""
    text = "".join(data.draw(st.lists(st.sampled_from([*secrets, "*", " ", "a"]), max_size=12)))
    hidden = Mask(*({"password": secret} for secret in secrets)).hide(text)
    assert not [secret for secret in secrets if secret in hidden]


@given(SECRETS)
def test_a_known_secret_is_recognised_in_other_writings(secret: str) -> None:
    """Escaped as in JSON and Python."""
    mask = Mask({"password": secret.strip()})
    bare = secret.strip()
    for written in (json.dumps(bare), json.dumps(bare, ensure_ascii=False), repr(bare)):
        assert written[1:-1] not in mask.hide(f"the text {written}")


def test_a_known_secret_is_recognised_in_a_url() -> None:
    """With its characters as percent signs and numbers."""
    mask = Mask({"password": "p/s s+w?"})
    assert mask.hide("x%2F p%2Fs%20s%2Bw%3F p/s%20s%2Bw%3F p%2Fs+s%2Bw%3F") == "x%2F *** *** ***"


@given(st.text(max_size=3), st.text())
def test_short_values_are_left(value: str, text: str) -> None:
    """They would hide what is no secret."""
    assert Mask({"password": value}).hide(text) == hide_assigned(text)


@pytest.mark.parametrize("value", ["true", "False", " none ", "null", "", "YES"])
def test_values_that_are_no_secrets_are_left(value: str) -> None:
    """A switch whose name sounds like a secret does not hide every `true`."""
    text = "it is true or False, none, null; YES or no"
    assert Mask({"use-password": value}).hide(text) == text


def test_secrets_within_other_properties_are_known() -> None:
    """Java's options and URLs hold some."""
    mask = Mask(
        {"flink-conf.env.java.opts": "-Xmx1g -Dssl.password=hunter2 -Dother=one"},
        {"url": "jdbc:mysql://h/db?user=amoro&password=swordfish&x=y"},
    )
    assert mask.hide("hunter2, swordfish, one and amoro") == "***, ***, one and amoro"


def test_each_of_several_texts_is_hidden() -> None:
    """As a list, in its order."""
    assert list(map(Mask({"token": "abcd"}).hide, ["abcd", "x"])) == [HIDDEN, "x"]


@pytest.mark.parametrize(
    "name",
    [
        *("password", "PASSWORD", "db.passwd", "fs.s3a.secret.key", "fs.s3a.access.key"),
        *("fs.azure.account.key.x", "AWS_SECRET_ACCESS_KEY", "api-key", "private key", "sasl.jaas"),
        *("db.pass", "PGPASS", "bindpw", "sasl.key", "ssl.encryption-key", "cookie"),
        *("kubernetes.token", "client_credential", "X-Amz-Signature", "ssl.key.passphrase"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    """In any case and with any separators."""
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["memory", "key", "ams-home", "spark.master", "access", "pass", "bypass"]
)
def test_names_of_no_secrets(name: str) -> None:
    """What the words only resemble."""
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("password=hunter2 x", "password=*** x"),
        ("Password : hunter2", "Password : ***"),
        ("a=password=hunter2", "a=password=***"),
        ('{"password":"hun\\"ter2","u":1}', '{"password":***,"u":1}'),
        ('{\\"password\\":\\"hunter2\\",\\"u\\":1}', '{\\"password\\":***,\\"u\\":1}'),
        ("{'pwd': 'hun ter2', 'a': 'b'}", "{'pwd': ***, 'a': 'b'}"),
        ("{secret=hunter2, user=u}", "{secret=***, user=u}"),
        ('-Dssl.password=hun"ter2 -Dx=y', "-Dssl.password=*** -Dx=y"),
        ("'-Da.password=hunter2', 'x'", "'-Da.password=***', 'x'"),
        ("--password hunter2 --user u", "--password *** --user u"),
        ("['--api-token', 'hunter2', 'x']", "['--api-token', ***, 'x']"),
        ("the api key: hunter2", "the api key: ***"),
        ("password='hunter2 and cut off", "password=***"),
        ("jdbc:mysql://h/db?password=hunter2&x=y", "jdbc:mysql://h/db?password=***&x=y"),
        ("mysql://root:hun/ter2@h:3306/db", "mysql://root:***@h:3306/db"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "Authorization: Bearer ***"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, hidden: str) -> None:
    """Nobody has to know its value."""
    assert hide_assigned(text) == hidden


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_a_secret_is_hidden_whatever_its_spelling(text: str) -> None:
    """Within other texts as well, and what stands beside it stays."""
    assert "hunter2" not in hide_assigned(text)
    around = hide_assigned(f"it said:\n{text}\nthat was all")
    assert "hunter2" not in around
    assert around.endswith("that was all") or "PRIVATE KEY" in text
    assert hide_assigned(hide_assigned(text)) == hide_assigned(text)


@pytest.mark.parametrize(
    "secret", ["swordfish", "hunter2/<&\"' %+x", "pässwörd-ünd-so", "aaaaaaaaa"]
)
@pytest.mark.parametrize("written", WRITINGS.values(), ids=WRITINGS)
def test_a_known_secret_is_hidden_however_it_is_written(
    written: Callable[[str], str], secret: str
) -> None:
    """No part of it that says anything is left."""
    hidden = Mask({"password": secret}).hide(f"before {written(secret)} after")
    assert HIDDEN in hidden
    assert not [start for start in range(len(secret) - 5) if secret[start : start + 6] in hidden]


def test_each_line_of_a_private_key_is_a_secret() -> None:
    """A program may print one of them alone."""
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----"
    assert Mask({"private-key": key}).hide("bad line: kqhkiG9w0BAQEF") == "bad line: ***"


ORDINARY = """\
org.apache.flink.client.program.ProgramInvocationException: The main method caused an error: no YARN
TaskManager memory configuration failed: Sum of configured Heap (128.000mb) exceed total (100.000mb)
Could not find a file system implementation for scheme "s3a": akka.tcp://flink@h:6123/user
24/05/01 12:00:00 ERROR SparkContext: Error initializing: Master must either be yarn or k8s
Exception in thread "main" java.net.ConnectException: Connection refused (h:10000)
secrets "amoro" is forbidden: User "system:serviceaccount:ns:sa" cannot get "secrets" in group "v1"
Failed to pull image "registry:5000/a/b:1.20": docker-pullable://registry:5000/a/b@sha256:0123
Error: Unable to access jarfile /opt/spark/usrlib/optimizer-job.jar
Access denied for user 'root'@'localhost' (using password: YES)
JsonParseException: Unrecognized token 'flink': was expecting ("true", "false" or "null")
basic authentication is off, bearer tokens are on
"-id" is not a valid option
bypass=1, foreign key: 4, run key: a.b, sort.key=x, compass: north
docker run -p 8080:80 -v /data:/data image
postgresql://amoro@db:5432/amoro
flink run -py job.py -p 4
thrift://10.0.0.9:1261?connectTimeout=1&socketTimeout=2
org.apache.hadoop.ipc.RemoteException: Could not obtain delegation token:
\tat org.apache.hadoop.ipc.Client.call(Client.java:1)
"""


@pytest.mark.parametrize("text", [*ORDINARY.splitlines(), ORDINARY, ""])
def test_ordinary_errors_come_back_unchanged(text: str) -> None:
    """So that one can see what is wrong."""
    assert Mask({"memory": "1024", "fs.s3a.secret.key": "hunter2"}).hide(text) == text


@pytest.mark.long
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a",
            "password ",
            "password_",
            ".password",
            '"',
            "'",
            "\\",
            " ",
            "-",
            "//",
            "//a:",
            "//a:b",
        ),
        *("password=", 'password="', "password='x ", 'password=\\"', 'password="\\', "--password "),
        *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "MIIEabcd\n", "\n", "\\n"),
        *("a\n", "mysql ", "-u -p", "-p", "h\nu\nn", "authorization:", "authorization: token "),
        *("eyJ", "eyJabcdefghi.", "https://a", "?key=", "identified by '"),
        *("password=\\\\'", "api key ", "bearer ", "basic", "password" + " " * 999 + ":", "@:/ "),
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    """A MB of anything is a matter of seconds at the most, where others would take days."""
    text = piece * (2**20 // len(piece))
    mask = Mask({"password": "hunter2", "token": "password passw"})
    began = time.process_time()
    mask.hide(text)
    assert time.process_time() - began < 10


def test_properties_are_shown_without_secrets() -> None:
    """Neither under their own names nor where others repeat them."""
    properties = {"password": "hunter2", "url": "x://u:hunter2@h?a=b", "memory": "512"}
    assert without_secrets(properties) == {
        "password": HIDDEN,
        "url": "x://u:***@h?a=b",
        "memory": "512",
    }


@given(st.dictionaries(st.text(), st.text()))
def test_properties_keep_their_names(properties: dict[str, str]) -> None:
    """Only values are hidden."""
    assert without_secrets(properties).keys() == properties.keys()


def test_a_value_is_no_pattern() -> None:
    """Its dots and brackets stand for themselves."""
    assert Mask({"password": "a.c."}).hide("abcd a.c.") == "abcd ***"
