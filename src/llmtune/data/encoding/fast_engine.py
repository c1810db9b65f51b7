"""Text to token ids at many times the library's speed, where the same ids come out."""

import json
import os
import string
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from llmtune.data.encoding.engine import TextEncoder
from llmtune.data.encoding.library_engine import LibraryEncoder
from llmtune.errors import LlmtuneError

SWITCH = "LLMTUNE_FAST_TOKENIZER"
"""Environment variable that turns the fast engine off where it is 0."""
CHECK_EVERY = 64
"""Of so many texts one is encoded by both engines, the first one always."""
_KNOWN_ODD: tuple[str, ...] = ("\N{LATIN SMALL LETTER LONG S}", "\N{MONGOLIAN VOWEL SEPARATOR}")
"""The first is an s to the library in `'s`, whatever the case; the second is a space to fastokens' regex engine."""
_ASCII = [chr(number) for number in range(128)]
_PROBES = (
    "",
    "It's what they'll say: WE'VE won, I'd've, 'tis 'S",
    "def f(x):\n    return x ** 2  # twice\n\n\n\tif True:\r\n\t\tpass\r\n   \n  x",
    "1 12 123 1234 12345 1.5e-10 0xFF 3,000,000 ½ ² Ⅷ ٣٤٥ १२३",
    "naïve Å Å e\u0301 ｅ́ ﬁ ß İi ſ'ſ Ǆǅǆ Straße ΑΣΑς привет мир שלום مرحبا",
    "नमस्ते ก็ดี 中文、日本語。カタカナ 한국어 \u1100\u1161\u11a8",
    "😀👍🏽 👨‍👩‍👧 🇫🇷 \u200d\ufeff\u00ad\u200b\u00a0\u3000\u2028 \x85 x\u0300\u0301\u0323",
    "<|not_a_token|> <s> [INST] <0x0A> ▁ ▁▁a Ġ Ċ",
    *(unit * 700 for unit in (" ", "\n", "\r\n", "a", "A", "aB", "7", "=", "'", "é", "中", "\u0301")),
)


class EnginesDiffer(LlmtuneError):
    """The fast engine was found to give other ids than the library, amid the data."""


class FastEncoder:
    """Encodes with `fastokens`, which is held against the library all along.

    Each character is compared once, in many surroundings, before the first text with it is encoded; where the two
    differ on one, or the fast engine has no id for it, texts with it go to the library. Of `CHECK_EVERY` texts one is
    compared whole.

    Args:
        library: what the ids must be.
        fast: `fastokens.Tokenizer` of the same tokenizer.
        splits_special: whether special tokens that stand in a text are taken apart as text.
    """

    def __init__(self, library: TextEncoder, fast: Any, *, splits_special: bool = False) -> None:
        self._library = library
        self._fast = fast
        self._splits_special = splits_special
        self._met = set(_KNOWN_ODD)
        self._odd = set(_KNOWN_ODD)
        self._num_texts = 0
        self._meet(_ASCII)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [T] each, exactly those of the model's own tokenizer.

        Raises:
            EnginesDiffer: a text that was compared whole has other ids.
        """
        self._meet(set().union(*(text for text in texts if not text.isascii())))
        ids = self._ids(texts)
        first = -self._num_texts % CHECK_EVERY
        self._num_texts += len(texts)
        if not _are_equal(ids[first::CHECK_EVERY], self._library.encode(texts[first::CHECK_EVERY])):
            raise EnginesDiffer(
                f"fastokens and tokenizers give different tokens for the same text; {SWITCH}=0 turns the first off"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included, spaces as they are."""
        return self._library.decode(ids)

    def agrees_on(self, words: Iterable[str]) -> bool:
        """Whether both engines give the same ids for texts made to tell them apart, `words` in them."""
        if not self._odd.isdisjoint(string.printable):
            return False
        plain = [character for character in _ASCII if character not in self._odd]
        pairs = ["".join(one + other for other in plain) for one in plain]
        words = [f"a{word}b {word} {word}\n{word}{word}  {word}1" for word in words]
        texts = [*_PROBES, *pairs, *words]
        self._meet(set().union(*texts))
        return _are_equal(self._ids(texts), self._library.encode(texts))

    def _meet(self, characters: Iterable[str]) -> None:
        new = sorted(set(characters) - self._met)
        if not new:
            return
        texts = [f"a{c}a{c}{c} {c} {c}e1{c}1.{c}.\n{c}\n  {c}  {c}'{c}A{c}A\t{c}'{c}s{c}" for c in new]
        expected = self._library.encode(texts)
        try:
            is_odd = [not np.array_equal(*pair) for pair in zip(self._fast_ids(texts), expected, strict=True)]
        except ValueError:
            is_odd = [not self._is_same(*pair) for pair in zip(texts, expected, strict=True)]
        self._odd.update(character for character, odd in zip(new, is_odd, strict=True) if odd)
        self._met.update(new)

    def _is_same(self, text: str, expected: np.ndarray) -> bool:
        try:
            return np.array_equal(self._fast_ids([text])[0], expected)
        except ValueError:  # a byte that the vocabulary lacks
            return False

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        is_odd = [any(character in text for character in self._odd) for text in texts]
        try:
            fast = iter(self._fast_ids([text for text, odd in zip(texts, is_odd, strict=True) if not odd]))
        except ValueError:  # normalising gave a character that was never met
            return self._library.encode(texts)
        slow = iter(self._library.encode([text for text, odd in zip(texts, is_odd, strict=True) if odd]))
        return [next(slow if odd else fast) for odd in is_odd]

    def _fast_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids, offsets = self._fast.encode_batch_flat(list(texts), split_special_tokens=self._splits_special)
        flat = np.frombuffer(ids, dtype=np.int32).copy()
        bounds = np.frombuffer(offsets, dtype=np.int64).tolist()
        return [flat[start:end] for start, end in pairwise(bounds)]


def choose_encoder(backend: str, *, splits_special: bool) -> TextEncoder:
    """The fast engine where it takes this tokenizer and agrees with the library on it, else the library.

    Args:
        backend: the tokenizer as JSON.
        splits_special: whether special tokens that stand in a text are taken apart as text.
    """
    library = LibraryEncoder(backend, splits_special=splits_special)
    description = json.loads(backend)
    model = description["model"]
    if os.environ.get(SWITCH) == "0" or model["type"] != "BPE" or model["dropout"]:
        return library
    try:
        fast = import_module("fastokens").Tokenizer.from_json_str(backend)
    except (ImportError, ValueError):  # not installed, or a part of the tokenizer that it doesn't know
        return library
    fast.no_truncation()
    fast.no_padding()
    encoder = FastEncoder(library, fast, splits_special=splits_special)
    return encoder if encoder.agrees_on(token["content"] for token in description["added_tokens"]) else library


def _are_equal(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(some, others, strict=True))
