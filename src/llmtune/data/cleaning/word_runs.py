"""Texts as hashes of their words and of runs of words, whatever their case, white space and punctuation."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

RUN_WORDS = 5
"""Words of a run."""

_SLICE = 1 << 16  # characters at a time: the working arrays stay in the processor's cache
_MULTIPLIER = 0x9E3779B97F4A7C15
_SEPARATOR, _WORD, _SIGN = range(3)
_ASCII_SIGNS = frozenset("#$%&*+/<=>@\\^|~")
"""What stands for an operation stays: `a + b` is not `a - b`."""
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Code points of scripts that put no space between words: each character is a word."""

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class WordRuns:
    """What texts say, as hashes that are the same in every process and on every machine."""

    keys: Hashes
    """[N] One hash a text, over its words in their order."""
    runs: Hashes
    """Hashes of every run of five words, text after text; a shorter text is one run."""
    offsets: Hashes
    """[N + 1] Where each text's runs begin in `runs`, and their end."""


def word_runs(texts: Sequence[str]) -> WordRuns:
    """Hash the words of each text and its runs of words.

    Words are compared after NFKC and casefolding. Punctuation parts words and counts for nothing; each sign (`+`, `=`,
    an emoji) and each character of a script without spaces is a word of its own. A text of nothing but punctuation is
    hashed as it stands.
    """
    keys: list[Hashes] = []
    runs: list[Hashes] = []
    counts: list[NDArray[np.int64]] = []
    for group in _groups(texts):
        found = _long(group[0]) if len(group) == 1 and len(group[0]) >= _SLICE else _short(group)
        keys.append(found[0])
        runs.append(found[1])
        counts.append(found[2])
    offsets = np.zeros(len(texts) + 1, np.uint64)
    if texts:
        np.cumsum(np.concatenate(counts), out=offsets[1:], dtype=np.uint64)
    return WordRuns(_joined(keys), _joined(runs), offsets)


def count_words(text: str) -> int:
    """The number of words of a text: what white space parts, and each character of a script without spaces."""
    parts = len(text.split())
    if text.isascii():
        return parts
    codes = _codes(text)
    if codes.max() < _WITHOUT_SPACES[0][0]:
        return parts
    alone = _without_spaces()[codes]
    # Between two such characters, and between one and a letter beside it, a word ends as at a space.
    is_space = _table()[codes] == _SEPARATOR
    inner = (alone[:-1] | alone[1:]) & ~is_space[:-1] & ~is_space[1:]
    return parts + int(np.count_nonzero(inner))


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Normalised texts, as many at a time as fill a slice; a longer one alone."""
    group: list[str] = []
    size = 0
    for original in texts:
        text = original.lower() if original.isascii() else unicodedata.normalize("NFKC", original).casefold()
        if group and size + len(text) >= _SLICE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text) + 1
    if group:
        yield group


def _short(texts: Sequence[str]) -> tuple[Hashes, Hashes, NDArray[np.int64]]:
    """Keys, runs and number of runs of texts that fill one slice at most."""
    starts, words = _words("\n".join(texts))
    sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    borders = np.searchsorted(starts, np.cumsum(sizes))
    counts = np.diff(borders, prepend=0)
    if not counts.all():
        words, counts = _with_stand_ins(texts, words, counts)
    runs, num_runs = _runs(words, counts)
    return _keys(words, counts), runs, num_runs


def _long(text: str) -> tuple[Hashes, Hashes, NDArray[np.int64]]:
    """Keys, runs and number of runs of one text, held in memory a slice at a time."""
    words = _joined([_words(piece)[1] for piece in _pieces(text)])
    if not len(words):
        words = np.array([_stand_in(text)], np.uint64)
    key = np.zeros(1, np.uint64)
    runs: list[Hashes] = []
    for first in range(0, len(words), _SLICE):
        part = words[first : first + _SLICE]
        chained = _keys(part, np.array([len(part)]))
        key = chained if first == 0 else _mixed(key * np.uint64(_MULTIPLIER) + chained)
        if first == 0 or len(part) >= RUN_WORDS:
            runs.append(_runs(part, np.array([len(part)]))[0])
    found = _joined(runs)
    return key, found, np.array([len(found)])


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most a slice, cut at white space where there is some."""
    first = 0
    while first < len(text):
        end = first + _SLICE
        if end < len(text):
            space = max(text.rfind(" ", first + 1, end), text.rfind("\n", first + 1, end))
            end = space if space > first else end
        yield text[first:end]
        first = end


def _words(text: str) -> tuple[NDArray[np.int64], Hashes]:
    """Where each word of a text starts, and its hash: a polynomial over its characters, mixed."""
    if text.isascii():
        data = text.encode()
        symbols = np.frombuffer(data, np.uint8)
        classes = np.frombuffer(data.translate(_ascii_table()), np.uint8)
    else:
        symbols = _codes(text)
        classes = _table()[symbols]
    if not len(symbols):
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    in_word = classes == _WORD
    goes_on = in_word[1:] & in_word[:-1]
    is_first = classes != _SEPARATOR
    is_last = is_first.copy()
    is_first[1:] &= ~goes_on
    is_last[:-1] &= ~goes_on
    starts, ends = np.flatnonzero(is_first), np.flatnonzero(is_last)
    powers, inverses = _powers()
    sums = np.cumsum(symbols * powers[: len(symbols)])
    before = np.where(starts > 0, sums[starts - 1], np.uint64(0))
    return starts, _mixed((sums[ends] - before) * inverses[starts])


def _keys(words: Hashes, counts: NDArray[np.int64]) -> Hashes:
    """One hash for each text out of those of its words."""
    powers, inverses = _powers()
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers[: len(words)])])
    ends = np.cumsum(counts)
    starts = ends - counts
    return _mixed((sums[ends] - sums[starts]) * inverses[starts] + counts.astype(np.uint64))


def _runs(words: Hashes, counts: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.int64]]:
    """The hashes of runs of words that lie within a text, and their number by text."""
    # Four zeros after each text let a run start at any word of a short one.
    padding = RUN_WORDS - 1
    starts = np.cumsum(counts + padding) - counts - padding
    padded = np.zeros(len(words) + padding * (len(counts) + 1), np.uint64)
    padded[np.arange(len(words)) + np.repeat(padding * np.arange(len(counts)), counts)] = words
    num_runs = np.maximum(counts - padding, 1)
    firsts = np.arange(num_runs.sum()) + np.repeat(starts - np.cumsum(num_runs) + num_runs, num_runs)
    powers, inverses = _powers()
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(padded * powers[: len(padded)])])
    return _mixed((sums[firsts + RUN_WORDS] - sums[firsts]) * inverses[firsts]), num_runs


def _with_stand_ins(texts: Sequence[str], words: Hashes, counts: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.int64]]:
    """The words, where each text without any has got one that stands for all of it."""
    missing = np.flatnonzero(counts == 0)
    stand_ins = np.array([_stand_in(texts[place]) for place in missing.tolist()], np.uint64)
    words = np.insert(words, np.cumsum(counts)[missing], stand_ins)
    return words, np.maximum(counts, 1)


def _stand_in(text: str) -> int:
    collapsed = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(collapsed, digest_size=8).digest(), "big")


def _mixed(values: Hashes) -> Hashes:
    """Spread over all bits (the finaliser of splitmix64, https://prng.di.unimi.it/splitmix64.c)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _joined(parts: list[Hashes]) -> Hashes:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """The multiplier's powers from 0, and their inverses modulo 2^64."""
    size = (RUN_WORDS + 1) * _SLICE  # a slice of one-letter texts with the zeros after each
    powers = []
    for base in (_MULTIPLIER, pow(_MULTIPLIER, -1, 1 << 64)):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        powers.append(np.cumprod(factors, dtype=np.uint64))
    return powers[0], powers[1]


def _class_of(character: str) -> int:
    category = unicodedata.category(character)
    if character in _ASCII_SIGNS or category[0] == "S":
        return _SIGN
    if category == "Pc" or category[0] in "LNM" or category in ("Co", "Cn", "Cs"):
        return _WORD
    return _SEPARATOR


@cache
def _ascii_table() -> bytes:
    return bytes(_class_of(chr(code)) for code in range(128)) + bytes(128)


@cache
def _table() -> NDArray[np.uint8]:
    """Class of each code point."""
    table = np.full(0x110000, _WORD, np.uint8)
    table[:0x20000] = [_class_of(chr(code)) for code in range(0x20000)]
    table[0xE0000:0xE1000] = _SEPARATOR  # tags and variation selectors
    letters = _without_spaces() & (table == _WORD)
    table[letters] = _SIGN
    return table


@cache
def _without_spaces() -> NDArray[np.bool_]:
    alone = np.zeros(0x110000, np.bool_)
    for first, last in _WITHOUT_SPACES:
        alone[first : last + 1] = True
    return alone
