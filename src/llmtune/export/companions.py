"""What stands beside an export's weights: config, end tokens, tokenizer with chat template, scripts that run it."""

import json
import shutil
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel

from llmtune.export import shipped
from llmtune.export.format import ExportContext
from llmtune.models.prompting import stop_token_ids
from llmtune.runs.manifest import write_json

_SCRIPTS = Path(shipped.__path__[0])
_PARTS = ("text", "transformers_model")
"""Scripts that several runtimes import."""


def write_companions(context: ExportContext, model: PreTrainedModel, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and the tokenizer's files, as transformers writes them."""
    model.config.save_pretrained(folder)
    true_generation_config(model, context).save_pretrained(folder)
    save_tokenizer(context, folder)


def save_tokenizer(context: ExportContext, folder: Path) -> None:
    """Write the tokenizer's files and the chat template, so that transformers 4 reads them as well as 5.

    Version 5 calls a tokenizer that `tokenizer.json` says all of by a name that 4, and what builds on it, doesn't know.
    """
    context.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        write_json(file, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def true_generation_config(model: PreTrainedModel, context: ExportContext) -> GenerationConfig:
    """The base's generation settings with the tokens at which the tuned model's texts really end."""
    config = model.generation_config or GenerationConfig()
    stops = stop_token_ids(model.generation_config, context.tokenizer)
    config.eos_token_id = stops if len(stops) > 1 else stops[0]
    if config.pad_token_id is None:
        config.pad_token_id = context.tokenizer.pad_token_id
    if config.temperature is not None or config.top_p is not None or config.top_k is not None:
        config.do_sample = True  # sampling settings without sampling can't be saved
    return config


def write_scripts(runtime: str, folder: Path) -> None:
    """Put `run.py`, `runtime.py` and what that imports beside an export's files."""
    shutil.copyfile(_SCRIPTS / "run.py", folder / "run.py")
    source = (_SCRIPTS / f"{runtime}.py").read_text(encoding="utf-8")
    (folder / "runtime.py").write_text(source, encoding="utf-8")
    for name in _PARTS:
        if f"from {name} import" in source:
            shutil.copyfile(_SCRIPTS / f"{name}.py", folder / f"{name}.py")
