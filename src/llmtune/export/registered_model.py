"""A checked export in MLflow's model registry: whether that can work is asked before training, the files go in after.

What is registered needs nothing of llmtune: it is the export's folder beside a script, `shipped/mlflow_text.py`.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmtune.config.export import REGISTERED_FORMAT
from llmtune.credentials import without_credentials
from llmtune.errors import ConfigError, ExportCheckFailed, LlmtuneError, UserError
from llmtune.export import shipped
from llmtune.models.digest import file_sha256

_KEY = "export.register"
_SCRIPT = Path(shipped.__path__[0]) / "mlflow_text.py"
_FILES = "artifacts/model"
_SUMS = "SHA256SUMS"
_NOT_IN_TITLES = re.compile(r"[^\w -]")
_PINNED = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "jinja2")
_NEEDED = ("pandas", "numpy", "yaml", "cloudpickle")
"""What mlflow's models need beyond the small mlflow-skinny."""
_EXAMPLE = ["Once upon a time"]
_SPARE_BYTES = 64 * 2**20
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_MORE = "\n\n… the rest is in README.md beside the files."


@dataclass(frozen=True, kw_only=True)
class RegistrationFacts:
    """What is said of a model beyond what its folder shows."""

    name: str
    """`export.register`."""
    tracking_uri: str
    """Store of the run, absolute, with credentials where it needs them."""
    run_id: str
    """MLflow run that the model belongs to, in that store."""
    title: str
    """Name of the tuned model, as its card has it."""
    method: str
    base_model: str
    """What a person loads the base model by."""
    base_sha256: str
    """Digest of the base's weights."""
    data_digest: str | None = None
    """Digest of the examples that it was trained on."""
    metrics: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Held-out figures by name: the base model's and the tuned one's; None where one wasn't measured."""
    again: str
    """The command that registers without exporting anew, for messages."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry that holds the files."""

    name: str
    version: int
    model_id: str
    """MLflow's id of the logged model."""
    digest: str
    """Hex sha256 over all files of the export."""
    is_new: bool
    """Whether the version was made now; else these files were registered before."""
    is_proven: bool
    """Whether the alias `proven` stands on it."""

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}@proven" if self.is_proven else f"models:/{self.name}/{self.version}"

    def as_json(self) -> dict[str, Any]:
        """The registration as plain values."""
        return {**asdict(self), "uri": self.uri}


def check_register(name: str | None, tracking_uri: str | None) -> None:
    """Refuse a registration that can't work, before anything is trained. Without a name nothing is asked.

    A store that is away is no reason: it may be back when training has ended.

    Args:
        name: `export.register`.
        tracking_uri: absolute tracking URI of the run; None where nothing is tracked.

    Raises:
        ConfigError: with every reason that is found.
    """
    if name is None:
        return
    problems = list(_problems(tracking_uri))
    if problems:
        raise ConfigError(problems)
    if tracking_uri is not None:
        _ask_store(name, tracking_uri)


def _problems(tracking_uri: str | None) -> Iterator[str]:
    if tracking_uri is not None and tracking_uri.startswith("databricks"):
        yield f"{_KEY}: Databricks has a registry of its own kind, which can't be written to; leave it out."
    yield from _environment_problems(tracking_uri)


def _environment_problems(tracking_uri: str | None) -> Iterator[str]:
    other = os.environ.get("MLFLOW_REGISTRY_URI")
    if other and other != tracking_uri:
        yield f"{_KEY}: MLFLOW_REGISTRY_URI names another store than the run's, where models go too; unset it."
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        yield (
            f"{_KEY}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, so that only a part of "
            "MLflow is here; pip install 'mlflow>=3.10,<4' has all of it."
        )


def _ask_store(name: str, uri: str) -> None:
    """Refuse a name or store that refuses models; one that doesn't answer is let be."""
    from llmtune.tracking.client import MlflowException
    from llmtune.tracking.model_registry import ModelRegistry
    from llmtune.tracking.store import open_existing_store

    try:
        free = open_existing_store(uri) is None or ModelRegistry(uri).ask(name)
    except (OSError, sqlite3.Error):
        return
    except MlflowException as error:
        if error.error_code in ("ENDPOINT_NOT_FOUND", "BAD_REQUEST") or " 404" in str(error):
            raise ConfigError(
                f"{_KEY}: {without_credentials(uri)} has no registry for models of MLflow 3; start a server of "
                "MLflow 3.10 or newer, or leave it out."
            ) from error
        return
    if not free:
        raise ConfigError(f"{_KEY}={name}: is the name of a prompt in that store; take another name.")


def register(folder: Path, facts: RegistrationFacts) -> Registered:
    """Log a checked export as a model of its run and make it the newest version of a name; twice is once.

    Args:
        folder: the export, as `write_export` left it.
        facts: name, store and run, and what is said of it.

    Raises:
        ExportCheckFailed: the folder has not passed its check.
        UserError: the disk is too full.
        LlmtuneError: the store is away or refuses; the export is what it was.
    """
    from llmtune.tracking.model_registry import ModelFacts, ModelRegistry

    figures = _passed_figures(folder)
    sums = folder_sums(folder)
    digest = folder_digest(sums)
    with _explained(folder, facts):
        registry = ModelRegistry(facts.tracking_uri)
        found = registry.find(facts.name, digest)
        if found is None:
            told = ModelFacts(
                run_id=facts.run_id,
                title=_NOT_IN_TITLES.sub("_", facts.title)[:200],
                digest=digest,
                description=_description(folder),
                facts=_told(facts),
                metrics={**_held_out(facts.metrics), **figures},
            )
            model = registry.logged_model(told)
            with tempfile.TemporaryDirectory(prefix="llmtune-register-") as temporary:
                staged = Path(temporary) / "model"
                write_model(folder, staged, sums, model_id=model.model_id, run_id=facts.run_id)
                _check_room(model.artifact_location, folder, sums)
                registry.fill(model, staged, told)
            found = registry.add_version(facts.name, model, told)
    return Registered(found.name, found.version, found.model_id, digest, found.is_new, found.is_proven)


def folder_sums(folder: Path) -> dict[str, str]:
    """Hex sha256 of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def folder_digest(sums: Mapping[str, str]) -> str:
    """One hex sha256 over the names and contents of a folder's files."""
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()).encode()).hexdigest()


def write_model(folder: Path, staged: Path, sums: Mapping[str, str], *, model_id: str, run_id: str) -> None:
    """Write an MLflow model whose files are links to an export's: it takes kilobytes, wherever it stands.

    Args:
        folder: the export.
        staged: folder that is made.
        sums: sha256 of the files that belong to it.
        model_id: of the logged model.
        run_id: of its run.
    """
    from llmtune.tracking import client as _mlflow_settings  # noqa: F401 (mlflow is imported with our settings)

    # isort: split
    from mlflow.models import Model

    _save_flavor(staged, Model(model_id=model_id, run_id=run_id))
    for name in sums:
        link = staged / _FILES / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((folder / name).resolve())
    lines = [f"{sha256}  {_FILES}/{name}\n" for name, sha256 in sums.items()]
    (staged / _SUMS).write_text("".join(lines), encoding="utf-8")
    _describe_files(staged, sum(file.stat().st_size for file in staged.rglob("*") if file.is_file()))


def _save_flavor(staged: Path, model: Any) -> None:
    """Let mlflow write signature, example, requirements and the script; the model itself isn't touched or loaded."""
    import logging

    import mlflow.pyfunc

    from llmtune.tracking.model_registry import environment

    loggers = [logging.getLogger(name) for name in ("mlflow.pyfunc", "mlflow.models.model")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)  # "Validating input example against model signature"
    try:
        with environment(MLFLOW_UV_AUTO_DETECT="false"):  # else files of the working folder come in
            mlflow.pyfunc.save_model(
                path=str(staged),
                python_model=str(_SCRIPT),
                signature=_signature(),
                input_example=_EXAMPLE,
                pip_requirements=requirements(),
                mlflow_model=model,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    params = [
        ParamSpec("max_new_tokens", DataType.long, 100),
        ParamSpec("temperature", DataType.double, 0.0),
        ParamSpec("seed", DataType.long, 1),
        ParamSpec("chat", DataType.boolean, False),
    ]
    text = Schema([ColSpec(DataType.string)])
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema(params))


def requirements() -> list[str]:
    """The packages that the registered model needs, at the versions that are installed; builds as `+cpu` left out."""
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in _PINNED]


def _describe_files(staged: Path, num_bytes: int) -> None:
    """Say in `MLmodel` where the files are, in place of this machine's folders."""
    from mlflow.models import Model

    model = Model.load(str(staged))
    flavor = model.flavors["python_function"]
    flavor["artifacts"] = {"model": {"path": _FILES, "uri": _FILES}}
    flavor["model_code_path"] = _SCRIPT.name
    flavor.pop("cloudpickle_version", None)  # nothing is pickled
    model.model_size_bytes = num_bytes
    model.save(str(staged / "MLmodel"))


def _passed_figures(folder: Path) -> dict[str, float]:
    """The figures of an export's check.

    Raises:
        ExportCheckFailed: there are none, or one is beyond its bound.
    """
    try:
        figures = json.loads((folder / "parity.json").read_text(encoding="utf-8"))["figures"]
        passed = bool(figures) and all(figure["passed"] is True for figure in figures.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportCheckFailed(f"{_KEY}: {folder} has no record of a check (parity.json); export it again") from error
    if not passed:
        raise ExportCheckFailed(f"{_KEY}: {folder} has not passed its check (parity.json), so it isn't registered")
    return {f"export/{REGISTERED_FORMAT}_{name}": float(figure["value"]) for name, figure in figures.items()}


def _held_out(metrics: Mapping[str, tuple[float | None, float | None]]) -> dict[str, float]:
    """Held-out figures, named as the evaluation names them."""
    named = [(f"evaluate/{name}", tuned) for name, (_, tuned) in metrics.items()]
    named += [(f"evaluate/base_{name}", base) for name, (base, _) in metrics.items()]
    return {name: value for name, value in named if value is not None}


def _told(facts: RegistrationFacts) -> dict[str, str]:
    """How the model came about, without credentials or folders of this machine."""
    base = Path(facts.base_model)
    told = {
        "method": facts.method,
        "base_model": base.name if base.is_absolute() else facts.base_model,
        "base_sha256": facts.base_sha256,
        "data_digest": facts.data_digest,
        "llmtune_version": metadata.version("llmtune"),
    }
    return {name: without_credentials(text) for name, text in told.items() if text is not None}


def _description(folder: Path) -> str:
    """The model card's text, without what only the Hub reads, as long as every store takes it."""
    from llmtune.tracking.model_registry import LONGEST_DESCRIPTION

    card = folder / "README.md"
    text = without_credentials(card.read_text(encoding="utf-8")) if card.exists() else ""
    text = _FRONT_MATTER.sub("", text)
    return text if len(text) <= LONGEST_DESCRIPTION else text[: LONGEST_DESCRIPTION - len(_MORE)] + _MORE


def _check_room(location: str, folder: Path, sums: Mapping[str, str]) -> None:
    """Refuse to start a copy that the disk can't hold; a server's disk isn't seen from here."""
    if not location.startswith(("file:", "/")):
        return
    target = Path(location.removeprefix("file://"))
    existing = next(parent for parent in target.parents if parent.exists())
    num_bytes, free = sum((folder / name).stat().st_size for name in sums), shutil.disk_usage(existing).free
    if free < num_bytes + _SPARE_BYTES:
        raise UserError(
            f"{_KEY}: the copy in the model registry takes {num_bytes / 2**30:.2f} GiB and {existing} has "
            f"{free / 2**30:.2f} GiB free; make room there"
        )


@contextmanager
def _explained(folder: Path, facts: RegistrationFacts) -> Iterator[None]:
    """Tell errors of the store as a person can use them: the export stays, and what to type later."""
    from llmtune.tracking.client import MlflowException
    from llmtune.tracking.sending import first_line

    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; then: {facts.again}") from error
    except (MlflowException, OSError, sqlite3.Error) as error:
        raise LlmtuneError(
            f"{_KEY}={facts.name}: {without_credentials(facts.tracking_uri)} did not take the model "
            f"({first_line(error)}); the export is finished and stays in {folder}. To register it later: {facts.again}"
        ) from error
