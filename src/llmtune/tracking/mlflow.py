"""The tracker that records in MLflow, by run id and without MLflow's global state."""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtune.errors import LlmtuneError
from llmtune.logs import warn
from llmtune.runs.status import without_credentials
from llmtune.tracking.client import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    MlflowClient,
    MlflowException,
    Param,
    RunTag,
)
from llmtune.tracking.metric_queue import MetricQueue, as_metrics
from llmtune.tracking.secrets import mask_secrets
from llmtune.tracking.store import Store, open_store, store_answers
from llmtune.tracking.system_metrics import SystemMetrics
from llmtune.tracking.tracker import RunStatus

PARENT_RUN_VARIABLE = "LLMTUNE_PARENT_RUN_ID"
"""Environment variable that gives a sweep's job the MLflow run of the sweep."""

_PARENT_TAG = "mlflow.parentRunId"
_PARAMS_PER_CALL = 100
_LONGEST_PARAM = 500
_LONGEST_TAG = 8000
_LONGEST_KEY = 250
_LONGEST_DIGEST = 36
_CLOSE_DEADLINE_SECONDS = 5.0
_TRAINING_METRICS = ("train/", "evaluate/validation_")
_REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED"}


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """Which MLflow run a tracker records in."""

    experiment: str
    """MLflow experiment's name."""
    name: str
    """Run's name."""
    parent_run_id: str | None = None
    """MLflow run of the sweep that the run belongs to."""
    run_id: str | None = None
    """MLflow run to go on in; None makes a new one."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Searchable tags."""


class MlflowTracker:
    """Records a run in MLflow. A store that is away is said once, and the run goes on without it.

    Args:
        uri: absolute tracking URI, from `store.resolve_tracking_uri`.
        run: the MLflow run.
        working_folder: where artifacts go if the store has no place of its own.
        system_metrics: whether to log CPU, memory and GPU use, from the first metric on: MLflow's compare page opens
            with the metric that came first, which is then the loss.

    Raises:
        ConfigError: the experiment was deleted in that store.
    """

    def __init__(self, uri: str, run: TrackedRun, working_folder: Path, *, system_metrics: bool = False) -> None:
        self._uri = uri
        self._away = threading.Event()
        self._run_id: str | None = None
        self._experiment_id: str | None = None
        self._client: MlflowClient | None = None
        self._sent_steps: dict[str, int] = {}
        self._sent_params: set[str] = set()
        self._queue: MetricQueue | None = None
        self._system_metrics: SystemMetrics | None = None
        self._start_system_metrics: Callable[[], SystemMetrics] | None = None
        try:
            store = open_store(uri, run.experiment, working_folder)
            self._client, self._experiment_id = store.client, store.experiment_id
            self._run_id = self._go_on(store, run) or _create_run(store, run)
            resumed, run_id = run.run_id == self._run_id, self._run_id
            if system_metrics:
                self._start_system_metrics = lambda: SystemMetrics(uri, run_id, resumed=resumed)
        except LlmtuneError:
            raise
        except Exception as error:  # whatever the store raises, training goes on
            self._say_away(error)
            return
        self._queue = MetricQueue(self._send_metrics, self._say_away)

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None where the store was away at the start."""
        return self._run_id

    @property
    def uri(self) -> str:
        """The store's absolute tracking URI."""
        return self._uri

    @property
    def experiment_id(self) -> str | None:
        """The MLflow experiment's id; None where the store was away at the start."""
        return self._experiment_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record the flattened config: secrets masked, values over 500 characters left to the YAML artifact.

        A run that goes on keeps the params that it has: MLflow refuses to change one.
        """
        texts = {_key(key): _param_text(value) for key, value in mask_secrets(params).items()}
        new = {key: text for key, text in texts.items() if key not in self._sent_params and len(text) <= _LONGEST_PARAM}
        items = [Param(key, text) for key, text in new.items()]
        for start in range(0, len(items), _PARAMS_PER_CALL):
            chunk = items[start : start + _PARAMS_PER_CALL]
            self._attempt("params", lambda client, run_id, chunk=chunk: client.log_batch(run_id, params=chunk))
        self._sent_params.update(new)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set searchable tags; a value over 8000 characters is cut."""
        items = [RunTag(_key(key), text[:_LONGEST_TAG]) for key, text in tags.items()]
        self._attempt("tags", lambda client, run_id: client.log_batch(run_id, tags=items))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue metrics (`<stage>/<name>`) at `step`; a run that goes on skips training's steps that were sent."""
        if self._queue is None:
            return
        unsent = {_key(key): value for key, value in metrics.items() if step > self._sent_steps.get(key, -1)}
        self._queue.put(as_metrics(unsent, step))
        if self._start_system_metrics is not None and self._system_metrics is None:
            self._system_metrics = self._start_system_metrics()

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or what a folder holds, below `folder` of the run's artifacts."""

        def upload(client: MlflowClient, run_id: str) -> None:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(run_id, str(path), folder or None)

        self._attempt(f"artifact {path.name}", upload)

    def log_dataset(self, name: str, digest: str, source: str, context: str, num_rows: int) -> None:
        """Record a data set as the run's input; `context` is train, validation or test."""
        dataset = Dataset(
            name=name,
            digest=digest[:_LONGEST_DIGEST],
            source_type="llmtune",
            source=json.dumps({"source": without_credentials(source), "digest": digest}),
            profile=json.dumps({"num_rows": num_rows}),
        )
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self._attempt(f"data set {name}", lambda client, run_id: client.log_inputs(run_id, [entry]))

    def close(self, status: RunStatus) -> None:
        """Send what is left, for at most 5 s, and end the run with `status`."""
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._system_metrics = self._start_system_metrics = None
        if self._queue is None:
            return
        num_unsent = self._queue.close(_CLOSE_DEADLINE_SECONDS)
        self._queue = None
        if num_unsent:
            warn(f"{num_unsent} metrics did not reach {without_credentials(self._uri)}; they are in the run folder")
        self._attempt("the run's end", lambda client, run_id: client.set_terminated(run_id, status))

    def _go_on(self, store: Store, run: TrackedRun) -> str | None:
        if run.run_id is None:
            return None
        try:
            found = store.client.get_run(run.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            warn(f"MLflow run {run.run_id} is not in {without_credentials(self._uri)}; a new one is made")
            return None
        store.client.update_run(run.run_id, status="RUNNING")
        self._sent_params = set(found.data.params)
        sent: Sequence[Any] = found.data._metric_objs  # the only place that has the steps
        self._sent_steps = {one.key: one.step for one in sent if one.key.startswith(_TRAINING_METRICS)}
        return run.run_id

    def _send_metrics(self, batch: Sequence[Metric]) -> None:
        if self._client is None or self._run_id is None:
            return
        if not store_answers(self._uri):
            raise ConnectionError("nothing listens there")
        try:
            self._client.log_batch(self._run_id, metrics=batch)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            warn(f"MLflow refused {len(batch)} metrics: {_first_line(error)}; they are in the run folder")

    def _attempt(self, what: str, call: Callable[[MlflowClient, str], object]) -> None:
        if self._client is None or self._run_id is None:
            return
        try:
            if not store_answers(self._uri):
                raise ConnectionError("nothing listens there")
            call(self._client, self._run_id)
        except Exception as error:  # whatever the store raises, the run goes on
            if isinstance(error, MlflowException) and error.error_code in _REFUSED:
                warn(f"MLflow refused {what}: {_first_line(error)}")
            else:
                self._say_away(error)

    def _say_away(self, error: Exception) -> None:
        if self._away.is_set():
            return
        self._away.set()
        warn(
            f"the MLflow store {without_credentials(self._uri)} can't be written to ({_first_line(error)}); the run "
            "goes on and everything is kept in its folder. Start the server, or set tracking.uri="
        )


def _create_run(store: Store, run: TrackedRun) -> str:
    tags = {"mlflow.source.name": "llmtune", **run.tags}
    if run.parent_run_id:
        tags[_PARENT_TAG] = run.parent_run_id
    return store.client.create_run(store.experiment_id, run_name=run.name, tags=tags).info.run_id


def _key(key: str) -> str:
    return re.sub(r"[^\w/. :-]", "_", key, flags=re.ASCII)[:_LONGEST_KEY]


def _param_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return without_credentials(lines[0][:200]) if lines else type(error).__name__
