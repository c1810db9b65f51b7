"""A split in memory whose tokens a test chooses."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from llmtune.evaluation.perplexity import LossSettings
from llmtune.models.precision import Precision

FP32 = Precision("fp32", "cpu", "test")
CPU = torch.device("cpu")


class ListTable:
    """Examples as lists: (ids, position of the first supervised token, bytes of the supervised text)."""

    def __init__(self, rows: Sequence[tuple[list[int], int, int]]) -> None:
        self._ids = [np.array(ids, dtype=np.int32) for ids, _, _ in rows]
        self._labels = [
            np.where(np.arange(len(ids)) >= first, np.array(ids, dtype=np.int32), -100).astype(np.int32)
            for ids, first, _ in rows
        ]
        self.num_tokens = np.array([len(ids) for ids in self._ids])
        self.num_supervised_tokens = np.array([int((labels[1:] != -100).sum()) for labels in self._labels])
        self.num_supervised_bytes = np.array([num_bytes for _, _, num_bytes in rows])

    def __len__(self) -> int:
        return len(self._ids)

    def input_ids(self, index: int) -> np.ndarray:
        return self._ids[index]

    def labels(self, index: int) -> np.ndarray:
        return self._labels[index]

    def example_ids(self) -> list[str]:
        return [f"example-{index}" for index in range(len(self))]

    def example_id(self, index: int) -> str:
        return self.example_ids()[index]


def random_rows(lengths: Sequence[int]) -> list[tuple[list[int], int, int]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(3, 380, length).tolist(), length // 3, 2 * length) for length in lengths]


@pytest.fixture(scope="session")
def ragged_table() -> ListTable:
    """Seven examples of 1 to 41 tokens; the first of one token has nothing to predict."""
    return ListTable(random_rows([1, 5, 41, 12, 3, 30, 12]))


@pytest.fixture(scope="session")
def list_table() -> Callable[[Sequence[tuple[list[int], int, int]]], ListTable]:
    """Makes a split out of lists."""
    return ListTable


@pytest.fixture(scope="session")
def loss_settings() -> Callable[..., LossSettings]:
    """Settings for float32 on the CPU, padded unless said otherwise."""

    def make(batch_tokens: int = 64, packed: bool = False) -> LossSettings:
        return LossSettings(batch_tokens=batch_tokens, packed=packed, pad_token_id=2, precision=FP32, device=CPU)

    return make
