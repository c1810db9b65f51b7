"""What is secret by its name or its place, and text without it."""

import itertools
import json
import os
import re
from functools import lru_cache
from urllib.parse import quote

MASK = "***"
_USERINFO = re.compile(r"""(?<=://)(?:[^/?#\s]*@|[^/?#\s:@]+:[^\s"']*@)""")
"""What stands before a URI's host; a password may hold what ends a host elsewhere: `/`, `?`, `#`, `@`."""
_QUERY = re.compile(
    r"(?i)([?&;](?!orderByKey=)[^=&;#\s]*(?:passw|passphrase|pwd|token|secret|sig|key|credential|auth)[^=&;#\s]*=)[^&#\s]+"
)
"""What a query says of a secret; MLflow's pages name by `orderByKey` what they sort by."""
_SHORTEST_SECRET = 8
_SECRET_WORDS = {"password", "passwd", "secret", "secrets", "apikey", "credential", "credentials"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key")}
_VOCABULARY_WORDS = {
    *("bos", "eos", "pad", "unk", "cls", "sep", "mask", "image", "audio", "video", "special"),
    *("start", "stop", "end", "turn", "first", "last", "next", "new", "per", "each"),
}
_SECRET_ENDINGS = ("password", "passwd", "pass", "pwd", "passphrase", "jwt", "authorization", "token", "tokens")
_SECRET_LAST_WORDS = {"key", "keys", "pat"}
_HARMLESS_VARIABLES = {"PWD", "OLDPWD"}
_HARMLESS_WORDS = {"bypass", "compass", "max", "min", "num", *_VOCABULARY_WORDS}


def is_secret_key(key: str) -> bool:
    """Whether a dotted key names a secret: `hub.token` and `client_secret` do, `eos_token` and `max_tokens` don't."""
    return any(_is_secret_name(part.lower().split("_")) for part in key.replace("/", ".").split("."))


def without_credentials(text: str) -> str:
    """The text without the credentials of its URIs, and with `***` for the values of secret environment variables.

    `user:password@` is left out; the value of a query's `password=`, `token=` and the like becomes `***`.
    """
    text = _QUERY.sub(rf"\1{MASK}", _USERINFO.sub("", text))
    for _, value in _secrets():
        text = text.replace(value, MASK)
    return text


def holds_credentials(uri: str) -> bool:
    """Whether credentials stand in a URI, or may: see `has_late_at`."""
    return without_credentials(uri) != uri or has_late_at(uri)


def has_late_at(uri: str) -> bool:
    """Whether an `@` stands behind the host of a URI that isn't a file's: a password that holds a `/` may end there."""
    _, separator, rest = uri.partition("://")
    behind = re.split(r"[/?#]", rest, maxsplit=1)[1:]
    return bool(separator) and "@" in "".join(behind) and not uri.startswith(("sqlite", "file"))


def secret_in(text: str) -> str | None:
    """The name of the environment variable whose secret value stands in the text; None where none does."""
    return next((name for name, value in _secrets() if value in text), None)


@lru_cache(maxsize=1024)
def is_secret_variable(name: str) -> bool:
    """Whether an environment variable holds a secret by its name: more do than keys of a config.

    `PGPASSWORD`, `GITHUB_PAT` and `STRIPE_KEY` do; `PWD`, `MAX_TOKENS` and `PATH` don't.
    """
    if is_secret_key(name):
        return True
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    if name in _HARMLESS_VARIABLES or not words or _HARMLESS_WORDS.intersection(words):
        return False
    return words[-1] in _SECRET_LAST_WORDS or any(word.endswith(_SECRET_ENDINGS) for word in words)


def _secrets() -> list[tuple[str, str]]:
    """Names and values of the environment's secrets, the longest first; very short ones are words like any other.

    Each value stands as it is, and as JSON and URIs spell it.
    """
    found = [(name, value) for name, value in os.environ.items() if len(value) >= _SHORTEST_SECRET]
    spelt = [(name, text) for name, value in found if is_secret_variable(name) for text in _spellings(value)]
    return sorted(spelt, key=lambda one: -len(one[1]))


def _spellings(value: str) -> set[str]:
    in_json = {json.dumps(value, ensure_ascii=only)[1:-1] for only in (True, False)}
    return {value, *in_json, quote(value, safe="", errors="replace"), quote(value, errors="replace")}


def _is_secret_name(words: list[str]) -> bool:
    if _SECRET_WORDS.intersection(words):
        return True
    if any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words)):
        return True
    return words[-1] == "token" and not _VOCABULARY_WORDS.intersection(words[:-1])
