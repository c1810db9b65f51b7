"""How far an exported model is from the trained one: logits, token distributions, greedy text, loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from llmtune.data.collate import collate
from llmtune.data.token_table import TokenTable
from llmtune.export.format import ExportContext
from llmtune.export.report import Figure
from llmtune.models.attention import underlying_model
from llmtune.models.precision import Precision
from llmtune.models.prompting import left_padded, pad_token_id
from llmtune.models.token_loss import token_losses

_NUM_PROMPTS = 4
_LONGEST_PROMPT = 128
_GREEDY_STEPS = 32
_LOSS_EXAMPLES = 64
_LOSS_TOKENS = 4096
_LOSS_BATCH = 8


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from the trained model."""

    logits: float | None
    """Largest logit difference over the largest logit; None only reports it, and the greedy text with it."""
    largest_kl: float | None = None
    """Nats, on any one token."""
    mean_kl: float | None = None
    """Nats, mean over the tokens."""
    loss_rise: float | None = None
    """Nats per supervised token."""


SAME_FILES = Bounds(logits=1e-5, largest_kl=1e-6)
"""The same weights in the same layers: rounding of sums only."""

MERGED = {
    torch.float32: Bounds(logits=1e-4, largest_kl=1e-6),
    # Rounding a weight to 8 bits of mantissa moves it by up to 0.4 %: on a 135M model the mean KL was 1.4e-3 and the
    # loss rose by 2e-3, with 3 % of the largest logit at most. Ten times that means more than rounding.
    torch.bfloat16: Bounds(logits=None, mean_kl=0.02, loss_rise=0.02),
    # 11 bits of mantissa: mean KL 2.4e-5, loss rise 3e-4 on the same model. What fp16 can't hold shows far above this.
    torch.float16: Bounds(logits=None, mean_kl=1e-3, loss_rise=5e-3),
}
"""Bounds of a merged model by the type of its weights."""


@dataclass(frozen=True)
class Probe:
    """What one model says on the prompts; logits are float32 on the CPU."""

    logits: list[Tensor]
    """[T, V] a prompt, each computed alone."""
    padded_logits: Tensor
    """[B, V]: the first new token's, the prompts' first halves padded on the left in one batch."""
    greedy_tokens: Tensor
    """[B, steps] int64: what it writes on from there."""
    greedy_gaps: Tensor
    """[B, steps]: by how much the likeliest token leads the next."""


def parity_prompts(table: TokenTable, max_positions: int | None) -> list[list[int]]:
    """Token ids of examples from the shortest to the longest, cut to 128 tokens and the model's positions."""
    order = np.argsort(np.asarray(table.num_tokens), kind="stable")
    picks = np.unique(np.linspace(0, len(order) - 1, _NUM_PROMPTS).round().astype(int))
    room = _LONGEST_PROMPT if max_positions is None else min(_LONGEST_PROMPT, max_positions - _GREEDY_STEPS)
    return [table.input_ids(int(order[pick])).tolist()[: max(2, room)] for pick in picks]


@torch.inference_mode()
def probe(model: nn.Module, prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> Probe:
    """Run a model on the prompts in the type of its weights.

    Args:
        model: causal language model in evaluation mode; its generation settings are replaced by plain greedy ones.
        prompts: token ids.
        tokenizer: gives the padding token.
    """
    inner = underlying_model(model)
    device = next(inner.parameters()).device
    alone = [inner(torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu() for ids in prompts]
    pad = pad_token_id(tokenizer)
    plain = GenerationConfig(
        max_new_tokens=_GREEDY_STEPS,
        do_sample=False,
        pad_token_id=pad,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
    )
    generate: Any = inner.generate  # torch types a module's attributes as tensors
    inner.generation_config = plain  # no end token, no penalty: the same number of steps from every model
    input_ids, attention_mask = left_padded([ids[: max(1, len(ids) // 2)] for ids in prompts], pad, device)
    written = generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=plain)
    steps = torch.stack(written.logits, dim=1).float().cpu()  # [B, steps, V]
    best = steps.topk(2, dim=-1).values
    return Probe(alone, steps[:, 0], steps.argmax(-1), best[..., 0] - best[..., 1])


def compare(trained: Probe, exported: Probe, bounds: Bounds) -> list[Figure]:
    """The differences between two models as figures with their bounds."""
    cure = "export again, and report it if it stays: the export or a library lost weights"
    largest = max(float(logits.abs().max()) for logits in [*trained.logits, trained.padded_logits])
    pairs = [*zip(trained.logits, exported.logits, strict=True), (trained.padded_logits, exported.padded_logits)]
    difference = max(float((left - right).abs().max()) for left, right in pairs) / largest
    kl = torch.cat([_kl(left, right) for left, right in zip(trained.logits, exported.logits, strict=True)])
    same = torch.cat([left.argmax(-1) == right.argmax(-1) for left, right in pairs])
    tie = largest * (bounds.logits or 0.0)
    parted = _parted(trained, exported, tie)
    return [
        Figure("logit_difference", difference, bounds.logits, "largest logit difference / largest logit", cure),
        Figure("kl_largest", float(kl.max()), bounds.largest_kl, "largest KL divergence of a token, nats", cure),
        Figure("kl_mean", float(kl.mean()), bounds.mean_kl, "mean KL divergence of a token, nats", cure),
        Figure("top1_agreement", float(same.float().mean()), None, "share of positions with the same likeliest token"),
        Figure(
            "greedy_parted",
            float(parted),
            None if bounds.logits is None else 0.0,
            f"of {len(trained.logits)} prompts, those with other greedy tokens within {_GREEDY_STEPS}, ties left out",
            cure,
        ),
    ]


@torch.inference_mode()
def examples_loss(model: nn.Module, context: ExportContext, precision: Precision) -> float:
    """Nats per supervised token on up to 64 examples and 4,096 tokens, spread over the split."""
    table = context.examples
    pad = pad_token_id(context.tokenizer)
    device = next(model.parameters()).device
    chosen = _spread(table)
    total, count = 0.0, 0
    for start in range(0, len(chosen), _LOSS_BATCH):
        indices = chosen[start : start + _LOSS_BATCH]
        batch = collate(table, indices, packed=False, pad_token_id=pad).to(device)
        with precision.autocast():
            losses = token_losses(model, **batch.inputs)
        total += float(losses.double().sum())
        count += losses.numel()
    return total / max(1, count)


def _spread(table: TokenTable) -> list[int]:
    """Rows from all over the split, shortest first, within the limits on examples and tokens; one at least."""
    lengths = np.asarray(table.num_tokens)
    picks = np.unique(np.linspace(0, len(lengths) - 1, _LOSS_EXAMPLES).round().astype(int))
    by_chance = np.random.default_rng(0).permutation(picks)
    fits = np.cumsum(lengths[by_chance]) <= _LOSS_TOKENS
    kept = by_chance[: max(1, int(fits.sum()))]
    return kept[np.argsort(lengths[kept], kind="stable")].tolist()


def _kl(trained: Tensor, exported: Tensor) -> Tensor:
    """KL(trained || exported) of each position in nats, [T] float64."""
    left = trained.double().log_softmax(-1)
    right = exported.double().log_softmax(-1)
    return (left.exp() * (left - right)).sum(-1)


def _parted(trained: Probe, exported: Probe, tie: float) -> int:
    """How many prompts' greedy texts part where the trained model's two likeliest tokens were further than `tie`."""
    count = 0
    differ = trained.greedy_tokens != exported.greedy_tokens
    for row in range(len(differ)):
        steps = differ[row].nonzero()
        if len(steps) and float(trained.greedy_gaps[row, int(steps[0])]) > tie:
            count += 1
    return count
