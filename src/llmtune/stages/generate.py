"""`generate`: prompts to text."""

import dataclasses
from pathlib import Path

from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError
from llmtune.evaluation.generation import GenerationSettings, generate_texts
from llmtune.logs import say
from llmtune.models.load import load_frozen
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RunContext
from llmtune.tracking.null import NullTracker


def run(config: RunConfig, folder: RunFolder | None) -> int:
    """Write text with a run's model, or with the base model where there is no run.

    Args:
        config: the composed config; its `generate` section says what to write.
        folder: the run whose model writes; None for the base model.

    Returns:
        The exit status.

    Raises:
        ConfigError: there is no prompt.
    """
    asked = config.generate
    if asked.prompt is None:
        raise ConfigError('generate.prompt: is missing; set it, e.g. generate.prompt="Once upon a time".')
    context = _context(config, folder)
    if folder is None:
        say(f"no trained run found: {context.source.name} as it is")
        model = load_frozen(context.source, context.how)
    else:
        say(f"model: {folder.path.name}, {context.checkpoint.name}")
        model = context.method.load_trained(context.source, context.checkpoint, context.how)
    settings = GenerationSettings(
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        num_samples=asked.num_samples,
        seed=config.seed,
        precision=context.precision,
        device=context.device,
    )
    for number, text in enumerate(generate_texts(model, context.tokenizer, [asked.prompt], settings), 1):
        if asked.num_samples > 1:
            say(f"--- {number} of {asked.num_samples}")
        print(asked.prompt + text, flush=True)
    return 0


def _context(config: RunConfig, folder: RunFolder | None) -> RunContext:
    """The run's context; a run that `run=` didn't name brings its own model and method."""
    if folder is None:
        nowhere = RunFolder(Path(config.runs_dir))
        return RunContext(
            config=config, folder=nowhere, manifest=Manifest(nowhere.manifest_file), tracker=NullTracker()
        )
    from llmtune.config.saved import load_config

    trained = load_config(folder.config_file)
    own = dataclasses.replace(trained, generate=config.generate, hardware=config.hardware, seed=config.seed)
    return RunContext(config=own, folder=folder, manifest=Manifest(folder.manifest_file), tracker=NullTracker())
