"""Fingerprints of records: equal content, equal words, nearly the same words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtune.data.cleaning.word_runs import WordRuns, word_runs
from llmtune.data.records import Record, own_text, whole_text

NUM_PERMUTATIONS = 64
"""Values of a signature."""

_SEED = 1
_ROWS_AT_A_TIME = 31  # rensa starts threads from 32 rows on, which would outlive a fork


@dataclass(frozen=True)
class Fingerprints:
    """Columns of fingerprints, a row a record; the same in every process."""

    exact: NDArray[np.uint64]
    """[N, 2] First 16 bytes of the content hash."""
    normalised: NDArray[np.uint64]
    """[N] Hash of the words, whatever their case, white space and punctuation."""
    signatures: NDArray[np.uint32] | None
    """[N, 64] MinHash over runs of five words; None where near-duplicates aren't looked for."""


def fingerprint(records: Sequence[Record], hashes: Sequence[str], *, near: bool) -> Fingerprints:
    """The fingerprints of records.

    Args:
        records: what is told apart.
        hashes: their content hashes.
        near: whether near-duplicates are looked for.
    """
    exact = np.array([exact_key(digest) for digest in hashes], np.uint64).reshape(-1, 2)
    texts = [whole_text(record) for record in records]
    whole = word_runs(texts)
    if not near:
        return Fingerprints(exact, whole.keys, None)
    # What a system prompt says is often the same in every row, and would make all of them near-duplicates.
    own_texts = [own_text(record) for record in records]
    return Fingerprints(exact, whole.keys, signatures_of(whole if own_texts == texts else word_runs(own_texts)))


def exact_key(digest: str) -> tuple[int, int]:
    """The first 16 bytes of a hex content hash, as two numbers."""
    return int(digest[:16], 16), int(digest[16:32], 16)


def signatures_of(texts: WordRuns) -> NDArray[np.uint32]:
    """MinHash signatures, [N, 64]: the share of equal values estimates the Jaccard likeness of two sets of runs."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    num_texts = len(texts.keys)
    signatures = np.empty((num_texts, NUM_PERMUTATIONS), np.uint32)
    for first in range(0, num_texts, _ROWS_AT_A_TIME):
        offsets = texts.offsets[first : first + _ROWS_AT_A_TIME + 1]
        runs = texts.runs[int(offsets[0]) : int(offsets[-1])]
        found = RMinHash.digest_matrix_from_flat_token_hashes(runs, offsets - offsets[0], NUM_PERMUTATIONS, _SEED)
        signatures[first : first + _ROWS_AT_A_TIME] = found.to_rows()
    return signatures
