"""Who trains in `bench_train.py`, and where each is to be had."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any

from bench_train_ours import Setting, run_ours
from bench_train_trainer import (
    ALPHA,
    RANK,
    TARGETS,
    Variant,
    batches_of,
    begin,
    load_model,
    lora_config,
    run_trainer,
    train_in_turns,
    training_arguments,
)
from bench_train_turns import Wire
from bench_train_work import ROW_TOKENS, Examples, Work

FLASH = "flash_attn"


def run_trl(work: Work, wire: Wire, packed: bool) -> None:
    """TRL's SFTTrainer at its best: flash attention and Liger's kernels where they are to be had."""
    import torch
    from transformers import AutoTokenizer

    trl = import_module("trl")
    facts, examples, turns = begin(work, wire, "bf16")
    on_gpu = torch.cuda.is_available()
    flash, liger = (on_gpu and importlib.util.find_spec(name) is not None for name in (FLASH, "liger_kernel"))
    batches = batches_of(work, examples, padded=not packed, packs_rows=packed, on_gpu=on_gpu)
    arguments = training_arguments(
        trl.SFTConfig,
        work,
        batches.rows,
        bf16=True,
        packing=packed,
        packing_strategy="bfd",
        max_length=batches.longest,
        use_liger_kernel=liger,
    )
    facts |= {"attention": "flash_attention_2" if flash else "sdpa", "liger": liger}
    trainer = trl.SFTTrainer(
        model=load_model(work, bf16=True, attention=facts["attention"]),
        args=arguments,
        train_dataset=_data_set(examples),
        processing_class=AutoTokenizer.from_pretrained(work.model),
        peft_config=None if work.method == "full" else lora_config(),
    )
    train_in_turns(trainer, turns, facts, examples)


def run_unsloth(work: Work, wire: Wire, packed: bool) -> None:
    """Unsloth's model in its SFTTrainer."""
    language_model = import_module("unsloth").FastLanguageModel  # before all others, which it changes
    import torch

    trl = import_module("trl")
    facts, examples, turns = begin(work, wire, "bf16")
    batches = batches_of(work, examples, padded=not packed, packs_rows=packed, on_gpu=True)
    model, tokenizer = language_model.from_pretrained(
        work.model,
        max_seq_length=ROW_TOKENS,
        dtype=torch.bfloat16,
        load_in_4bit=work.method == "qlora",
        full_finetuning=work.method == "full",
        local_files_only=True,
        use_gradient_checkpointing=work.checkpointing,
    )
    if work.method != "full":
        model = language_model.get_peft_model(
            model,
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0,
            bias="none",
            target_modules=TARGETS,
            use_gradient_checkpointing=work.checkpointing,
            random_state=0,
        )
    packing = {"packing": True} if packed else {}
    arguments = training_arguments(
        trl.SFTConfig,
        work,
        batches.rows,
        bf16=True,
        max_length=batches.longest,
        gradient_checkpointing_kwargs=None,
        **packing,
    )
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=_data_set(examples), processing_class=tokenizer)
    train_in_turns(trainer, turns, facts, examples)


def _data_set(examples: Examples) -> Any:
    """As their trainers take tokens: with labels only where something isn't learnt."""
    from datasets import Dataset

    columns = {"input_ids": [ids.tolist() for ids in examples.ids]}
    if not examples.all_supervised:
        columns["labels"] = [labels.tolist() for labels in examples.labels]
    return Dataset.from_dict(columns)


@dataclass(frozen=True)
class Entry:
    """A contender."""

    run: Callable[[Work, Wire], None]
    """Trains; see `Turns`."""
    package: str | None = None
    """What must be installed beside what llmtune needs."""
    needs_gpu: bool = False
    takes_extra: bool = False
    """Whether the folder of `--extra-path` is on its path."""
    own_site: bool = False
    """Whether the folder of `--unsloth-site` is."""


def _trainer(**how: bool) -> Entry:
    return Entry(partial(run_trainer, variant=Variant(**how)))


CONTENDERS: Mapping[str, Entry] = {
    "ours": Entry(partial(run_ours, setting=Setting())),
    "ours-fp32": Entry(partial(run_ours, setting=Setting(precision="fp32"))),
    "ours-defaults": Entry(partial(run_ours, setting=Setting(as_peers=False))),
    "trainer": _trainer(bf16=False),
    "trainer-bf16": _trainer(),
    "trainer-packed": _trainer(packed=True),
    "trainer-packed-fp32": _trainer(bf16=False, packed=True),
    "trainer-packed-lean": _trainer(packed=True, lean=True),
    "trl": Entry(partial(run_trl, packed=False), "trl", takes_extra=True),
    "trl-packed": Entry(partial(run_trl, packed=True), "trl", takes_extra=True),
    "unsloth": Entry(partial(run_unsloth, packed=False), "unsloth", True, True, True),
    "unsloth-packed": Entry(partial(run_unsloth, packed=True), "unsloth", True, True, True),
}
"""By name; those that begin with `ours` are llmtune."""


def search_path(entry: Entry, unsloth_site: str | None, extra: list[str]) -> list[str]:
    """Folders that a contender's own path begins with."""
    return [*([unsloth_site] if entry.own_site and unsloth_site else []), *(extra if entry.takes_extra else [])]


def why_not(entry: Entry, path: list[str], *, on_gpu: bool) -> str | None:
    """Why a contender can't take part here; None where it can."""
    if entry.needs_gpu and not on_gpu:
        return "needs a GPU"
    if entry.package is None:
        return None
    found = PathFinder.find_spec(entry.package, path) or importlib.util.find_spec(entry.package)
    return None if found else f"{entry.package} isn't installed"


def environment(path: list[str], folder: str) -> dict[str, str]:
    """A contender's environment."""
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*path, *known]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": f"{folder}/unsloth",
    }
