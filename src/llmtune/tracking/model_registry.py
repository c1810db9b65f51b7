"""MLflow's model registry: a folder logged as a model of a run, its versions under a name, and the alias `proven`."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from llmtune.tracking.client import Metric, MlflowClient, MlflowException
from llmtune.tracking.store import check_store

PROVEN = "proven"
"""Alias of the newest version whose files passed their check."""
DIGEST_TAG = "export_sha256"
"""Tag that holds the digest of all files of an export."""
MODEL_TAG = "model_id"
"""Tag of a version that holds its logged model's id: databases don't keep it otherwise."""
CHECK_TAG = "check"
PASSED = "passed"
LONGEST_DESCRIPTION = 5000
"""Characters of a description that every database holds."""

_VERSIONS_TAG = "mlflow.modelVersions"
_PROMPT_TAG = "mlflow.prompt.is_prompt"
_TAKEN = {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}
_BUSY_WORDS = ("is locked", "deadlock", "Giving up after")
_WAITS_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
_UPLOAD_BYTES_PER_SECOND = 4 * 2**20
_LEAST_UPLOAD_SECONDS = 120

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What MLflow is told of a model beside its files."""

    run_id: str
    """MLflow run that the model belongs to."""
    title: str
    """Name of the logged model."""
    digest: str
    """Hex sha256 over all files of the export."""
    description: str
    facts: Mapping[str, str]
    """How the model came about: params of the logged model, tags of the version."""
    metrics: Mapping[str, float]
    """Figures of the model, named as in the run."""


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry."""

    name: str
    version: int
    model_id: str
    """The logged model whose files it has."""
    is_proven: bool
    """Whether the alias stands on it."""
    is_new: bool = False
    """Whether it was made now; else it was there."""


class ModelRegistry:
    """The registry of the store that a run is recorded in; calls to a busy store are made again for some seconds.

    Args:
        uri: absolute tracking URI, with credentials where it needs them.

    Raises:
        Exception: the store is away, as `check_store` says.
    """

    def __init__(self, uri: str) -> None:
        check_store(uri)
        self._uri = uri
        self._client = MlflowClient(uri, registry_uri=uri)

    def ask(self, name: str) -> bool:
        """Whether a name may get versions: it is free or a model's, not a prompt's. Nothing is changed.

        Raises:
            MlflowException: the store has no registry, or none for the models of MLflow 3.
        """
        self._client.search_logged_models(["0"], max_results=1)
        prompts = f"name = '{name}' AND tag.`{_PROMPT_TAG}` = 'true'"  # else only models are found
        return not self._client.search_registered_models(prompts, max_results=1)

    def find(self, name: str, digest: str) -> ModelVersion | None:
        """The newest version of a name with these files; the alias is set where none of the versions has it."""
        found = self._versions(name, f"tags.{DIGEST_TAG} = '{digest}'")
        if not found:
            return None
        if PROVEN not in self._client.get_registered_model(name).aliases:
            self._move_alias(name)
        return self._read(name, int(found[0].version))

    def logged_model(self, facts: ModelFacts) -> Any:
        """The run's model with these files: whole, or begun by a process that was killed; else one made now."""
        run = self._client.get_run(facts.run_id)
        asked = f"tags.{DIGEST_TAG} = '{facts.digest}' AND source_run_id = '{facts.run_id}'"
        found = self._client.search_logged_models([run.info.experiment_id], asked, max_results=1)
        if found:
            return found[0]
        return self._patiently(
            lambda: self._client.create_logged_model(
                run.info.experiment_id,
                name=facts.title,
                source_run_id=facts.run_id,
                tags={DIGEST_TAG: facts.digest, CHECK_TAG: PASSED},
                params=dict(facts.facts),
            )
        )

    def fill(self, model: Any, folder: Path, facts: ModelFacts) -> None:
        """Copy a folder to where the store keeps the model's files, and declare it ready, with its figures.

        Args:
            model: from `logged_model`.
            folder: its files; links are followed.
            facts: what is told of it.
        """
        from mlflow.entities import LoggedModelOutput

        if model.status == "READY":
            return
        num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        seconds = _LEAST_UPLOAD_SECONDS + num_bytes // _UPLOAD_BYTES_PER_SECOND
        with environment(MLFLOW_HTTP_REQUEST_TIMEOUT=str(seconds)):
            self._client.log_model_artifacts(model.model_id, str(folder))
        outputs = self._client.get_run(facts.run_id).outputs
        if model.model_id not in [one.model_id for one in (outputs.model_outputs if outputs else [])]:
            output = [LoggedModelOutput(model.model_id, step=0)]
            self._patiently(lambda: self._client.log_outputs(facts.run_id, output))
        self._log_metrics(model.model_id, facts)
        self._patiently(lambda: self._client.finalize_logged_model(model.model_id, "READY"))

    def add_version(self, name: str, model: Any, facts: ModelFacts) -> ModelVersion:
        """Make the model the newest version of a name, and let the alias stand on the newest checked one."""
        self._patiently(lambda: self._make_name(name))
        version = self._patiently(lambda: self._make_version(name, model, facts))
        listed = json.loads(self._client.get_logged_model(model.model_id).tags.get(_VERSIONS_TAG, "[]"))
        own = {"name": name, "version": version}
        if own not in listed:  # a server does it itself; the model's page links to the version by it
            tags = {_VERSIONS_TAG: json.dumps([*listed, own])}
            self._patiently(lambda: self._client.set_logged_model_tags(model.model_id, tags))
        self._move_alias(name)
        return self._read(name, version, is_new=True)

    def _make_name(self, name: str) -> None:
        try:
            self._client.create_registered_model(
                name,
                description="Language models specialised by llmtune, each version a checked export: "
                f'`mlflow.pyfunc.load_model("models:/{name}@{PROVEN}").predict(["Once upon a time"])`',
            )
        except MlflowException as error:
            if error.error_code not in _TAKEN:
                raise

    def _make_version(self, name: str, model: Any, facts: ModelFacts) -> int:
        """The version of the model, made where an earlier attempt, whose answer may never have come, did not."""
        for one in self._versions(name, f"tags.{MODEL_TAG} = '{model.model_id}'"):
            return int(one.version)
        # A database that is opened directly looks a model's id up in another store, MLflow's global one.
        is_server = self._uri.startswith(("http://", "https://"))
        made = self._client.create_model_version(
            name,
            f"models:/{model.model_id}" if is_server else model.artifact_location,
            run_id=facts.run_id,
            tags={**facts.facts, DIGEST_TAG: facts.digest, CHECK_TAG: PASSED, MODEL_TAG: model.model_id},
            description=facts.description[:LONGEST_DESCRIPTION],
            model_id=model.model_id,
            await_creation_for=0,
        )
        return int(made.version)

    def _move_alias(self, name: str) -> None:
        """Let the alias stand on the newest checked version, also of those that others make meanwhile.

        Whoever sets it looks once more; so the last one to set it has seen every version that was there.
        """
        checked = f"tags.{CHECK_TAG} = '{PASSED}'"
        newest = self._versions(name, checked)[0].version
        while True:
            version = newest
            self._patiently(lambda version=version: self._client.set_registered_model_alias(name, PROVEN, version))
            newest = self._versions(name, checked)[0].version
            if newest == version:
                return

    def _versions(self, name: str, tagged: str) -> list[Any]:
        """Versions with a tag, the newest first."""
        return list(
            self._client.search_model_versions(
                f"name = '{name}' AND {tagged}", max_results=100, order_by=["version_number DESC"]
            )
        )

    def _read(self, name: str, version: int, *, is_new: bool = False) -> ModelVersion:
        found = self._client.get_model_version(name, str(version))
        return ModelVersion(name, version, found.tags.get(MODEL_TAG, ""), PROVEN in found.aliases, is_new)

    def _log_metrics(self, model_id: str, facts: ModelFacts) -> None:
        """Tie figures to the model; one that the run has stays one point of it, and is tied as it is."""
        known: dict[str, Any] = {one.key: one for one in self._client.get_run(facts.run_id).data._metric_objs}
        now, metrics = int(time.time() * 1000), []
        for key, value in facts.metrics.items():
            same = known.get(key)
            is_known = same is not None and same.value == value
            when, step = (same.timestamp, same.step) if same is not None and is_known else (now, 0)
            metrics.append(Metric(key, value, when, step, model_id=model_id, run_id=facts.run_id))
        if metrics:
            self._patiently(lambda: self._client.log_batch(facts.run_id, metrics=metrics))

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """What a call says, made again with growing waits where other writers keep the store busy."""
        for seconds in _WAITS_SECONDS:
            try:
                return call()
            except MlflowException as error:
                if not any(word in str(error) for word in _BUSY_WORDS):
                    raise
            time.sleep(seconds * random.Random().uniform(0.5, 1.5))
        return call()


def version_link(base: str, name: str, version: int) -> str:
    """The page of a version.

    Args:
        base: start of the link, from `links.ui_base`.
        name: registered model's name.
        version: its version.
    """
    return f"{base}/#/models/{quote(name, safe='')}/versions/{version}"


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables that hold for a while: some settings of MLflow can be made in no other way."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
