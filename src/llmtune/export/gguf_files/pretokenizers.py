"""Which of llama.cpp's ways to cut a text into words is the tokenizer's own."""

from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST


def _split(pattern: str) -> list[dict[str, Any]]:
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_KNOWN: list[tuple[str, list[dict[str, Any]], bool]] = [
    ("gpt-2", [_BYTE_LEVEL], False),
    ("smollm", [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL], False),
    ("qwen2", _split(_QWEN2), False),
    ("llama-bpe", _split(_LLAMA3), True),
    ("dbrx", _split(_LLAMA3), False),
]
"""`tokenizer.ggml.pre`, the steps of tokenizer.json, and whether a whole word that is a token skips the merges.

The expressions are those that llama.cpp's `src/llama-vocab.cpp` quotes as the original of each name.
"""


def pretokenizer_name(tokenizer: dict[str, Any]) -> str | None:
    """What `tokenizer.ggml.pre` has to say for a byte-level tokenizer; None where llama.cpp has nothing equal.

    Args:
        tokenizer: content of tokenizer.json.
    """
    own = tokenizer["pre_tokenizer"] or {}
    steps = own["pretokenizers"] if own.get("type") == "Sequence" else [own]
    plain = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    ignores_merges = bool(tokenizer["model"].get("ignore_merges"))
    return next((name for name, known, ignores in _KNOWN if known == plain and ignores == ignores_merges), None)
