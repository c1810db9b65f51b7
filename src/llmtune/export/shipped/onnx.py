"""The model in this folder in onnxruntime; needs `onnxruntime`, `numpy`, `tokenizers`, for conversations `jinja2`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from text import Text  # pyright: ignore[reportMissingImports]  # it stands beside this file


class Runtime:
    """The graph in a folder, one token after another, earlier keys and values kept; on the CPU.

    Args:
        folder: with `onnx/*.onnx` and the tokenizer's files.
        threads: processor cores that it computes on; 0 is all of them.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.text = Text(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        (file,) = sorted((folder / "onnx").glob("*.onnx"))
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._past = {one.name: one.shape for one in self.session.get_inputs() if one.name.startswith("past")}
        self._outputs = [one.name for one in self.session.get_outputs()]
        self._cache: dict[str, onnxruntime.OrtValue] = {}
        self._mask = np.zeros((0, 0), np.int64)

    def start(self, input_ids: Sequence[Sequence[int]], attention_mask: Sequence[Sequence[int]]) -> np.ndarray:
        """Begin new texts, rows padded on the left: logits [B, T, V]."""
        self._mask = np.array(attention_mask, np.int64)
        empty = {name: np.zeros((len(self._mask), *_sizes(shape)), np.float32) for name, shape in self._past.items()}
        self._cache = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in empty.items()}
        return self._forward(np.array(input_ids, np.int64))

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """One token further in each row: logits [B, V]."""
        new = np.array(tokens, np.int64)[:, None]
        self._mask = np.concatenate([self._mask, np.ones_like(new)], axis=1)
        return self._forward(new)[:, -1]

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        positions = (self._mask.cumsum(-1) - 1).clip(min=0)[:, -ids.shape[1] :]
        named = {"input_ids": ids, "attention_mask": self._mask, "position_ids": np.ascontiguousarray(positions)}
        fed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in named.items()}
        logits, *present = self.session.run_with_ort_values(self._outputs, {**fed, **self._cache})
        self._cache = dict(zip(self._past, present, strict=True))
        return logits.numpy()


def _sizes(shape: Sequence[int | str]) -> tuple[int, int, int]:
    """Heads, no token yet, head size."""
    return int(shape[1]), 0, int(shape[3])
