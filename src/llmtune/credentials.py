"""What is secret by its name or its place, and text without it."""

import itertools
import os
import re

MASK = "***"
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_SHORTEST_SECRET = 8
_SECRET_WORDS = {"password", "passwd", "secret", "secrets", "apikey", "credential", "credentials"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key")}
_VOCABULARY_WORDS = {
    *("bos", "eos", "pad", "unk", "cls", "sep", "mask", "image", "audio", "video", "special"),
    *("start", "stop", "end", "turn", "first", "last", "next", "new", "per", "each"),
}


def is_secret_key(key: str) -> bool:
    """Whether a dotted key names a secret: `hub.token` and `client_secret` do, `eos_token` and `max_tokens` don't."""
    return any(_is_secret_name(part.lower().split("_")) for part in key.replace("/", ".").split("."))


def without_credentials(text: str) -> str:
    """The text without `user:password@` in its URIs, and with `***` for the values of secret environment variables."""
    text = _USERINFO.sub("", text)
    for _, value in _secrets():
        text = text.replace(value, MASK)
    return text


def secret_in(text: str) -> str | None:
    """The name of the environment variable whose secret value stands in the text; None where none does."""
    return next((name for name, value in _secrets() if value in text), None)


def _secrets() -> list[tuple[str, str]]:
    """Names and values of the environment's secrets, the longest first; very short ones are words like any other."""
    found = [(name, value) for name, value in os.environ.items() if len(value) >= _SHORTEST_SECRET]
    return sorted(((name, value) for name, value in found if is_secret_key(name)), key=lambda one: -len(one[1]))


def _is_secret_name(words: list[str]) -> bool:
    if _SECRET_WORDS.intersection(words):
        return True
    if any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words)):
        return True
    return words[-1] == "token" and not _VOCABULARY_WORDS.intersection(words[:-1])
