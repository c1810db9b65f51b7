"""llmtune from Python: the words that a person would type on the command line, put together and done."""

import dataclasses
import gc
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune import distributed
from llmtune.errors import ConfigError, LlmtuneError, RunError, UserError, explained

if TYPE_CHECKING:
    from llmtune.arguments import Arguments
    from llmtune.config.run import RunConfig
    from llmtune.runs.layout import RunFolder
    from llmtune.stages.generate import Writer

_KEYS = {
    "model_name": "model",
    "method": "method",
    "num_epochs": "train.num_epochs",
    "batch_size": "train.micro_batch_size",
    "learning_rate": "train.learning_rate",
    "lora_r": "method.rank",
    "lora_alpha": "method.alpha",
    "max_seq_length": "data.max_seq_len",
    "warmup_steps": "train.warmup_steps",
    "weight_decay": "train.weight_decay",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "lora_dropout": "method.dropout",
    "seed": "seed",
}
"""The key that each argument stands for."""
_OF_LORA = ("lora_r", "lora_alpha", "lora_dropout")
_NOTHING_TRAINED = "nothing is trained yet; call train(...) first, or take LLMFineTuner.from_run(...)"

Figures = dict[str, float | None]
"""Figures by name; one that the run couldn't have, such as a validation loss without validation examples, is None."""


@dataclass(frozen=True)
class FineTuneConfig:
    """What to train and how; what is left out takes the config's default, so the learning rate follows the method.

    Raises:
        ConfigError: with every value that can't work, when it is made.
        RunError: an adapter that `overrides` name can't be had.
    """

    model_name: str | None = None
    """The base model: a named config such as `gpt2`, a Hub id, or a folder. None is the embedded model."""
    method: str | None = None
    """`lora`, `qlora` or `full`; None is `lora`."""
    num_epochs: int | None = None
    """Passes over the training examples."""
    batch_size: int | None = None
    """Examples of a micro-batch; a step is this, times `gradient_accumulation`, times the number of processes, unless
    `overrides` have `train.batch_unit=tokens`."""
    learning_rate: float | None = None
    """Peak learning rate; None is the method's own."""
    lora_r: int | None = None
    """Rank of the adapters; left out, aloud, with `method="full"`, as are `lora_alpha` and `lora_dropout`."""
    lora_alpha: float | None = None
    """Scale of the adapters: their update is multiplied by `lora_alpha / lora_r`."""
    max_seq_length: int | None = None
    """Tokens of the longest example."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises; None is a tenth of the steps, at most 100."""
    weight_decay: float | None = None
    """Decay of the weights that AdamW applies."""
    gradient_accumulation: int | None = None
    """Micro-batches of a step; ignored with `train.batch_unit=tokens`."""
    lora_dropout: float | None = None
    """Share of an adapter's input that is dropped while training."""
    seed: int | None = None
    """Seed of adapters' initial values, dropout and the order of the examples."""
    overrides: Sequence[str] = ()
    """Any other key, as on the command line: `["tracking=none", "train.max_steps=20"]`."""

    def __post_init__(self) -> None:
        if isinstance(self.overrides, str):
            raise ConfigError(f"overrides={self.overrides!r}: is one text; give a list of them, [{self.overrides!r}].")
        object.__setattr__(self, "overrides", tuple(map(str, self.overrides)))
        _check_words(_parsed(self.overrides))
        if self._idle:
            from llmtune.logs import warn

            warn(f"{', '.join(self._idle)}: left out, method=full trains no adapter")
        _composed(self.words)

    @property
    def words(self) -> list[str]:
        """The same as one would type it."""
        given = {name: getattr(self, name) for name in _KEYS if name not in self._idle}
        words = [f"{_KEYS[name]}={value}" for name, value in given.items() if value is not None]
        return [*words, *self.overrides]

    @property
    def _idle(self) -> list[str]:
        """The arguments that were given and that the method lacks."""
        method = _parsed(self.overrides).typed.get("method", self.method)
        return [name for name in _OF_LORA if getattr(self, name) is not None] if method == "full" else []


class LLMFineTuner:
    """Trains, measures, writes and saves by the pipeline of the command line, each in a run folder and in MLflow.

    Every mistake is an `LlmtuneError` with the message that the command line shows.

    Args:
        config: what to train and how; None is all defaults.
    """

    def __init__(self, config: FineTuneConfig | None = None) -> None:
        if distributed.num_processes() > 1:
            raise ConfigError(
                "the Python interface starts a run's processes itself; start the script with plain python and set "
                'overrides=["hardware=ddp", "hardware.num_processes=2"].'
            )
        self._words = config.words if config else []
        self._reference: str | None = None
        self._run_folder: Path | None = None
        self._writer: tuple[RunConfig, Writer] | None = None
        self._goes_on = False

    @classmethod
    def from_run(cls, reference: str | PathLike[str], runs_dir: str | PathLike[str] = "runs") -> "LLMFineTuner":
        """A tuner on weights that are there, or on a run that `train()` goes on with.

        Args:
            reference: what `run=` takes: a run folder, a checkpoint in one, an MLflow run id, `latest`; to measure,
                write and export also a model, the folder of an adapter, or a Hub id.
            runs_dir: folder of the runs.

        Raises:
            RunError: it leads nowhere.
        """
        from llmtune.references import NamedRun, Places, resolve

        named = resolve(str(reference), Places(Path(runs_dir)))
        tuner = cls()
        tuner._goes_on, tuner._reference = True, str(reference)
        if isinstance(named, NamedRun):
            tuner._run_folder = named.folder.path.absolute()
            tuner._reference = str(named.checkpoint or tuner._run_folder)
        return tuner

    @property
    def run_folder(self) -> Path:
        """The folder of the run that was trained.

        Raises:
            RunError: there is none.
        """
        if self._run_folder is None:
            raise RunError(f"{self._reference} is no run" if self._reference else _NOTHING_TRAINED)
        return self._run_folder

    def train(
        self, train_file: str | PathLike[str] | None = None, eval_file: str | PathLike[str] | None = None
    ) -> Figures:
        """Train, each call in a new run; after `from_run` go on where that run stopped.

        Args:
            train_file: the examples; None takes what the overrides name, else the quick start's.
            eval_file: the test set, which training doesn't read; None splits one off.

        Returns:
            `steps`, `final_loss`, `best_validation_loss`, `seconds` and the other figures of the training.

        Raises:
            LlmtuneError: a mistake, or training had to stop. Ctrl-C leaves a run that `from_run("latest").train()`
                goes on with.
        """
        if self._goes_on and (train_file is not None or eval_file is not None):
            raise RunError(
                f"{self._reference}: a run goes on with its own examples; to train its adapter on others, take "
                f'FineTuneConfig(overrides=["method.adapter={self._reference}"])'
            )
        words = self._trained() if self._goes_on else self._words
        run = self._perform(["train", *words, *_word("data.path", train_file), *_word("data.eval_path", eval_file)])
        self._run_folder, self._reference = run.path, str(run.path)
        return _figures(run, "train")

    def evaluate(self, file: str | PathLike[str] | None = None) -> Figures:
        """Measure the tuned model beside the base model; before training, the base model alone.

        Args:
            file: examples to measure on, all of them; None takes the run's test set.

        Returns:
            `loss` (nats per token), `perplexity`, `tokens_per_second`, and `base_loss` and its like of the base model.
        """
        asked = _word("data.eval_path", file)
        if self._reference is not None:
            return _figures(self._perform(["evaluate", *self._trained(), *asked]), "evaluate")
        from llmtune.config.saved import save_config

        with tempfile.TemporaryDirectory() as folder:
            save_config(self._base(), Path(folder) / "base.yaml")
            words = ["evaluate", "--config-name", str(Path(folder) / "base.yaml"), *asked]
            return _figures(self._perform(words), "evaluate")

    def generate(
        self, prompt: str, max_length: int | None = None, temperature: float | None = None, num_samples: int = 1
    ) -> str | list[str]:
        """Write on from a prompt, by the tuned model; before training by the base model, and it says so.

        Args:
            prompt: the text to go on from.
            max_length: tokens to write at most; None is the config's, 100.
            temperature: 0 takes the likeliest token each time, higher is more varied; None is the config's, 0.7.
            num_samples: texts to write.

        Returns:
            The prompt and what follows it; a list of such texts where several were asked for.
        """
        typed = {"max_new_tokens": max_length, "temperature": temperature, "num_samples": num_samples}
        words = [word for key, value in typed.items() for word in _word(f"generate.{key}", value)]
        if self._reference is not None:
            config = _config_for(["generate", *self._trained(), *words])
        else:
            config = self._base(words)
        with _told():
            texts = [prompt + text for text in self._writer_of(config).write(prompt, config.generate)]
        return texts if num_samples > 1 else texts[0]

    def save_model(self, folder: str | PathLike[str]) -> Path:
        """Save what was trained, checked: the adapter of `lora` and `qlora`, of `full` the whole model.

        Args:
            folder: gets the files, directly; must be empty or not there yet.
        """
        from llmtune.config.method import AdapterConfig

        target = Path(folder).expanduser().absolute()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} isn't an empty folder; name another place")
        has_adapter = isinstance(_config_for(["generate", *self._trained()]).method, AdapterConfig)
        name = "adapter" if has_adapter else "hf"
        run = self._perform(["export", *self._trained(), f"export.formats=[{name}]"])
        with _told():
            _copy(Path(_results(run, "export")[name]["folder"]), target)
        return target

    def export(self, folder: str | PathLike[str], format: str = "hf") -> Path:
        """Export one format, checked, and return its folder, `folder/format`.

        Args:
            folder: gets a folder named as the format.
            format: `adapter`, or `hf` for the whole model.
        """
        from llmtune.arguments import quoted

        words = [f"export.path={Path(folder)}", f"export.formats=[{quoted(format)}]"]
        run = self._perform(["export", *self._trained(), *words])
        return Path(_results(run, "export")[format]["folder"])

    def _trained(self) -> list[str]:
        if self._reference is None:
            raise RunError(_NOTHING_TRAINED)
        return [f"run={self._reference}"]

    def _base(self, words: Sequence[str] = ()) -> "RunConfig":
        """The config with the base model taken as it is."""
        from llmtune.config.method import UntrainedConfig

        return dataclasses.replace(_composed([*self._words, *words]), method=UntrainedConfig())

    def _perform(self, words: Sequence[str]) -> "RunFolder":
        from llmtune.runs.status import RunStatusFile
        from llmtune.session import perform

        self._free()
        try:
            with _told():
                outcome = perform(_parsed(words))
        finally:
            self._free()
        assert outcome.folder is not None
        if outcome.status:
            record = RunStatusFile(outcome.folder.status_file).read()
            reason = record.error if record and record.error else f"ended with exit status {outcome.status}"
            raise LlmtuneError(f"{outcome.folder.path}: {reason}")
        return outcome.folder

    def _writer_of(self, config: "RunConfig") -> "Writer":
        """The model that writes, loaded again only where other weights or another device are asked for."""
        from llmtune.config.generate import GenerateConfig
        from llmtune.logs import say, silence_libraries, start_logging

        asked = dataclasses.replace(config, generate=GenerateConfig())
        if self._writer is None or self._writer[0] != asked:
            self._free()
            silence_libraries()
            start_logging(None)
            from llmtune.stages.generate import Writer

            self._writer = asked, Writer(config)
            say(f"model: {self._writer[1].name}")
        return self._writer[1]

    def _free(self) -> None:
        """Let go of the model that writes, and of what a run left in memory."""
        self._writer = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _word(key: str, value: object) -> list[str]:
    return [] if value is None else [f"{key}={value}"]


def _parsed(words: Sequence[str]) -> "Arguments":
    from llmtune.arguments import parse

    return parse(words)


def _config_for(words: Sequence[str]) -> "RunConfig":
    from llmtune.session import config_for

    with _told():
        return config_for(_parsed(words))


def _check_words(arguments: "Arguments") -> None:
    """Refuse overrides that would do something else than change the config of one run."""
    others = [*arguments.stages, *filter(None, [arguments.command])]
    others += [option for option in arguments.options if option.startswith("-") and option != "--config-dir"]
    problems = [f"overrides: {word}: belongs on the command line; give KEY=VALUE." for word in others]
    if arguments.run is not None:
        problems.append(f"overrides: run={arguments.run}: take LLMFineTuner.from_run({arguments.run!r}).")
    if problems:
        raise ConfigError(problems)


def _composed(words: Sequence[str]) -> "RunConfig":
    """The config of the words, checked, its file of examples not named yet where they name no data."""
    from llmtune.starting_point import names_its_data

    if names_its_data(_parsed(words).typed):
        return _config_for(["train", *words])
    config = _config_for(["train", *words, "data.path=not-named-yet"])
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=None))


@contextmanager
def _told() -> Iterator[None]:
    """Within it a problem with a key names its argument; a mendable error of the system is an `LlmtuneError`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_naming_argument(problem) for problem in error.problems]) from None
    except OSError as error:
        line = explained(error)
        if line is None:
            raise
        raise LlmtuneError(line) from error


def _naming_argument(problem: str) -> str:
    name = next(
        (name for name, key in _KEYS.items() if name != key and re.match(rf"{re.escape(key)}[=:]", problem)), ""
    )
    return f"{name}: {problem}" if name else problem


def _figures(run: "RunFolder", stage: str) -> Figures:
    results = _results(run, stage)
    return {name: value for name, value in results.items() if value is None or type(value) in (int, float)}


def _results(run: "RunFolder", stage: str) -> Mapping[str, Any]:
    from llmtune.runs.manifest import Manifest

    return Manifest(run.manifest_file).stage(stage)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder; a kill leaves none or all of it at `target`."""
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        shutil.copytree(source, draft)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
