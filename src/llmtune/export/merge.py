"""The trained model in float32 on the unquantised base: unmerged to compare with, merged to ship."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llmtune.errors import ExportCheckFailed
from llmtune.export.format import ExportContext
from llmtune.methods.adapter import attach_adapter
from llmtune.models.load import checkpoint_dtype, load_base


def load_unmerged(context: ExportContext) -> PeftModel | PreTrainedModel:
    """The trained model in float32, its adapter beside the unquantised base; in evaluation mode."""
    folder = None if context.has_adapter else context.checkpoint
    device = context.float32_device
    base = load_base(context.source, dtype=torch.float32, attention="sdpa", device=device, folder=folder).eval()
    if not context.has_adapter:
        return base
    return attach_adapter(base, context.checkpoint)


def load_merged(context: ExportContext) -> PreTrainedModel:
    """One plain model in the type of the base's own weights, computed in float32 and rounded once at the end.

    Raises:
        ExportCheckFailed: the adapter has values that aren't finite.
    """
    model = load_unmerged(context)
    if isinstance(model, PeftModel):
        try:
            model = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ExportCheckFailed(
                f"the adapter in {context.checkpoint} can't be merged: {error}; export an earlier checkpoint"
            ) from error
    dtype = checkpoint_dtype(context.source)
    for parameter in model.parameters():  # a tied weight is one parameter and stays one
        parameter.data = parameter.data.to(dtype)
    return model
