"""The model in this folder as TorchScript: `pip install torch`, and for text `tokenizers jinja2`."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch does without

import torch  # noqa: E402
from text import Text  # noqa: E402  # pyright: ignore[reportMissingImports]  # it stands beside this file


class Runtime:
    """The model one token after another, earlier keys and values kept; on a GPU where there is one.

    `model.ts` takes `input_ids` int64 [B, S], `attention_mask` int64 [B, P + S], `position_ids` int64 [B, S] and each
    layer's key and value [B, key heads, P, head size]; it gives logits [B, S, V], then the keys and values of P + S.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.text = Text(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.model: Any = torch.jit.load(str(folder / "model.ts"), map_location=self.device).eval()
        self._mask = torch.zeros((0, 0), dtype=torch.long)
        self._past: Sequence[torch.Tensor] = ()

    @torch.inference_mode()
    def start(self, input_ids: Sequence[Sequence[int]], attention_mask: Sequence[Sequence[int]]) -> torch.Tensor:
        """Begin new texts, rows padded on the left: logits [B, T, V]."""
        new = torch.tensor(input_ids, device=self.device)
        self._mask = torch.tensor(attention_mask, device=self.device)
        self._past = self.model.empty_past(new)
        return self._forward(new)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token further in each row: logits [B, V]."""
        new = torch.tensor(tokens, device=self.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)
        return self._forward(new)[:, -1]

    def _forward(self, new: torch.Tensor) -> torch.Tensor:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        with torch.jit.optimized_execution(False):  # it would compile anew for lengths, and decode no faster
            logits, *self._past = self.model(new, self._mask, positions, *self._past)
        return logits.cpu()
