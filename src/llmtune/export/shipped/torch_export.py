"""The model in this folder as a graph of torch.export: `pip install torch`, and for text `tokenizers jinja2`.

Load a `.pt2` only from people you trust: this one holds no pickle, but `torch.export.load` runs those that others hold.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch does without

import torch  # noqa: E402
from text import Text  # noqa: E402  # pyright: ignore[reportMissingImports]  # it stands beside this file


class Runtime:
    """The model one token after another, earlier keys and values kept; on a GPU where there is one.

    `model.pt2` takes `input_ids` int64 [B, S], `attention_mask` int64 [B, P + S], `position_ids` int64 [B, S] and each
    layer's key and value [B, key heads, P, head size]; it gives logits [B, S, V], then the keys and values of P + S.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.text = Text(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        program = torch.export.load(folder / "model.pt2")
        self._past_shapes = _past_shapes(program)
        module = program.module(check_guards=False)
        if self.device.type != "cpu":
            _move(module, self.device)
        # Called by `forward`, past the hook that works out in sympy, at every token, whether each shape is allowed:
        # it takes twice as long as the rest of what Python does here.
        self.model = module.forward
        self._mask = torch.zeros((0, 0), dtype=torch.long)
        self._past: Sequence[torch.Tensor] = ()

    @torch.inference_mode()
    def start(self, input_ids: Sequence[Sequence[int]], attention_mask: Sequence[Sequence[int]]) -> torch.Tensor:
        """Begin new texts, rows padded on the left: logits [B, T, V]."""
        new = torch.tensor(input_ids, device=self.device)
        self._mask = torch.tensor(attention_mask, device=self.device)
        self._past = [torch.zeros((len(new), heads, 0, size), device=self.device) for heads, size in self._past_shapes]
        return self._forward(new)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token further in each row: logits [B, V]."""
        new = torch.tensor(tokens, device=self.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)
        return self._forward(new)[:, -1]

    def _forward(self, new: torch.Tensor) -> torch.Tensor:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits, *self._past = self.model(new, self._mask, positions, *self._past)
        return logits.cpu()


def _move(module: Any, device: torch.device) -> None:
    """Move weights and constants, and let every operation that makes a tensor make it there.

    torch's own `move_to_device_pass` fails on programs that were loaded from a file (torch 2.11 to 2.13).
    """
    module.to(device)
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                setattr(part, name, value.to(device))
        for node in part.graph.nodes if hasattr(part, "graph") else ():
            node.args = tuple(device if isinstance(one, torch.device) else one for one in node.args)
            if node.kwargs.get("device") is not None:
                node.update_kwarg("device", device)
        if hasattr(part, "recompile"):
            part.recompile()


def _past_shapes(program: Any) -> list[tuple[int, int]]:
    """Key heads and head size of every tensor of the past, as the graph's inputs say."""
    names = program.graph_signature.user_inputs[3:]
    shapes = {node.name: node.meta["val"].shape for node in program.graph.find_nodes(op="placeholder")}
    return [(int(shapes[name][1]), int(shapes[name][3])) for name in names]
