"""Which properties are secrets, and how are they hidden in texts?

`Mask` hides the known ones, however a text writes them, `hide_assigned` what looks like one. Both
take time in proportion to the text, whatever it holds: texts are the output of failing programs.
"""

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate, repeat
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "***"

_WORDS: Final = (
    *("password", "passwd", "pwd", "secret", "token", "credential", "passphrase", "cookie"),
    *("apikey", "accesskey", "accountkey", "privatekey", "jaas", "signature"),
)
_KEYS: Final = tuple(  # of names that end so
    f"{what}key"
    for what in (
        *("sasl", "ssl", "ssh", "auth", "encryption", "encrypt", "master", "storage", "shared"),
        *("signing", "subscription", "consumer", "client", "license", "rsa", "aes", "hmac"),
    )
)
_NO_PASSWORDS: Final = ("bypass", "compass", "trespass", "surpass")
_IN_QUERIES: Final = frozenset({"key", "sig", "pass", "auth", "code"})  # only as ?key= or &key=
_SEPARATORS: Final = re.compile(r"[\W_]+")
# A name and what stands between it and its value, as options, properties, JSON, also within JSON,
# and URLs have them. Of names without `=` or `:` only options (`--password x`) have a value.
_NAME: Final = re.compile(
    r"""(?<![\w.\-]) (?P<name> [\w.\-]++ (?:\ key\b)?+ )
        (?P<between> (?:\\*+["'])?+ (?: \s*+[=:][^\S\n]*+ | ,?\s++ ) )""",
    re.VERBOSE | re.IGNORECASE,
)
_VALUE: Final = re.compile(
    r"""  "(?:[^"\\]|\\.)*+"                             # as JSON has it
        | '[^']*+'
        | (?P<quote>\\{1,3}+["']) .{0,8192}? (?P=quote)  # as JSON within JSON has it
        | \\*+["'] [^\n]*+                               # quoted, and cut off
        | (?:[^\s"',;&]|["'](?![\s,;&:)\]}]|\Z))++       # bare, until what can follow a value
    """,
    re.VERBOSE | re.DOTALL,
)
# A header, also in JSON or as an option of curl.
_AUTHORIZATION: Final = r"\bauthorization\\{0,3}+[\"']?+\s{0,9}+[:=]\s{0,9}+\\{0,3}+[\"']?+"
_SCHEME: Final = r"(?:basic|bearer|token|api-?key|key|oauth|negotiate|ntlm|shared\w++)\s{1,9}+"
# Tokens that say of themselves whose they are: GitHub's, GitLab's, Slack's, Vault's and so on.
_TOKENS: Final = (
    r"\b(?:gh[pousr]_\w{20,}+|github_pat_\w{20,}+|glpat-[\w-]{20,}+|xox[abprs]-[\w-]{10,}+"
    r"|hvs\.[\w-]{20,}+|dapi[0-9a-f]{32}\b|AIza[\w-]{35}\b|eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]*+)"
)
# What is a secret by what stands around it, or by its own form: each a pattern, and what is left.
_ELSEWHERE: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), left)
    for pattern, left in (
        (r"(//[^/\s:@]{0,256}+:)(?!\d{1,5}/)[^\s@]{1,1024}+(?=@)", rf"\1{HIDDEN}"),
        (r"\b((?:https?|wss?)://)[^/\s:@\"'<>]{1,1024}+(?=@)", rf"\1{HIDDEN}"),
        (r"\b((?:bearer|basic)\s++)[\w.~+/=\-]{16,}+", rf"\1{HIDDEN}"),
        (rf"({_AUTHORIZATION}{_SCHEME})[^\s\"'\\,;]++", rf"\1{HIDDEN}"),
        (rf"({_AUTHORIZATION})[\w.~+/=\-]{{16,}}+", rf"\1{HIDDEN}"),
        (r"\b((?:identified\s{1,9}+by|password)\s{1,9}+)'[^'\n]++'?", rf"\1{HIDDEN}"),  # SQL
        (_TOKENS, HIDDEN),
    )
)
_PEM: Final = re.compile(
    r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)(?:[^-]|-(?!----))*+"
)
_PEM_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY")
_PEM_BODY: Final = "*+/=\\\r\n\t |0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CLIENT: Final = re.compile(r"\b(?:mysql|mariadb|sshpass)|(?<!\S)['\"]?-u", re.IGNORECASE)
_GLUED: Final = re.compile(r"""((?<![^\s"'\[,])-p)(?=[^\s,\]])("[^"]*+"|'[^']*+'|[^\s"',;&]++)""")
_SHORTEST: Final = 4  # characters; shorter values stand in too many places by chance
_SHORTEST_PIECE: Final = 6  # of what is within base64
_LONGEST_BROKEN: Final = 300  # characters of what is looked for across ends of lines
_COMMON: Final = frozenset({"true", "false", "none", "null", "yes", "no", HIDDEN})
_BREAK: Final = r"(?:(?:(?:\\r)?\\n|\\?\r?\n)[ \t|>]{0,9})?"
_HAS_BREAK: Final = re.compile(r"\n|\\n")
_ESCAPES: Final[tuple[Mapping[str, str], ...]] = (
    {"'": "&#x27;", '"': "&quot;"},
    {"'": "&apos;", '"': "&quot;"},
    {"'": "&#39;", '"': "&#34;"},
    {},
)


def is_secret(name: str) -> bool:
    """Whether a property, option or variable of this name may hold a secret."""
    bare = _SEPARATORS.sub("", name).lower()
    if any(word in bare for word in _WORDS) or bare.endswith((*_KEYS, "pw")):
        return True
    return bare.endswith("pass") and bare != "pass" and not bare.endswith(_NO_PASSWORDS)


def without_secrets(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties, the values of secrets hidden."""
    mask = Mask(properties)
    return {key: HIDDEN if is_secret(key) else mask.hide(text) for key, text in properties.items()}


def hide_assigned(text: str) -> str:
    """The text without what looks like a secret: what follows `password=`, `--token ` and so on."""
    shown = _without_keys(text)
    pieces, end = [], 0
    for begin, stop in _assigned(shown):
        pieces += [shown[end:begin], HIDDEN]
        end = stop
    shown = "".join([*pieces, shown[end:]])
    for pattern, left in _ELSEWHERE:
        shown = pattern.sub(left, shown)
    return "\n".join(map(_without_glued, shown.split("\n")))


def _without_keys(text: str) -> str:
    """The text without private keys, also where it begins or ends within one."""
    if "PRIVATE KEY" not in text:
        return text
    shown = _PEM.sub(rf"\1{HIDDEN}", text)
    pieces, start = [], 0
    for end in _PEM_END.finditer(shown):
        piece, start = shown[start : end.start()], end.start()
        begun = _PEM.search(piece)
        pieces.append(piece if begun else f"{piece.rstrip(_PEM_BODY)}{HIDDEN}")
    return "".join([*pieces, shown[start:]])


def _without_glued(line: str) -> str:
    """A line without the password that clients of MySQL take right after `-p`."""
    return _GLUED.sub(rf"\1{HIDDEN}", line) if "-p" in line and _CLIENT.search(line) else line


class Mask:
    """Hides the secrets among some properties, wherever a text repeats them."""

    def __init__(self, *properties: Mapping[str, str]) -> None:
        """Learns the values of properties that are secrets by their names.

        And what other values assign to such names, as `-Dpassword=…` does in Java's options.
        """
        found = {form for each in properties for value in _secrets(each) for form in _forms(value)}
        self._forms: Final = sorted(found, key=len, reverse=True)  # the longest first

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._forms)))

    @cached_property
    def _broken(self) -> re.Pattern[str]:
        """The same, with an end of a line wherever one can be."""
        forms = (form for form in self._forms if len(form) <= _LONGEST_BROKEN)
        return re.compile("|".join(_BREAK.join(map(re.escape, form)) for form in forms) or r"(?!)")

    def hide(self, text: str) -> str:
        """The text with its secrets replaced by `***`."""
        return self._hide_values(hide_assigned(self._hide_values(text)))

    def _hide_values(self, text: str) -> str:
        if not self._forms:
            return text
        patterns = [self._whole, self._broken] if _HAS_BREAK.search(text) else [self._whole]
        # What is left can be a secret again, where one has asterisks; each round is shorter.
        while any(pattern.search(text) for pattern in patterns):
            for pattern in patterns:
                text = pattern.sub(HIDDEN, text)
        return text


def _assigned(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secrets begin and end."""
    end = 0
    for found in _NAME.finditer(text):
        name, between = found["name"], found["between"]
        takes_value = name.startswith("-") or "=" in between or ":" in between
        in_query = name.lower() in _IN_QUERIES and text[max(found.start() - 1, 0)] in "?&;"
        if found.start() < end or not (takes_value and (in_query or is_secret(name))):
            continue
        value = _VALUE.match(text, found.end())
        if value and value[0].strip("\"'()[]{}.").lower() not in _COMMON:
            end = value.end()
            yield value.start(), end


def _secrets(properties: Mapping[str, str]) -> Iterator[str]:
    for key, value in properties.items():
        if is_secret(key):
            yield value
            yield from value.splitlines()  # of a private key, each line is one
        else:
            yield from (value[begin:stop].strip("\"'") for begin, stop in _assigned(value))


def _forms(value: str) -> Iterator[str]:
    """The value as programs write it: as it is, and as JSON, Python, URLs, XML or base64 do."""
    bare = value.strip()
    if len(bare) < _SHORTEST or bare.lower() in _COMMON:
        return
    yield from (value, bare, repr(bare)[1:-1])
    yield from accumulate(repeat(bare, 4), lambda text, _: json.dumps(text)[1:-1])
    yield from accumulate(
        repeat(bare, 4), lambda text, _: json.dumps(text, ensure_ascii=False)[1:-1]
    )
    if bare.isprintable():  # half a character cannot be encoded
        for form in (quote(bare), quote(bare, safe=""), quote_plus(bare)):
            yield from (form, re.sub("%..", lambda code: code[0].lower(), form))
        for text in {bare, json.dumps(bare)[1:-1]}:
            yield from _encoded(text.encode())
    for quotes in _ESCAPES:
        yield _escaped(bare, quotes)


def _escaped(text: str, quotes: Mapping[str, str]) -> str:
    """The text as HTML or XML have it."""
    return html.escape(text, quote=False).translate({ord(each): quotes[each] for each in quotes})


def _encoded(value: bytes) -> Iterator[str]:
    """In base64, by itself and wherever it stands in what was encoded, and in hexadecimal."""
    yield from (value.hex(), value.hex().upper())
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + value).decode()
        begin, end = (0, 2, 3)[shift], (shift + len(value)) * 8 // 6  # what nothing beside changes
        for piece in {encoded[begin:end], *([encoded] if not shift else [])}:
            if len(piece) >= _SHORTEST_PIECE:
                yield from (piece, piece.replace("+", "-").replace("/", "_"))
