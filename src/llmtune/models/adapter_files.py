"""An adapter's folder as PEFT writes it: what its config says, without loading a weight."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.errors import ModelError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterFiles:
    """The folder of an adapter that PEFT wrote."""

    folder: Path
    base: str
    """The base model, as `model=` takes it."""
    revision: str | None
    """Commit of the base model, where the adapter names one."""
    rank: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]
    trained_tokens: tuple[int, ...] = ()
    """Ids of the tokens whose rows of the embeddings it trained."""
    special: tuple[str, ...] = ()
    """PEFT's options that it uses and that training here can't go on with."""


def is_adapter(folder: Path) -> bool:
    """Whether PEFT wrote the folder."""
    return (folder / CONFIG_FILE).is_file()


def read_adapter(folder: Path, asked: str) -> AdapterFiles:
    """What an adapter's folder says of itself.

    Raises:
        ModelError: it is no LoRA adapter with safetensors weights.
    """
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        kind, base = content["peft_type"], content["base_model_name_or_path"]
        shape = {"rank": int(content["r"]), "alpha": float(content["lora_alpha"])} if kind == "LORA" else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{asked}: {folder / CONFIG_FILE} can't be read as PEFT writes it ({error})") from error
    if kind != "LORA":
        raise ModelError(f"{asked}: is a PEFT adapter of type {kind}; only LORA is known")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"{asked}: has no {WEIGHTS_FILE}, and pickled weights (.bin) are never read; save it with a newer PEFT"
        )
    targets = content.get("target_modules") or ()
    return AdapterFiles(
        folder=folder,
        base=str(base),
        revision=content.get("revision"),
        dropout=float(content.get("lora_dropout") or 0.0),
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        trained_tokens=_trained_tokens(content),
        special=tuple(_special(content)),
        **shape,
    )


def _trained_tokens(content: Mapping[str, Any]) -> tuple[int, ...]:
    """A list of ids, or one a layer."""
    listed = content.get("trainable_token_indices") or []
    lists = listed.values() if isinstance(listed, Mapping) else [listed]
    return tuple(sorted({int(index) for ids in lists for index in ids}))


def _special(content: Mapping[str, Any]) -> Iterator[str]:
    """Options of an adapter beyond rank, alpha, dropout and targets."""
    for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"):
        if content.get(name):
            yield name
    if content.get("bias", "none") != "none":
        yield "bias"
    if isinstance(content.get("target_modules"), str):
        yield "target_modules as a pattern"
