"""Texts that act on whoever shows them, and how it is told whether one does.

Whoever finds another one adds a line to `TEXTS`; every sink is then tried with it. The same goes
for the ways in which secrets are written.
"""

import base64
import html
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote, quote_plus
from xml.sax import saxutils

FORGED: Final = "9999-12-31 01:00:00 +0000 - dagster - INFO - all is well"
"""A line that must never stand in a log, or in the output of a command, as a line of its own."""

TEXTS: Final = {
    "a new line": f"w\n{FORGED}",
    "a new line as Windows has it": f"w\r\n{FORGED}",
    "a new line that Python's splitlines knows": f"w\x0b{FORGED}\x1c{FORGED}\x85{FORGED}",
    "a line end of Unicode": f"w\u2028{FORGED}\u2029{FORGED}",
    "a carriage return over what stands there": f"w\r{FORGED}",
    "backspaces over what stands there": f"w{8 * chr(8)}{FORGED}",
    "a continued line that is none": f"w\n  | x\n{FORGED}",
    "a screen that is cleared": "w\x1b[2J\x1b[H",
    "a colour": "w\x1b[31mred\x1b[0m",
    "an eight-bit escape": "w\x9b31mred",
    "a title of the window": "w\x1b]0;owned\x07",
    "a link that leads elsewhere": "w\x1b]8;;https://example.com\x1b\\ok\x1b]8;;\x1b\\",
    "a request that the terminal answers": "w\x1b[6n\x1bP$q\x1b\\",
    "a bell": "w\x07",
    "letters from right to left": "w\u202e0=sutats",
    "an isolated direction": "w\u2066x\u2069\u200f",
    "letters without a width": "w\u200b\u200d\ufeff\u2060",
    "a tag of a language": "w\U000e0001\U000e0041",
    "a sign of nobody's": "w\ue000",
    "the end of a block of Markdown": "w\n```\n# all is well\n```",
    "an image in Markdown": "![w](https://example.com/w.png)",
    "a script in HTML": "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "a style of rich": "[red]w[/red][link=https://example.com]x[/link]",
    "a placeholder": "{w} %s %(w)s {0.__class__} ${w}",
}


def acts(text: str) -> list[str]:
    """What of a text acts on a terminal or a log that shows it; its own lines may be several."""
    odd = [each for each in text if each != "\n" and not _is_inert(each)]
    return odd + [line for line in text.split("\n") if line.startswith(FORGED[:10])]


def _is_inert(character: str) -> bool:  # by Unicode alone, unlike the code that is tested
    return unicodedata.category(character)[0] in "LMNPS" or unicodedata.category(character) == "Zs"


# --- Secrets ------------------------------------------------------------------------------------


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


SPELLINGS: Final = {  # how texts say a secret that nobody has told us; it is `hunter2`
    "a property": "db.pass=hunter2",
    "PostgreSQL's variable": "export PGPASS=hunter2",
    "LDAP": "bindpw=hunter2 bindDN=cn=x",
    "Kafka": "sasl.key=hunter2",
    "an encryption key": "spark.io.encryption.key: hunter2",
    "YAML": "ftp_pw: hunter2\nuser: x",
    "a camel": '{"dbPass":"hunter2"}',
    "an attribute of XML": "<x dbPassword='hunter2' a='b'/>",
    "a signed URL": "https://x.blob.core.windows.net/c/b?sv=2020&sig=hunter2&se=1",
    "a URL with a key": "https://maps.example.com/v1?key=hunter2&x=1",
    "a URL in HTML": "<a href='https://example.com/?x=1&amp;key=hunter2'>",
    "an encrypted SQLite": "sqlite:////var/registry.db?key=hunter2",
    "a JDBC URL": "jdbc:mysql://h/db?user=u&password=hunter2",
    "a token before a host": "cloning https://hunter2@github.com/a/b.git",
    "a token with a scheme of git": "git+https://hunter2@github.com/a/b.git",
    "a password before a host": "amqp://user:hunter2@h:5672/v",
    "a header with a token": "Authorization: Token hunter2",
    "a header with a key": "> authorization: ApiKey hunter2",
    "a header in JSON": '{"Authorization": "Bearer hunter2"}',
    "a header in JSON in JSON": '"{\\"Authorization\\": \\"Token hunter2\\"}"',
    "a header of curl": "curl -H 'Authorization: Basic hunter2' https://h",
    "a header without a scheme": "Authorization: hunter2hunter2hunter2",
    "a cookie": "Set-Cookie: sid=hunter2; Path=/",
    "an API key": "X-Api-Key: hunter2",
    "an option": "--db-password hunter2",
    "an option of MySQL": "mysql -uroot -phunter2 db",
    "an argv of MySQL": "['mysqldump', '-u', 'root', '-phunter2', 'db']",
    "an option of sshpass": "sshpass -phunter2 ssh h",
    "SQL": "CREATE USER 'u'@'%' IDENTIFIED BY 'hunter2'",
    "SQL of PostgreSQL": "ALTER ROLE u PASSWORD 'hunter2'",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
    "a private key in JSON": '"-----BEGIN PRIVATE KEY-----\\nhunter2\\n-----END PRIVATE KEY-----"',
    "a private key that is cut off": "-----BEGIN EC PRIVATE KEY-----\nhunter2",
    "a private key that began before": "hunter2\nAbCd==\n-----END OPENSSH PRIVATE KEY-----",
    "GitHub's token": "said ghp_hunter2hunter2hunter2hunter2hunt",
    "a JSON Web Token": "it is eyJhunter2hunter2.eyJhunter2hunter2.hunter2",
}
WRITINGS: Final[Mapping[str, Callable[[str], str]]] = {  # how programs write a secret that we know
    "as it is": lambda secret: secret,
    "base64": _base64,
    "base64 of a URL": lambda secret: (
        base64.urlsafe_b64encode(secret.encode()).decode().rstrip("=")
    ),
    "base64 with a user": lambda secret: _base64(f"amoro:{secret}"),
    "base64 within JSON": lambda secret: _base64(json.dumps({"a": secret, "z": "end"})),
    "base64 in lines": lambda secret: base64.encodebytes(
        (50 * "x" + secret + 50 * "x").encode()
    ).decode(),
    "hexadecimal": lambda secret: secret.encode().hex(),
    "HTML": html.escape,
    "XML": lambda secret: saxutils.escape(secret, {"'": "&apos;", '"': "&quot;"}),
    "HTML as Go has it": lambda secret: (
        html.escape(secret).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    ),
    "JSON": json.dumps,
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "JSON in JSON in JSON": lambda secret: json.dumps(json.dumps(json.dumps(secret))),
    "Python": repr,
    "a URL": lambda secret: quote(secret, safe=""),
    "a URL in small letters": lambda secret: re.sub(
        "%..", lambda code: code[0].lower(), quote(secret, safe="")
    ),
    "a form": quote_plus,
    "two lines": lambda secret: f"{secret[:5]}\n{secret[5:]}",
    "two lines of Windows": lambda secret: f"{secret[:5]}\r\n    {secret[5:]}",
    "two lines of a shell": lambda secret: f"{secret[:5]}\\\n{secret[5:]}",
    "two lines in JSON": lambda secret: f"{secret[:5]}\\n{secret[5:]}",
    "two lines as we show them": lambda secret: f"{secret[:5]}\n  | {secret[5:]}",
    "a letter in each line": "\n".join,
}


# --- Answers ------------------------------------------------------------------------------------

_FORGED_AND_MORE: Final = "".join(TEXTS.values())
_PLAIN: Final = "200 OK"
# What a server answers that means ill: its status line with headers, and the body.
ANSWERS: Final[Mapping[str, tuple[str, bytes]]] = {
    "a page": (f"{_PLAIN}\r\nContent-Type: text/html", TEXTS["a script in HTML"].encode()),
    "a page that acts": ("502 Bad Gateway", _FORGED_AND_MORE.encode()),
    "a refusal that acts": (
        "403 Forbidden",
        json.dumps({"kind": "Status", "message": _FORGED_AND_MORE}).encode(),
    ),
    "errors that act": (
        "500 Internal Server Error",
        json.dumps({"errors": [_FORGED_AND_MORE], "message": _FORGED_AND_MORE}).encode(),
    ),
    "a status that acts": ("500 \x1b[31mred\x1b[0m", b"x"),
    "a kind that acts": (f"{_PLAIN}\r\nContent-Type: \x1b]0;owned\x07", b"x"),
    "a redirect that acts": ("302 Found\r\nLocation: http://h/\x1b[2J\x1b[31m", b""),
    "a redirect to itself": ("307 Temporary Redirect\r\nLocation: /", b""),
    "a redirect to a file": ("302 Found\r\nLocation: file:///etc/passwd", b""),
    "lists in lists": (_PLAIN, b"[" * 1_000_000),
    "objects in objects": (_PLAIN, b'{"a":' * 1_000_000),
    "lists in lists that end": (_PLAIN, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a number without an end": (_PLAIN, b'{"a":' + b"9" * 1_000_000 + b"}"),
    "many small things": (_PLAIN, b"[" + b"[]," * 5_000_000 + b"[]]"),
    "no JSON": (_PLAIN, b"NaN and more"),
    "another kind of JSON": (_PLAIN, b"[1, 2]"),
    "nothing": (_PLAIN, b""),
    "bytes that are no text": (_PLAIN, bytes(range(256)) * 1000),
    "halves of characters": (_PLAIN, b'"\\ud800\\udc00\\ud800"'),
    "another encoding": (_PLAIN, '{"a": 1'.encode("utf-16")),
    "a secret": ("401 Unauthorized", b"Authorization: Token hunter2, db.pass=hunter2"),
}
