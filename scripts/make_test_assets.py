"""Builds `tests/assets`: tiny random Llama and GPT-2 models with a tokenizer, and small files of examples.

Usage: python scripts/make_test_assets.py [FOLDER]

The same versions of torch and tokenizers give the same bytes.
"""

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

ASSETS = Path(__file__).resolve().parents[1] / "tests" / "assets"
VOCABULARY = 384
NUM_EXAMPLES = 200
NUM_TEXTS = 60
ANIMALS = ("cat", "dog", "owl", "fox", "hen", "bee", "cow", "ant")
PLACES = ("barn", "tree", "lake", "roof", "field", "house")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def examples() -> Iterator[dict[str, str]]:
    """Prompt and completion rows that a tiny model can learn: sums, spelling, word order; no two alike."""
    rng = random.Random(0)
    seen: set[str] = set()
    while len(seen) < NUM_EXAMPLES:
        kind = len(seen) % 3
        if kind == 0:
            first, second = rng.randint(1, 40), rng.randint(1, 40)
            prompt, completion = f"add {first} and {second}:", f" {first} + {second} = {first + second}"
        elif kind == 1:
            words = rng.sample(ANIMALS, 3)
            prompt, completion = f"reverse {' '.join(words)}:", f" {' '.join(reversed(words))}"
        else:
            animal, place, count = rng.choice(ANIMALS), rng.choice(PLACES), rng.randint(2, 9)
            prompt, completion = f"{count} {animal}s in the {place}. who?", f" the {animal}s are in the {place}."
        if prompt not in seen:
            seen.add(prompt)
            yield {"prompt": prompt, "completion": completion}


def texts() -> Iterator[dict[str, str]]:
    """Rows of plain text whose column is `text` and `content` in turn; no two alike."""
    rng = random.Random(1)
    for number in range(NUM_TEXTS):
        animal, other, place = rng.choice(ANIMALS), rng.choice(ANIMALS), rng.choice(PLACES)
        sentence = f"Day {number}: the {animal} saw the {other} near the {place}, and then the {animal} went home."
        yield {"text" if number % 2 == 0 else "content": sentence}


def write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def byte_level_tokenizer(special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer trained on the examples; ids 0, 1, ... are `special_tokens`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [" ".join(row.values()) for rows in (examples(), texts()) for row in rows]
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def llama() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A Llama with grouped-query attention and a tied head; pad is eos; a chat template without markers."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config), tokenizer


def gpt2() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A GPT-2 with learned positions, dropout and a pad token of its own; no chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(["<|endoftext|>", "<|pad|>"]),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=256,
    )
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_inner=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return GPT2LMHeadModel(config), tokenizer


def main(folder: Path) -> None:
    """Write every asset into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in (("tiny_llama", llama), ("tiny_gpt2", gpt2)):
        torch.manual_seed(0)
        model, tokenizer = build()
        shutil.rmtree(folder / name, ignore_errors=True)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_rows(folder / "examples.jsonl", examples())
    write_rows(folder / "text.jsonl", texts())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS)
