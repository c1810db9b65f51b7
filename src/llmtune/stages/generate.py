"""`generate`: prompts to text."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import nn

from llmtune.config.generate import GenerateConfig
from llmtune.config.run import RunConfig
from llmtune.evaluation.generation import GenerationSettings, Prompt, generate_texts
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RunContext
from llmtune.stages.memory_advice import memory_explained
from llmtune.tracking.null import NullTracker

Message = Mapping[str, str]
"""A turn of a conversation: `role` and `content`."""


class Writer:
    """A model that writes text, loaded at the first question and kept.

    Args:
        config: which weights write (those of a run, an adapter, or the base model alone), and on what device.
    """

    def __init__(self, config: RunConfig) -> None:
        nowhere = RunFolder(Path(config.runs_dir))
        self._config = config
        self._context = RunContext(
            config=config, folder=nowhere, manifest=Manifest(nowhere.manifest_file), tracker=NullTracker()
        )

    @property
    def name(self) -> str:
        """Which weights write, in words."""
        config = self._config
        if config.method.name == "none":
            return f"{config.model.name} as it is"
        weights = self._context.checkpoint
        return f"{Path(config.source_run).name}, {weights.name}" if config.source_run else f"adapter {weights}"

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be put to the model."""
        return bool(self._context.tokenizer.chat_template)

    def write(self, prompt: str, asked: GenerateConfig) -> list[str]:
        """Each text that goes on from the prompt, the prompt not in it.

        Raises:
            UserError: the prompt fills all of the model's positions.
        """
        return self._generate(prompt, asked)

    def answer(self, messages: Sequence[Message], asked: GenerateConfig) -> str:
        """The assistant's next turn in a conversation, through the model's chat template."""
        tokenizer = self._context.tokenizer
        turns = [dict(message) for message in messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        return self._generate(ids, asked)[0].strip()

    @cached_property
    def _model(self) -> nn.Module:
        context = self._context
        return context.method.load_trained(context.source, context.checkpoint, context.how)

    def _generate(self, prompt: Prompt, asked: GenerateConfig) -> list[str]:
        settings = GenerationSettings(
            max_new_tokens=asked.max_new_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            num_samples=asked.num_samples,
            seed=self._config.seed,
            precision=self._context.precision,
            device=self._context.device,
        )
        with memory_explained("generate", self._context):
            return generate_texts(self._model, self._context.tokenizer, [prompt], settings)
