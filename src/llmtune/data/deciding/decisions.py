"""What is known of each row before it is tokenised, and what becomes of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtune.data.cleaning.groups import Flags, Indices
from llmtune.data.cleaning.outliers import KINDS

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
DROPPED = -1
LEVELS = ("exact", "normalised", "near")
"""Of likeness; each takes in those before it."""

IN_TEST_FILE = "also in the test file"
SHORT, LONG = "fewer words than data.min_words", "more words than data.max_words"
PERSONAL = "personal data"
THINNED = "left out by its source's weight"
DUPLICATE = {"exact": "duplicate", "normalised": "duplicate but for case, white space or punctuation"}
DUPLICATE["near"] = "near-duplicate"
OVERLAP = {"exact": IN_TEST_FILE, "normalised": f"{IN_TEST_FILE} but for case, white space or punctuation"}
OVERLAP["near"] = "near-duplicate of an example of the test file"
IN_TEST_GROUP = "of a group that also stands in the test file"
STRADDLES = {name: f"near-duplicate of a {name} example" for name in ("test", "validation")}
OUTLIER = {kind: f"outlier: {kind}" for kind in KINDS}
OVER_LIMIT = {name: f"over the limit of {name} examples" for name in SPLITS}
REASONS = (
    "",
    *(SHORT, LONG, PERSONAL, *OUTLIER.values(), *DUPLICATE.values(), *OVERLAP.values(), *STRADDLES.values()),
    *(IN_TEST_GROUP, THINNED, *OVER_LIMIT.values()),
)
"""Why a row is left out, in the order in which it's asked; the first stands for a row that is kept."""


@dataclass(frozen=True)
class ScanColumns:
    """What the scan knows of each row that holds an example, in the sources' order; a test file's rows among them."""

    source: NDArray[np.int16]
    is_eval: Flags
    """Whether the row stands in the test file."""
    line: NDArray[np.int64]
    exact: NDArray[np.uint64]
    """[N, 2] First bytes of the content hash."""
    normalised: NDArray[np.uint64]
    place: NDArray[np.float64]
    """Of `split_place`."""
    select_place: NDArray[np.float64]
    group: NDArray[np.uint64]
    """Of `group_key`."""
    num_words: NDArray[np.int32]
    repetition: NDArray[np.float32]
    odd_share: NDArray[np.float32]
    personal: NDArray[np.uint32]
    """A bit for each kind of personal data that was found."""


@dataclass(frozen=True)
class Duplicates:
    """Rows of the training data that are like one before them."""

    exact: int
    normalised: int
    """Those that aren't exact duplicates."""
    near: int
    """Those that are neither."""
    num_groups: int
    listed: list[tuple[int, int, float]]
    """First row, other row, and their likeness."""


@dataclass(frozen=True)
class Overlap:
    """Rows of the training data that are like one of the test set, and therefore left out."""

    exact: int
    normalised: int
    near: int
    listed: list[tuple[int, int]]
    """The row that is left out, and the first of its group in the test set."""


@dataclass(frozen=True)
class Decisions:
    """What becomes of each row."""

    split: NDArray[np.int8]
    """[N] Place in `SPLITS`, or -1 where the row is left out."""
    reason: NDArray[np.uint8]
    """[N] Place in `REASONS`: why the row is left out; 0 where it's kept."""
    times: NDArray[np.int32]
    """[N] How often an epoch takes the row: its source's weight, for training rows; 0 where it is left out."""
    duplicates: Duplicates
    overlap: Overlap
    outliers: dict[str, Indices]
    """Rows by kind; empty where they aren't looked for."""
    warnings: list[str]
    select_place: NDArray[np.float64]
    clusters: Indices
    """[N] A row of what each row belongs to: rows of one group, or near-duplicates; see `clusters_of`."""

    def order(self, name: str) -> Indices:
        """The rows of a split in an order that follows from their content, repeated as the weights ask."""
        rows = np.flatnonzero(self.split == SPLITS.index(name))
        rows = rows[np.argsort(self.select_place[rows], kind="stable")]
        return np.repeat(rows, self.times[rows])

    def num_kept(self) -> dict[str, int]:
        """Rows by split, each counted once."""
        return {name: int(np.count_nonzero(self.split == place)) for place, name in enumerate(SPLITS)}

    def num_repeated(self) -> int:
        """How many training examples are there only because a source's weight repeats them."""
        return int(np.maximum(self.times - 1, 0).sum())

    def num_dropped(self, among: Flags | None = None) -> dict[str, int]:
        """Rows left out by reason, of all or of some rows."""
        counts = np.bincount(self.reason if among is None else self.reason[among], minlength=len(REASONS))
        return {reason: int(n) for reason, n in zip(REASONS[1:], counts[1:], strict=True) if n}
