"""Where a base model's files are, and which exactly: folder, resolved commit, digest of the weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtune.config.model import ModelConfig
from llmtune.errors import ModelError
from llmtune.hub_answers import FULL_COMMIT
from llmtune.models import embedded
from llmtune.models.adapter_files import is_adapter
from llmtune.models.digest import files_digest
from llmtune.models.hub import missing_weights, snapshot
from llmtune.models.vocabulary import Vocabulary

MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
CODE_FILES = ["*.py"]
_CODE_KEYS = ("auto_map", "custom_code", "_attn_implementation_internal", "_experts_implementation_internal")
"""Keys by which transformers loads code: from beside the weights, or kernels from the Hub."""
_POSITION_KEYS = ("max_position_embeddings", "n_positions")

_WITHOUT_HUB = "give a folder with model.path, or take the embedded model with model=smollm2_135m_instruct"


@dataclass(frozen=True)
class ModelSource:
    """A base model's files on this machine and what they are."""

    location: str
    """Hub id, or the folder's absolute path: what PEFT and transformers can load the model by."""
    folder: Path
    """Folder with config, tokenizer and safetensors."""
    revision: str | None
    """Commit on the Hub that was resolved; None for a folder."""
    weights_digest: str
    """Hex SHA-256 over the safetensors files."""
    name: str
    """Short name, for people and file names."""
    licence: str | None = None
    """SPDX name where known."""
    origin: str = ""
    """Where the weights come from, in words."""
    trust_remote_code: bool = False
    """Whether code beside the weights may run."""
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    """What the run changes about the model's vocabulary; every loading of it does so."""


def locate_model(config: ModelConfig, cache_dir: Path) -> ModelSource:
    """Find a base model's files, downloading or converting them where needed.

    Args:
        config: which model.
        cache_dir: folder that keeps converted weights.

    Raises:
        ModelError: the model can't be found, has no safetensors weights, or would need code of its own to run.
    """
    if config.source == "embedded":
        folder, origin = embedded.embedded_folder(cache_dir)
        return _source_of(config, folder, str(folder), None, (embedded.LICENCE, origin))
    if config.source == "hub":
        folder = _download(config)
        revision = folder.name if FULL_COMMIT.fullmatch(folder.name) else None
        commit = f" at {revision[:12]}" if revision else ""
        told = (None, f"{config.id}{commit} on the Hugging Face Hub")
        return _source_of(config, folder, str(config.id), revision, told)
    if not config.path:
        raise ModelError("model.source=folder needs model.path, a folder with config.json and safetensors weights")
    folder = Path(config.path).expanduser().resolve()
    if not folder.is_dir():
        raise ModelError(f"model.path={config.path}: no such folder; give one with config.json and safetensors weights")
    return _source_of(config, folder, str(folder), None, (None, f"folder {folder}"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, by name; adapters' files are left out."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))


def max_positions(source: ModelSource) -> int | None:
    """The longest sequence in tokens that a model has positions for; None where its config.json names no limit."""
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        for key in _POSITION_KEYS:
            if isinstance(part.get(key), int):
                return part[key]
    return None


def own_vocab_size(source: ModelSource) -> int:
    """Rows of the embeddings as the model comes, by its config.json; 0 where it doesn't say."""
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    sizes = [part.get("vocab_size") for part in (config, config.get("text_config") or {})]
    return next((size for size in sizes if isinstance(size, int)), 0)


def _source_of(
    config: ModelConfig, folder: Path, location: str, revision: str | None, told: tuple[str | None, str]
) -> ModelSource:
    _check_folder(config, folder, revision)
    return ModelSource(
        location=location,
        folder=folder,
        revision=revision,
        weights_digest=files_digest(weight_files(folder)),
        name=config.name,
        licence=told[0],
        origin=told[1],
        trust_remote_code=config.trust_remote_code,
    )


def _check_folder(config: ModelConfig, folder: Path, revision: str | None) -> None:
    """Refuse a folder that isn't a model with safetensors weights, or that brings code which wasn't asked for."""
    what = f"model.id={config.id}" if config.source == "hub" else str(folder)
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "; this is a PEFT adapter, give its base model" if is_adapter(folder) else ""
        raise ModelError(f"{what} has no config.json, so it isn't a model of the Hugging Face format{hint}") from error
    except ValueError as error:
        raise ModelError(f"{what}: config.json isn't JSON ({error})") from error
    if not isinstance(content, dict) or "model_type" not in content:
        raise ModelError(f"{what}: config.json names no model_type; it isn't a transformers model's")
    if not weight_files(folder):
        raise ModelError(
            f"{what} has no safetensors weights, and pickled ones (.bin, .pt) are never read; "
            "choose a revision or a copy of the model with .safetensors files"
        )
    if missing := missing_weights(folder):
        raise ModelError(
            f"{what} is incomplete: its index lists {len(missing)} weight files that aren't there, {missing[0]} first; "
            "get the missing files"
        )
    _check_own_code(config, content, what, revision)


def _names_code(content: Any) -> str | None:
    """The key, at any depth, by which a config asks for code from elsewhere."""
    if isinstance(content, list):
        return next(filter(None, map(_names_code, content)), None)
    if not isinstance(content, dict):
        return None
    own = next((key for key in _CODE_KEYS if content.get(key)), None)
    return own or _names_code(list(content.values()))


def _check_own_code(config: ModelConfig, content: dict[str, Any], what: str, revision: str | None) -> None:
    key = _names_code(content)
    if key is None:
        return
    if not config.trust_remote_code:
        raise ModelError(
            f"{what} needs Python code of its own ({key} in config.json), which isn't run; choose a model that "
            "transformers knows, or, if you have read and trust that code, set model.trust_remote_code=true with "
            "model.revision=<full commit hash>"
        )
    if config.source == "hub" and (revision is None or config.revision != revision):
        raise ModelError(
            f"model.trust_remote_code=true needs model.revision to be a full commit hash (40 hex digits), "
            f"not {config.revision}: the code that was read must be the code that runs"
        )


def _download(config: ModelConfig) -> Path:
    """The Hub snapshot's folder."""
    if not config.id:
        raise ModelError("model.source=hub needs model.id, such as HuggingFaceTB/SmolLM2-135M")
    asked = f"model.id={config.id}" + (f" model.revision={config.revision}" if config.revision else "")
    patterns = MODEL_FILES + (CODE_FILES if config.trust_remote_code else [])
    return snapshot(config.id, revision=config.revision, patterns=patterns, asked=asked, instead=_WITHOUT_HUB)
