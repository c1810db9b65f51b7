"""What the typed overrides are put on: the defaults, a saved config, a run, or weights that were made elsewhere."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtune.arguments import Arguments, model_overrides, short_name
from llmtune.config.experiments import names_data
from llmtune.config.method import AdapterConfig, UntrainedConfig
from llmtune.config.model import ModelConfig
from llmtune.config.resources import option_content
from llmtune.config.run import RunConfig
from llmtune.config.saved import load_plain
from llmtune.distributed import is_first
from llmtune.errors import ConfigError, RunError
from llmtune.models.adapter_files import AdapterFiles, is_adapter, read_adapter
from llmtune.references import Named, NamedModel, NamedRun, Places, resolve
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs

_NAMES_DATA = ("data", "data.path", "data.id")
_CHECKED_ON = ("data=embedded_code", "++data.num_examples=8", "++data.num_validation_examples=32")
"""What an export of weights from elsewhere is compared on, where no examples are named."""
_SHAPE = ("rank", "alpha", "target_modules")
"""What an adapter's own file decides about the method."""


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """Where composing starts, and what is put into the composed config after it."""

    saved: Mapping[str, Any] | None = None
    """A config that takes the place of the defaults."""
    overrides: tuple[str, ...] = ()
    """Overrides that stand before the typed ones; an experiment among them takes the place of the typed one."""
    run: NamedRun | None = None
    """The run that the work goes on from."""
    adapter: AdapterFiles | None = None
    """An adapter to take as it is."""
    untrained: bool = False
    """Whether a whole model is taken as it is."""

    def with_typed(self, overrides: Sequence[str]) -> list[str]:
        """All overrides, in Hydra's grammar."""
        chosen = any(override.startswith("experiment=") for override in self.overrides)
        typed = [override for override in overrides if not (chosen and override.startswith("experiment="))]
        return [*self.overrides, *typed]

    def applied(self, config: RunConfig, arguments: Arguments) -> RunConfig:
        """The composed config with the weights that it takes, or trains on from.

        Raises:
            ConfigError: what was typed doesn't fit the adapter.
            RunError: `method.adapter` leads nowhere, or to what can't be trained on from.
            ModelError: `method.adapter` can't be had.
        """
        typed = arguments.typed
        if self.untrained:
            return dataclasses.replace(config, method=UntrainedConfig())
        if self.adapter is not None:
            config = _on_its_base(config, self.adapter, arguments, f"run={arguments.run}")
            method = dataclasses.replace(_as_the_adapter(config, self.adapter, typed), dropout=self.adapter.dropout)
            return dataclasses.replace(config, method=method, source_weights=str(self.adapter.folder))
        if self.run is None and isinstance(config.method, AdapterConfig) and config.method.adapter is not None:
            return _on_adapter(config, config.method.adapter, arguments)
        return config


def starting_point(arguments: Arguments) -> StartingPoint:
    """Where what was typed starts from.

    Raises:
        ConfigError: a saved config can't be started from, or no data is named where some is needed.
        RunError: a reference leads nowhere, or to what can't be used for what was asked.
        ModelError: weights from elsewhere can't be had.
    """
    if arguments.hydra_only:
        return StartingPoint()
    config_name, named = arguments.option("--config-name"), _named(arguments)
    if config_name is not None and arguments.run is not None:
        raise ConfigError(f"--config-name {config_name}: makes a new run, and run= names one; leave one of them out.")
    if "experiment" in arguments.typed and (config_name is not None or isinstance(named, NamedRun)):
        raise ConfigError(
            f"experiment={arguments.typed['experiment']}: this config is complete already; type the keys that differ."
        )
    if config_name is not None:
        return StartingPoint(_saved_config(arguments), _rate_of_the_method(arguments))
    if isinstance(named, NamedRun):
        return StartingPoint(named.config, _rate_of_the_method(arguments), run=named)
    if named is not None:
        return _made_elsewhere(named, arguments)
    return StartingPoint(overrides=_data(arguments), untrained=arguments.command == "generate")


def _places(arguments: Arguments) -> Places:
    typed = arguments.typed
    return Places(Path(typed.get("runs_dir", "runs")), typed.get("tracking.uri"), typed.get("model.revision"))


def _named(arguments: Arguments) -> Named | None:
    """What `run=` names; for text without it the newest trained run, unless a model was typed."""
    places, trains = _places(arguments), not arguments.stages or {"prepare", "train"} & set(arguments.stages)
    if arguments.run == "latest" and arguments.command is None and trains:
        return _newest_that_trains(places)
    if arguments.run is not None:
        return resolve(arguments.run, places)
    if arguments.command != "generate" or any(key.partition(".")[0] in ("model", "method") for key in arguments.typed):
        return None
    trained = (listed.folder for listed in list_runs(places.runs_dir) if listed.folder.final_checkpoint.exists())
    newest = next(trained, None)
    return resolve(str(newest.path), places) if newest else None


def _made_elsewhere(named: AdapterFiles | NamedModel, arguments: Arguments) -> StartingPoint:
    """A model or an adapter, taken as it is."""
    typed, asked = arguments.typed, f"run={arguments.run}"
    is_adapter = isinstance(named, AdapterFiles)
    if arguments.command is None and not (arguments.stages and set(arguments.stages) <= {"evaluate", "export"}):
        what, key = ("an adapter", "method.adapter") if is_adapter else ("a model", "model")
        raise RunError(
            f"{asked}: is {what}, which evaluate, export and generate take as it is; to train from it, type "
            f"{key}={arguments.run} without run="
        )
    if is_adapter:
        return StartingPoint(overrides=_data_for_weights(arguments), adapter=named)
    wrong = [key for key in typed if key == "model" or key.partition(".")[0] == "method"]
    if wrong:
        raise ConfigError([f"{key}={typed[key]}: {asked} is a whole model; leave one of them out." for key in wrong])
    overrides = (*model_overrides(named.model), *_data_for_weights(arguments))
    return StartingPoint(overrides=overrides, untrained=True)


def _newest_that_trains(places: Places) -> Named:
    """The newest run but those that measure or export the weights of another."""
    for listed in list_runs(places.runs_dir):
        named = resolve(str(listed.folder.path), places)
        if isinstance(named, NamedRun) and not (named.config.get("source_run") or named.config.get("source_weights")):
            return named
    return resolve("latest", places)


def _on_adapter(config: RunConfig, reference: str, arguments: Arguments) -> RunConfig:
    """The config of a run that trains on from an adapter: its folder, its shape, and the base model it belongs to."""
    asked = f"method.adapter={reference}"
    named = resolve(reference, _places(arguments), key="method.adapter")
    if isinstance(named, NamedModel):
        raise RunError(f"{asked}: is a whole model, not an adapter; train from it with model={named.model}")
    adapter = named if isinstance(named, AdapterFiles) else read_adapter(_trained_adapter(named, asked), asked)
    if adapter.special:
        raise RunError(f"{asked}: uses {', '.join(adapter.special)}, which training can't go on with")
    of_run = named.config.get("model") if isinstance(named, NamedRun) else None
    config = _on_its_base(config, adapter, arguments, asked, ModelConfig(**of_run) if of_run else None)
    method = _as_the_adapter(config, adapter, arguments.typed)
    return dataclasses.replace(config, method=dataclasses.replace(method, adapter=str(adapter.folder.absolute())))


def _trained_adapter(named: NamedRun, asked: str) -> Path:
    """The checkpoint that a run stands for; of one that takes the weights of another, those weights."""
    config, run = named.config, named.folder
    if named.checkpoint is not None or config.get("source_weights"):
        wanted = named.checkpoint or Path(str(config["source_weights"]))
    else:
        run = RunFolder(Path(str(config.get("source_run") or run.path)))
        wanted = run.chosen_checkpoint(config.get("train", {}).get("select_checkpoint", "best"))
    if not wanted.exists():
        raise RunError(f"{asked}: {run.path} has no finished training; go on with: train run={run.path}")
    if not is_adapter(wanted):
        raise RunError(f"{asked}: {run.path} trained the whole model; train from it with model={wanted.resolve()}")
    return wanted.resolve()


def _on_its_base(
    config: RunConfig, adapter: AdapterFiles, arguments: Arguments, asked: str, base: ModelConfig | None = None
) -> RunConfig:
    """The config with an adapter's base model (`base`, else the one that its file names), unless one was typed."""
    if "model" in arguments.typed:
        return config
    names = (field.name for field in dataclasses.fields(ModelConfig))
    chosen = {name: getattr(config.model, name) for name in names if f"model.{name}" in arguments.typed}
    return dataclasses.replace(config, model=dataclasses.replace(base or _model_of(adapter, asked), **chosen))


def _model_of(adapter: AdapterFiles, asked: str) -> ModelConfig:
    """The base model that an adapter names."""
    if Path(adapter.base).is_absolute() and not Path(adapter.base).is_dir():
        raise RunError(f"{asked}: its base model {adapter.base} isn't on this machine; name it with model=")
    content = option_content("model", adapter.base)
    if content:
        return ModelConfig(**content)
    name = short_name(Path(adapter.base).name)
    if Path(adapter.base).is_dir():
        return ModelConfig(name=name, source="folder", path=adapter.base)
    return ModelConfig(name=name, source="hub", id=adapter.base, revision=adapter.revision)


def _as_the_adapter(config: RunConfig, adapter: AdapterFiles, typed: Mapping[str, str]) -> AdapterConfig:
    """The method's settings with those that the adapter has; typed ones must agree."""
    method = config.method
    if not isinstance(method, AdapterConfig):
        raise ConfigError(f"method={method.name}: {adapter.folder} is an adapter; take method=lora or method=qlora.")
    own = {name: getattr(adapter, name) for name in _SHAPE}
    wrong = [name for name in _SHAPE if f"method.{name}" in typed and getattr(method, name) != own[name]]
    if wrong:
        raise ConfigError(
            [f"method.{name}={typed[f'method.{name}']}: the adapter has {own[name]}; leave it out." for name in wrong]
        )
    return dataclasses.replace(method, **own)


def names_its_data(typed: Mapping[str, str]) -> bool:
    """Whether what was typed says on which examples to train, itself or through an experiment."""
    return any(key in typed for key in _NAMES_DATA) or any(map(names_data, _experiments(typed)))


def _experiments(typed: Mapping[str, str]) -> list[str]:
    return [name for name in re.split(r"[\[\],\s]+", typed.get("experiment", "")) if name]


def _data(arguments: Arguments) -> tuple[str, ...]:
    """The quick start, beneath what was typed, where that names no data."""
    experiment, names = arguments.typed.get("experiment", ""), _experiments(arguments.typed)
    if names_its_data(arguments.typed):
        return ()
    if arguments.command is not None:
        return ("data=embedded_code",)
    beneath = f"experiment=[{','.join(['quickstart', *names])}]" if names else "experiment=quickstart"
    if arguments.multirun and "[" not in experiment:
        beneath = f"experiment={','.join(f'[quickstart,{name}]' for name in names) or 'quickstart'}"
    if is_first():
        print(f"llmtune: no data named, so this is {beneath}; data.path=FILE takes yours", file=sys.stderr)
    return (beneath,)


def _data_for_weights(arguments: Arguments) -> tuple[str, ...]:
    """Data for weights from elsewhere: what was typed; without that, an export is compared on the embedded examples."""
    typed = arguments.typed
    if any(key in typed for key in (*_NAMES_DATA, "data.eval_path", "experiment")):
        return ()
    if arguments.command is not None:
        return ("data=embedded_code",)
    if "evaluate" in arguments.stages:
        raise ConfigError("data.eval_path: is missing; set it to a file of examples to measure the model on.")
    if is_first():
        print("llmtune: no data named, so the export is compared on data=embedded_code", file=sys.stderr)
    return _CHECKED_ON


def _rate_of_the_method(arguments: Arguments) -> tuple[str, ...]:
    """A saved learning rate belongs to the saved method: another method brings its own."""
    follows = "method" in arguments.typed and "train.learning_rate" not in arguments.typed
    return ("++train.learning_rate=${method.learning_rate}",) if follows else ()


def _saved_config(arguments: Arguments) -> dict[str, Any]:
    """The config of `--config-name`, a resolved one such as a run's config.yaml."""
    name = str(arguments.option("--config-name"))
    folder = Path(arguments.option("--config-dir") or ".")
    file = next((path for path in (Path(name), folder / name, folder / f"{name}.yaml") if path.is_file()), None)
    if file is None:
        raise ConfigError(
            f"--config-name {name}: there is no such file; name a run's config.yaml, or use --config-dir."
        )
    content = load_plain(file)
    if "defaults" in content or "model" not in content or "learning_rate" not in content.get("train", {}):
        raise ConfigError(
            f"--config-name {name}: is no resolved config, such as --cfg job shows and a run's config.yaml holds; put "
            "differences into experiments/NAME.yaml and type experiment=NAME."
        )
    return content
