"""Text that a model writes on from prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmtune.errors import UserError
from llmtune.evaluation.inference import inference
from llmtune.logs import warn
from llmtune.models.attention import plain_attention, underlying_model
from llmtune.models.precision import Precision
from llmtune.models.prompting import left_padded, pad_token_id, stop_token_ids
from llmtune.seeding import derived_seed

_ROWS_AT_ONCE = 16

Prompt = str | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How text is sampled."""

    max_new_tokens: int
    """Tokens to write, at most; an end token ends a text earlier."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Samples among the likeliest tokens that hold this share of the probability; 1 turns it off."""
    top_k: int = 0
    """Samples among this many likeliest tokens; 0 turns it off."""
    num_samples: int = 1
    """Texts a prompt. Greedy ones are all the same."""
    seed: int = 1
    """The same seed, prompts and device give the same texts; no random stream outside is moved."""
    precision: Precision
    """Type of the matrix products."""
    device: torch.device
    """Where the model is."""


def generate_texts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], settings: GenerationSettings
) -> list[str]:
    """What the model writes after each prompt, without the prompt and without special tokens.

    The model's own sampling defaults (such as a repetition penalty) don't apply, only what `settings` says.

    Args:
        model: causal language model, with PEFT adapters or without.
        tokenizer: its tokenizer.
        prompts: texts, or token ids taken as they are.
        settings: length, sampling and seed.

    Returns:
        `num_samples` texts for the first prompt, then as many for the second, and so on.

    Raises:
        UserError: a prompt fills all the positions that the model has.
    """
    inner = underlying_model(model)
    encoded = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    rows = [ids for ids in encoded for _ in range(settings.num_samples)]
    num_new = _room_for_new_tokens(inner, max(map(len, rows), default=0), settings.max_new_tokens)
    config = _generation_config(inner, tokenizer, settings, num_new)
    devices = [settings.device] if settings.device.type == "cuda" else []
    generate: Any = inner.generate  # torch types a module's attributes as tensors
    texts: list[str] = []
    with torch.random.fork_rng(devices), inference(inner, settings.precision), _only(inner, config):
        torch.manual_seed(derived_seed(settings.seed, "generate"))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            batch = rows[start : start + _ROWS_AT_ONCE]
            input_ids, attention_mask = left_padded(batch, pad_token_id(tokenizer), settings.device)
            written = generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config)
            texts += tokenizer.batch_decode(written[:, input_ids.shape[1] :], skip_special_tokens=True)
    return texts


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """A prompt's token ids; an empty one is the token that a text starts with."""
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [int(token) for token in ids] or [cast(int, start)]


def _room_for_new_tokens(model: PreTrainedModel, longest_prompt: int, wanted: int) -> int:
    """How many tokens can follow the longest prompt, at most `wanted`."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or longest_prompt + wanted <= positions:
        return wanted
    room = positions - longest_prompt
    if room <= 0:
        raise UserError(
            f"generate.prompt has {longest_prompt} tokens and the model reads {positions} at most; give a shorter one"
        )
    warn(f"only {room} of {wanted} new tokens fit: the prompt has {longest_prompt}, the model {positions} positions")
    return room


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings, max_new_tokens: int
) -> GenerationConfig:
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=settings.temperature > 0,
        eos_token_id=stop_token_ids(model.generation_config, tokenizer),
        pad_token_id=pad_token_id(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
    )
    if settings.temperature > 0:
        config.update(temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k)
    return config


@contextmanager
def _only(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in place of the model's own defaults and attend as transformers does; undone after the block."""
    own = model.generation_config
    model.generation_config = config  # generate() fills what a config leaves open from here
    try:
        with plain_attention(model):
            yield
    finally:
        model.generation_config = own
