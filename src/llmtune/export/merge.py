"""The trained model on the base that it is merged into: unmerged to compare with, merged to ship."""

import warnings
from collections import Counter
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmtune.errors import ExportCheckFailed
from llmtune.export.format import ExportContext
from llmtune.methods.adapter import attach_adapter
from llmtune.models.float32_products import compute_in_float32, has_narrow_buffers
from llmtune.models.load import LoadSettings, checkpoint_dtype, load_base


def load_unmerged(context: ExportContext, merge_base: str | None = None) -> PeftModel | PreTrainedModel:
    """The trained model as it is to be shipped but unmerged, in evaluation mode; it computes in float32.

    Args:
        context: the trained model.
        merge_base: `original` or `dequantized`; None as `export.merge_base` says.
    """
    chosen = merge_base or context.settings.merge_base
    model = _beside_base(context, chosen, dtype=None)
    if has_narrow_buffers(model):
        del model
        return _beside_base(context, chosen, torch.float32)
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):  # it reads its matrix by itself, beside the trained float32 rows
            matrix: Any = module.get_base_layer()
            matrix.weight.data = matrix.weight.data.float()
    compute_in_float32(model)
    return model


def load_merged(context: ExportContext, *, dtype: torch.dtype | None = torch.float32) -> PreTrainedModel:
    """One plain model in evaluation mode.

    Each weight is merged in float32 and rounded once, one layer after the other: with `dtype=None` no more memory is
    taken than the model's own size and a layer.

    Args:
        context: the trained model.
        dtype: float32, or None for the type of the base's own weights.

    Raises:
        ExportCheckFailed: the adapter has values that aren't finite, or changes a weight that another layer shares.
    """
    wanted = dtype or checkpoint_dtype(context.source)
    model = _beside_base(context, context.settings.merge_base, wanted)
    if isinstance(model, PeftModel):
        try:
            _merge_by_layer(model)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="All adapters are already merged")
                model = model.merge_and_unload()  # the plain layers take the places of the adapters'
        except (ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ExportCheckFailed(
                f"the adapter in {context.checkpoint} can't be merged: {error}; export an earlier checkpoint"
            ) from error
    for parameter in model.parameters():  # a tied weight is one parameter and stays one
        parameter.data = parameter.data.to(wanted)
    return model.requires_grad_(False).eval()


def _beside_base(context: ExportContext, merge_base: str, dtype: torch.dtype | None) -> PeftModel | PreTrainedModel:
    """Base and adapter, or the whole trained model; weights in `dtype`, None for that of the files."""
    if not context.has_adapter:
        own = dtype or _trained_dtype(context)
        return load_base(context.source, dtype=own, device=context.float32_device, folder=context.checkpoint).eval()
    if merge_base == "dequantized":
        base = _dequantized_base(context)
    else:
        own = dtype or checkpoint_dtype(context.source)
        base = load_base(context.source, dtype=own, device=context.float32_device)
    return attach_adapter(base.eval(), context.checkpoint)


def _trained_dtype(context: ExportContext) -> torch.dtype:
    """The type in which a wholly trained model was saved: float32 master values, or the base's own where untrained."""
    return checkpoint_dtype(context.source) if context.method.name == "none" else torch.float32


def _dequantized_base(context: ExportContext) -> PreTrainedModel:
    """The base in float32, the values of its 4-bit layers those that training saw."""
    how = LoadSettings(compute_dtype=context.precision.compute_dtype, device=context.device)
    quantised = context.method.load(context.source, how)
    base = load_base(context.source, dtype=torch.float32, device=context.float32_device)
    for name, layer in quantised.named_modules():
        if isinstance(layer, Linear4bit):
            weight: Any = layer.weight
            seen = dequantize_4bit(weight.data, weight.quant_state)
            own: Any = base.get_submodule(name)
            own.weight.data.copy_(seen.T if isinstance(own, Conv1D) else seen)
    return base


def _merge_by_layer(model: PeftModel) -> None:
    """Fold every adapter into its layer's weight, computed in float32 and rounded to the weight's type once."""
    _refuse_shared(model)
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        weights = list(module.get_base_layer().parameters(recurse=False))
        types = [weight.dtype for weight in weights]
        for weight in weights:
            weight.data = weight.data.float()
        module.merge(safe_merge=True)
        for weight, dtype in zip(weights, types, strict=True):
            weight.data = weight.data.to(dtype)


def _refuse_shared(model: PeftModel) -> None:
    """Refuse an adapter on a weight that another layer uses too: merged, it would change both.

    Raises:
        ValueError: names the layer.
    """
    users: Counter[int] = Counter(
        id(weight) for module in model.modules() for weight in module.parameters(recurse=False)
    )
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and users[id(module.get_base_layer().weight)] > 1:
            raise ValueError(f"it changes {name.removeprefix('base_model.model.')}, whose weight another layer shares")
