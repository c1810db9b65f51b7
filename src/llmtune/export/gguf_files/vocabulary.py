"""A tokenizer as llama.cpp reads it: tokens, merges or scores, special ids, chat template."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from llmtune.export.gguf_files.pretokenizers import pretokenizer_name

MOST_END_TOKENS = 3
"""A GGUF file has a key for the end of a text, of a turn and of a message."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_HARMLESS = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_NEVER = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "never", "split": False}
_Type = gguf.TokenType


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The `tokenizer.*` part of a GGUF file."""

    pre: str | None
    """llama.cpp's name of how text is cut; None for SentencePiece vocabularies, which aren't cut."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool
    """Whether a text begins with a space that isn't there."""
    adds_bos: bool
    adds_eos: bool
    special: dict[str, int]
    """`bos`, `unk`, `pad` by id, where the tokenizer has them."""
    ends: list[int]
    """Tokens that end an answer, the tokenizer's own first."""
    chat_template: str | None


def why_not(tokenizer: PreTrainedTokenizerBase, num_rows: int, num_ends: int) -> str | None:
    """Why llama.cpp wouldn't encode text as this tokenizer does; None where it does.

    Args:
        tokenizer: of transformers, with its tokenizer.json.
        num_rows: rows of the model's embeddings; 0 where unknown.
        num_ends: how many tokens end an answer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "needs a tokenizer with tokenizer.json"
    content = json.loads(backend.to_str())
    if num_rows and len(tokenizer) > num_rows:
        return f"needs a row of the embeddings for each token: {len(tokenizer)} tokens, {num_rows} rows"
    if num_ends > MOST_END_TOKENS:
        return f"has room for {MOST_END_TOKENS} tokens that end an answer, and this model has {num_ends}"
    if content["model"].get("type") != "BPE":
        return f"encodes byte-level and SentencePiece BPE here, not {content['model'].get('type')}"
    for token in content["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            return f"doesn't strip spaces around added tokens, as {token['content']!r} does"
    if _surroundings(tokenizer) is None:
        return "puts a first and a last token around a text at most, and this tokenizer puts others there"
    return _why_not_words(content)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, num_rows: int, ends: Sequence[int]) -> Vocabulary:
    """The vocabulary of a tokenizer that `why_not` doesn't refuse.

    Args:
        tokenizer: of transformers.
        num_rows: rows of the model's embeddings; those without a token get a placeholder.
        ends: tokens that end an answer, the tokenizer's own first.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer")  # noqa: B009  # not every tokenizer has one
    content = json.loads(backend.to_str())
    merges = _pairs(content)
    tokens, types = _tokens(content, num_rows)
    sentencepiece = _is_sentencepiece(content)
    around = _surroundings(tokenizer)
    assert around is not None, "why_not comes first"
    special = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    template = tokenizer.chat_template
    return Vocabulary(
        pre=None if sentencepiece else pretokenizer_name(content),
        tokens=tokens,
        types=types,
        merges=[] if sentencepiece else [f"{left} {right}" for left, right in merges],
        scores=_scores(tokens, merges) if sentencepiece else [],
        space_prefix=sentencepiece and _PREPEND in _steps(content["normalizer"], "normalizers"),
        adds_bos=around[0],
        adds_eos=around[1],
        special={name: int(token) for name, token in special.items() if isinstance(token, int)},
        ends=list(ends),
        chat_template=plain_template(template) if isinstance(template, str) else None,
    )


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add the vocabulary to a file."""
    writer.add_tokenizer_model("llama" if vocabulary.pre is None else "gpt2")
    writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.pre is None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    adders = {"bos": writer.add_bos_token_id, "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}
    for name, token in vocabulary.special.items():
        adders[name](token)
    ends = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, token in zip(ends, vocabulary.ends, strict=False):
        add(token)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def plain_template(template: str) -> str:
    """A chat template without the blocks that mark what was trained, which only transformers knows."""
    template = re.sub(r"\bendgeneration(?=\s*[-+]?%})", "endif", template)
    return re.sub(r"(\{%[-+]?\s*)generation(?=\s*[-+]?%})", r"\1if true", template)


def _is_sentencepiece(content: dict[str, Any]) -> bool:
    return bool(content["model"].get("byte_fallback"))


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one or a sequence."""
    if part is None:
        return []
    return part[key] if part["type"] == "Sequence" else [part]


def _surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool] | None:
    """Whether the first and the last token stand around a text; None where something else does."""
    bare, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if full == [bos] * before + list(bare) + [eos] * after:
            return before, after
    return None


def _why_not_words(content: dict[str, Any]) -> str | None:
    """Why words would become other tokens."""
    normalizers = _steps(content["normalizer"], "normalizers")
    if not _is_sentencepiece(content):
        if [step["type"] for step in normalizers] not in ([], ["NFC"]):
            return f"doesn't change text before it encodes it, as the normalizer {normalizers[0]['type']} does"
        if pretokenizer_name(content) is None:
            return f"has no name for this tokenizer's way to cut text into words: {content['pre_tokenizer']}"
        return None
    if normalizers not in ([_REPLACE], [_PREPEND, _REPLACE]):
        if not (normalizers == [] and _steps(content["pre_tokenizer"], "pretokenizers") == [_NEVER]):
            return "puts a space before a text and after each special token or nowhere, and this tokenizer elsewhere"
    elif _steps(content["pre_tokenizer"], "pretokenizers") not in ([], [_HARMLESS]):
        return f"doesn't cut text of SentencePiece vocabularies into words, as {content['pre_tokenizer']} does"
    return _why_not_scores(content)


def _why_not_scores(content: dict[str, Any]) -> str | None:
    """Why scores of tokens can't stand for the merges: they say which token is made first, not of which parts."""
    vocabulary, pairs = content["model"]["vocab"], _pairs(content)
    if any(token not in vocabulary for token in _BYTES):
        return "needs a token for each byte in SentencePiece vocabularies"
    made = [left + right for left, right in pairs]
    runs = [token for number, token in enumerate(made) if number == 0 or made[number - 1] != token]
    if len(runs) != len(set(runs)):
        return "makes tokens in the order of their scores, and this tokenizer's merges have no such order"
    known, added = set(pairs), {token["content"] for token in content["added_tokens"]} | set(_BYTES)
    for token in vocabulary:
        if token in added:
            continue
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair not in known and pair[0] in vocabulary and pair[1] in vocabulary:
                return f"would make {token!r} of {pair[0]!r} and {pair[1]!r}, which this tokenizer never does"
    return None


def _pairs(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges, in order; tokenizer.json has them as pairs or, in older files, with a space between."""
    listed: Iterator[Any] = iter(content["model"]["merges"])
    return [(pair[0], pair[1]) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in listed]


def _tokens(content: dict[str, Any], num_rows: int) -> tuple[list[str], list[int]]:
    """Text and type of each row of the embeddings."""
    tokens = [f"[PAD{number}]" for number in range(num_rows)]
    types = [int(_Type.UNUSED)] * num_rows
    bytes_of = set(_BYTES) if _is_sentencepiece(content) else set()
    for token, number in content["model"]["vocab"].items():
        tokens[number] = token
        types[number] = int(_Type.BYTE if token in bytes_of else _Type.NORMAL)
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = int(_Type.CONTROL if token["special"] else _Type.USER_DEFINED)
    return tokens, types


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Scores by which llama.cpp makes tokens in the order of the merges: the first made has the highest."""
    order = dict.fromkeys(left + right for left, right in merges)
    ranks = {token: -float(rank) for rank, token in enumerate(order)}
    return [ranks.get(token, -float(len(order))) for token in tokens]
