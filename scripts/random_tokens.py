"""Random examples for benchmarks of the loop, in memory."""

import numpy as np


class RandomTokens:
    """Examples of one length, every token supervised; stands for a TokenTable.

    Args:
        count: how many.
        num_tokens: of each.
        vocabulary: how many different tokens there are.
    """

    def __init__(self, count: int, num_tokens: int, vocabulary: int) -> None:
        self._ids = np.random.default_rng(0).integers(0, vocabulary, (count, num_tokens)).astype(np.int32)
        self.num_tokens = np.full(count, num_tokens, dtype=np.int64)
        self.num_supervised_tokens = self.num_tokens - 1

    def __len__(self) -> int:
        return len(self._ids)

    def input_ids(self, index: int) -> np.ndarray:
        """An example's tokens."""
        return self._ids[index]

    def labels(self, index: int) -> np.ndarray:
        """The same: every token is supervised."""
        return self._ids[index]
