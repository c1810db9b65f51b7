"""Which values are secrets, and how they are masked before they are recorded."""

import itertools
from collections.abc import Mapping

from llmtune.runs.status import without_credentials

MASK = "***"
_SECRET_WORDS = {"password", "passwd", "secret", "secrets", "apikey", "credential", "credentials"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key")}
_VOCABULARY_WORDS = {
    *("bos", "eos", "pad", "unk", "cls", "sep", "mask", "image", "audio", "video", "special"),
    *("start", "stop", "end", "turn", "first", "last", "next", "new", "per", "each"),
}


def is_secret_key(key: str) -> bool:
    """Whether a dotted key names a secret: `hub.token` and `client_secret` do, `eos_token` and `max_tokens` don't."""
    return any(_is_secret_name(part.lower().split("_")) for part in key.replace("/", ".").split("."))


def mask_secrets(params: Mapping[str, object]) -> dict[str, object]:
    """The params with secrets replaced by `***`, and credentials taken out of URIs.

    Args:
        params: dotted key to value.
    """
    return {key: _masked(key, value) for key, value in params.items()}


def _masked(key: str, value: object) -> object:
    if is_secret_key(key) and value is not None and not isinstance(value, bool):
        return MASK
    return without_credentials(value) if isinstance(value, str) else value


def _is_secret_name(words: list[str]) -> bool:
    if _SECRET_WORDS.intersection(words):
        return True
    if any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words)):
        return True
    return words[-1] == "token" and not _VOCABULARY_WORDS.intersection(words[:-1])
