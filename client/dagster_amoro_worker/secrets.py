"""What in a text looks like a secret, and how is it hidden?

It takes time in proportion to the text, whatever that holds: it may be the output of a failing
program.
"""

import re
from collections.abc import Iterator
from typing import Final

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
COMMON: Final = frozenset({"true", "false", "none", "null", "yes", "no", HIDDEN})
"""Values that are no secrets, whatever the name before them says."""


def is_secret(name: str) -> bool:
    """Whether a property, option or variable of this name may hold a secret."""
    bare = _SEPARATORS.sub("", name).lower()
    if any(word in bare for word in _WORDS) or bare.endswith((*_KEYS, "pw")):
        return True
    return bare.endswith("pass") and bare != "pass" and not bare.endswith(_NO_PASSWORDS)


def hide_assigned(text: str) -> str:
    """The text without what looks like a secret: what follows `password=`, `--token ` and so on."""
    shown = _without_keys(text)
    pieces, end = [], 0
    for begin, stop in assigned(shown):
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


def assigned(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secrets begin and end."""
    end = 0
    for found in _NAME.finditer(text):
        name, between = found["name"], found["between"]
        takes_value = name.startswith("-") or "=" in between or ":" in between
        in_query = name.lower() in _IN_QUERIES and text[max(found.start() - 1, 0)] in "?&;"
        if found.start() < end or not (takes_value and (in_query or is_secret(name))):
            continue
        value = _VALUE.match(text, found.end())
        if value and value[0].strip("\"'()[]{}.").lower() not in COMMON:
            end = value.end()
            yield value.start(), end
