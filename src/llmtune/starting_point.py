"""What the typed overrides are put on: the defaults, a saved config, a run, or weights that were made elsewhere."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtune.arguments import Arguments, model_overrides, quoted
from llmtune.config.experiments import names_data
from llmtune.config.method import AdapterConfig, UntrainedConfig
from llmtune.config.model import ModelConfig
from llmtune.config.run import RunConfig
from llmtune.config.saved import load_plain
from llmtune.distributed import is_first
from llmtune.errors import ConfigError, RunError
from llmtune.references import Named, NamedAdapter, NamedModel, NamedRun, Places, read_adapter, resolve
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
    adapter: NamedAdapter | None = None
    """An adapter to take as it is, or to train on from."""
    adapter_trains: bool = False
    model: Mapping[str, Any] | None = None
    """The base model of the run that the adapter is of, plain."""
    untrained: bool = False
    """Whether a whole model is taken as it is."""

    def with_typed(self, overrides: Sequence[str]) -> list[str]:
        """All overrides, in Hydra's grammar."""
        chosen = any(override.startswith("experiment=") for override in self.overrides)
        typed = [override for override in overrides if not (chosen and override.startswith("experiment="))]
        return [*self.overrides, *typed]

    def applied(self, config: RunConfig, typed: Mapping[str, str]) -> RunConfig:
        """The composed config with the weights that it takes.

        Raises:
            ConfigError: what was typed doesn't fit the adapter.
        """
        if self.untrained:
            return dataclasses.replace(config, method=UntrainedConfig())
        if self.adapter is None:
            return config
        if self.model is not None and "model" not in typed:
            chosen = {key: getattr(config.model, key) for key in self.model if f"model.{key}" in typed}
            config = dataclasses.replace(config, model=ModelConfig(**{**self.model, **chosen}))
        method = _as_the_adapter(config, self.adapter, typed)
        if self.adapter_trains:
            return dataclasses.replace(
                config, method=dataclasses.replace(method, adapter=str(self.adapter.folder.absolute()))
            )
        method = dataclasses.replace(method, dropout=self.adapter.dropout)
        return dataclasses.replace(config, method=method, source_weights=str(self.adapter.folder))


def starting_point(arguments: Arguments) -> StartingPoint:
    """Where what was typed starts from.

    Raises:
        ConfigError: a saved config can't be started from, or no data is named where some is needed.
        RunError: a reference leads nowhere, or to what can't be used for what was asked.
        ModelError: weights from elsewhere can't be had.
    """
    if arguments.hydra_only:
        return StartingPoint()
    if arguments.option("--config-name") is not None:
        return StartingPoint(_saved_config(arguments), _rate_of_the_method(arguments))
    named = _named(arguments)
    if isinstance(named, NamedRun):
        return StartingPoint(named.config, _rate_of_the_method(arguments), run=named)
    if named is not None:
        return _made_elsewhere(named, arguments)
    if "method.adapter" in arguments.typed and not arguments.multirun:
        return _adapter_to_go_on_from(arguments)
    return StartingPoint(overrides=_data(arguments), untrained=arguments.command == "generate")


def _places(arguments: Arguments) -> Places:
    typed = arguments.typed
    return Places(Path(typed.get("runs_dir", "runs")), typed.get("tracking.uri"), typed.get("model.revision"))


def _named(arguments: Arguments) -> Named | None:
    """What `run=` names; for text without it the newest trained run, unless a model was typed."""
    places = _places(arguments)
    if arguments.run is not None:
        return resolve(arguments.run, places)
    if arguments.command != "generate" or any(key.partition(".")[0] in ("model", "method") for key in arguments.typed):
        return None
    trained = (listed.folder for listed in list_runs(places.runs_dir) if listed.folder.final_checkpoint.exists())
    newest = next(trained, None)
    return resolve(str(newest.path), places) if newest else None


def _made_elsewhere(named: NamedAdapter | NamedModel, arguments: Arguments) -> StartingPoint:
    """A model or an adapter, taken as it is."""
    typed, asked = arguments.typed, f"run={arguments.run}"
    is_adapter = isinstance(named, NamedAdapter)
    if arguments.command is None and not (arguments.stages and set(arguments.stages) <= {"evaluate", "export"}):
        what, key = ("an adapter", "method.adapter") if is_adapter else ("a model", "model")
        raise RunError(
            f"{asked}: is {what}, which evaluate, export and generate take as it is; to train from it, type "
            f"{key}={arguments.run} without run="
        )
    if is_adapter:
        overrides = (*_base_of(named, typed, asked), *_data_for_weights(arguments))
        return StartingPoint(overrides=overrides, adapter=named)
    wrong = [key for key in typed if key == "model" or key.partition(".")[0] == "method"]
    if wrong:
        raise ConfigError([f"{key}={typed[key]}: {asked} is a whole model; leave one of them out." for key in wrong])
    overrides = (*model_overrides(named.model), *_data_for_weights(arguments))
    return StartingPoint(overrides=overrides, untrained=True)


def _adapter_to_go_on_from(arguments: Arguments) -> StartingPoint:
    """What `method.adapter` names, with the base model that it belongs to."""
    reference = arguments.typed["method.adapter"]
    asked, data = f"method.adapter={reference}", _data(arguments)
    named = resolve(reference, _places(arguments), key="method.adapter")
    if isinstance(named, NamedModel):
        raise RunError(f"{asked}: is a whole model, not an adapter; train from it with model={named.model}")
    if isinstance(named, NamedAdapter):
        base = _base_of(named, arguments.typed, asked)
        start = StartingPoint(overrides=(*base, *data), adapter=named, adapter_trains=True)
    else:
        adapter = read_adapter(named.checkpoint or _trained_adapter(named.folder, asked), asked)
        start = StartingPoint(
            overrides=data, adapter=adapter, adapter_trains=True, model=dict(named.config.get("model", {}))
        )
    assert start.adapter is not None
    if start.adapter.special:
        raise RunError(f"{asked}: uses {', '.join(start.adapter.special)}, which training can't go on with")
    return start


def _trained_adapter(run: RunFolder, asked: str) -> Path:
    wanted = run.best_checkpoint if run.best_checkpoint.exists() else run.final_checkpoint
    if not wanted.exists():
        raise RunError(f"{asked}: {run.path} has no finished training; go on with: train run={run.path}")
    if not (wanted / "adapter_config.json").exists():
        raise RunError(f"{asked}: {run.path} trained the whole model; train from it with model={wanted.resolve()}")
    return wanted.resolve()


def _as_the_adapter(config: RunConfig, adapter: NamedAdapter, typed: Mapping[str, str]) -> AdapterConfig:
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


def _base_of(adapter: NamedAdapter, typed: Mapping[str, str], asked: str) -> list[str]:
    """The base model that an adapter names, unless one was typed."""
    if "model" in typed:
        return []
    base = Path(adapter.base)
    if base.is_absolute() and not base.is_dir():
        raise RunError(f"{asked}: its base model {base} isn't on this machine; name it with model=")
    revision = [f"++model.revision={quoted(adapter.revision)}"] if adapter.revision and not base.is_absolute() else []
    return [*model_overrides(adapter.base), *revision]


def _data(arguments: Arguments) -> tuple[str, ...]:
    """The quick start, beneath what was typed, where that names no data."""
    typed = arguments.typed
    experiment = typed.get("experiment", "")
    names = [name for name in re.split(r"[\[\],\s]+", experiment) if name]
    if any(key in typed for key in _NAMES_DATA) or any(map(names_data, names)):
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
