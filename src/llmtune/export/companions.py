"""What stands beside an export's weights: config, end tokens, tokenizer with chat template, scripts that run it."""

import shutil
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel

from llmtune.export import shipped
from llmtune.export.format import ExportContext
from llmtune.models.prompting import stop_token_ids

_SCRIPTS = Path(shipped.__path__[0])
_PARTS = ("text", "transformers_model")
"""Scripts that several runtimes import."""


def write_companions(context: ExportContext, model: PreTrainedModel, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and the tokenizer's files, as transformers writes them."""
    model.config.save_pretrained(folder)
    true_generation_config(model, context).save_pretrained(folder)
    context.tokenizer.save_pretrained(folder)


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
