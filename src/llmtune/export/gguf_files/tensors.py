"""A model's weights as llama.cpp names, orders and stores them, one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmtune.errors import ExportCheckFailed
from llmtune.export.gguf_files.architecture import Architecture, architecture_of
from llmtune.export.gguf_files.metadata import rope_factors

_SUFFIXES = (".weight", ".bias")
_PLAIN = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
_Kind = gguf.GGMLQuantizationType


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of the file, made from a weight when it is written."""

    name: str
    weight: Tensor
    kind: _Kind
    heads: int | None = None
    """Number of heads whose rows are put in pairs."""
    offset: float = 0.0
    """What is added to it."""
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, rows first."""
        shape = tuple(self.weight.shape)
        return shape[::-1] if self.transposed else shape

    @property
    def num_bytes(self) -> int:
        """Its size in the file, filling left out."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.weight.numel() // block * size

    def values(self) -> np.ndarray:
        """What stands in the file.

        Raises:
            ExportCheckFailed: a weight is too large for 16 bits.
        """
        weight = self.weight.detach().float().cpu()
        if self.transposed:
            weight = weight.T
        if self.heads is not None:
            weight = paired_rows(weight, self.heads)
        plain = (weight + self.offset).contiguous().numpy() if self.offset else weight.contiguous().numpy()
        if self.kind not in _PLAIN:
            return gguf.quantize(plain, self.kind)
        with np.errstate(over="ignore"):
            stored = plain.astype(_PLAIN[self.kind])
        if not np.isfinite(stored).all():
            raise ExportCheckFailed(
                f"{self.name} has weights up to {np.abs(plain).max():.3g}, and 16 bits hold 65504; "
                "ship the model with export.formats=[hf]"
            )
        return stored


def paired_rows(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head reordered from two halves to pairs: 0, n, 1, n + 1, ... for a head of 2n rows."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def stored_tensors(model: PreTrainedModel, kind: _Kind) -> Iterator[StoredTensor]:
    """Every tensor of the file.

    Args:
        model: merged model.
        kind: type of the matrices; what doesn't fill whole blocks is F16, vectors stay F32.

    Raises:
        ExportCheckFailed: a weight has no place in llama.cpp's form.
    """
    config: Any = model.config
    architecture = architecture_of(config)
    names = gguf.get_tensor_name_map(architecture.number, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name.startswith("lm_head."):
            continue  # llama.cpp takes the embedding where there is no output
        stored = names.get_name(name, try_suffixes=_SUFFIXES)
        if stored is None:
            raise ExportCheckFailed(f"{name} has no place in a {architecture.name} GGUF file")
        yield StoredTensor(
            name=stored,
            weight=weight,
            kind=_kind_of(stored, weight, kind, transposed=_is_transposed(name, weight, architecture)),
            heads=_paired_heads(name, config, architecture),
            offset=architecture.norm_offset if name.endswith("norm.weight") else 0.0,
            transposed=_is_transposed(name, weight, architecture),
        )
    factors = rope_factors(config)
    if factors is not None:
        yield StoredTensor(name="rope_freqs.weight", weight=torch.from_numpy(factors), kind=_Kind.F32)


def write_tensors(writer: gguf.GGUFWriter, tensors: list[StoredTensor]) -> None:
    """Write the whole file, each tensor made when its turn comes, so that no second copy of the weights is held."""
    for tensor in tensors:
        plain = tensor.kind in _PLAIN
        shape = tensor.shape if plain else gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind)
        dtype = np.dtype(_PLAIN[tensor.kind] if plain else np.uint8)
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.num_bytes, None if plain else tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.values())
    writer.close()


def _kind_of(name: str, weight: Tensor, kind: _Kind, *, transposed: bool) -> _Kind:
    if weight.ndim < 2:
        return _Kind.F32
    if name.startswith("position_embd"):
        return _Kind.F32  # added to F32 numbers, which llama.cpp does with F32 alone
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if weight.shape[0 if transposed else -1] % block == 0 else _Kind.F16


def _is_transposed(name: str, weight: Tensor, architecture: Architecture) -> bool:
    """Whether it is one of GPT-2's projections, which transformers keeps as input times output."""
    return architecture.transposed and weight.ndim == 2 and ".c_" in name


def _paired_heads(name: str, config: Any, architecture: Architecture) -> int | None:
    if not architecture.pairs_rows:
        return None
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None
