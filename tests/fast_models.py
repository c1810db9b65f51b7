"""Tiny models of the Llama family, with each method's layers, for the tests of llmtune's decoder."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from llmtune.config.method import LoraConfig
from llmtune.methods.adapter import add_adapter
from llmtune.models.attention import VARLEN, set_attention
from tiny_shapes import SHAPE, VOCABULARY

LENGTHS = (11, 4, 30, 2, 25)
FAMILY: dict[str, dict[str, Any]] = {
    "Llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "Mistral": {"sliding_window": 64},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {"hidden_act": "gelu_pytorch_tanh"},
}


def tiny(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
    """A random causal language model of an architecture; its norms and biases random too."""
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, "hidden_act": "silu", **FAMILY[name], **settings})
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    set_attention(model, VARLEN)
    return model.eval()


def adapted(model: PreTrainedModel, *, dropout: float = 0.0, filled: bool = True, targets: Any = "all-linear") -> Any:
    """The model with adapters, whose second halves are random instead of zero where `filled`."""
    model.requires_grad_(False)
    tuned = add_adapter(model, LoraConfig(rank=4, dropout=dropout, target_modules=targets), 0)
    if filled:
        torch.manual_seed(4)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    is_double = model.get_input_embeddings().weight.dtype == torch.float64
    return tuned.double() if is_double else tuned


def packed_row(lengths: Sequence[int] = LENGTHS, device: str = "cpu") -> dict[str, Any]:
    """A row of random examples, as the forward pass takes it."""
    num_tokens = sum(lengths)
    ends = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    row = torch.randint(0, VOCABULARY, (1, num_tokens), generator=torch.Generator().manual_seed(5))
    longest = {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return {
        "input_ids": row.to(device),
        "position_ids": positions.to(device),
        "attention_mask": None,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        **longest,
    }


def hidden_and_gradients(
    model: nn.Module, states: Any, row: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Final hidden states, and gradients by name of a fixed random combination of them.

    Args:
        model: whose parameters get gradients.
        states: from a row to hidden states [1, T, D].
        row: from `packed_row`.
    """
    model.zero_grad(set_to_none=True)
    hidden = states(row)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    (hidden.double() * weights.to(hidden.device)).sum().backward()
    return hidden.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest share of its norm by which a parameter's gradient differs."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    return max(
        float((found[name].double() - expected[name].double()).norm() / expected[name].double().norm())
        for name in expected
    )
