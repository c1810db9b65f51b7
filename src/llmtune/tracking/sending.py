"""One MLflow run in a store: reached, found or made, and entries sent to it."""

import json
from collections.abc import Callable, Sequence
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
from llmtune.tracking.entry import TRAINING_METRICS, Entry, TrackedRun
from llmtune.tracking.store import check_store, open_store

_PARENT_TAG = "mlflow.parentRunId"
_SWEEP_TAG = "sweep"
_PARAMS_PER_CALL = 100
_METRICS_PER_CALL = 1000
_LONGEST_DIGEST = 36
_REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
_PLAIN_REASONS = {
    "timed out": "no answer in time",
    "refused": "connection refused",
    "error responses": "it answers with an error",
}


class RunSender:
    """Sends a run's entries; the store is opened with the first ones, and again where that failed.

    Args:
        uri: absolute tracking URI.
        run: the MLflow run.
        working_folder: where artifacts go if the store has no place of its own.
        was_away: whether the store was away before, so that the run may be there without our knowing its id.
    """

    def __init__(self, uri: str, run: TrackedRun, working_folder: Path, *, was_away: bool = False) -> None:
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.goes_on = False
        self.problem: LlmtuneError | None = None
        self._uri, self._run, self._working_folder = uri, run, working_folder
        self._was_away = was_away
        self._client: MlflowClient | None = None
        self._sent_metrics: dict[str, tuple[int, float]] = {}  # the last step of each, and its value
        self._sent_params: set[str] = set()

    def send(self, entries: Sequence[Entry]) -> None:
        """Send entries of one kind; with none, only reach for the store.

        Raises:
            Exception: the store is away. What it refuses is told, and left out.
        """
        if self._client is not None:
            check_store(self._uri)
        client, run_id = self._opened()
        if not entries:
            return
        try:
            self._sender(entries[0].kind)(client, run_id, entries)
        except FileNotFoundError as error:
            warn(f"{error.filename} is gone and isn't logged")
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            warn(f"MLflow refused {entries[0].kind}: {first_line(error)}; they are in the run folder")

    def _opened(self) -> tuple[MlflowClient, str]:
        if self._client is not None and self.run_id is not None:
            return self._client, self.run_id
        try:
            store = open_store(self._uri, self._run.experiment, self._working_folder)
        except LlmtuneError as error:
            self.problem = error
            raise
        self.experiment_id = store.experiment_id
        run_id = self._go_on(store.client) or self._create_run(store.client)
        self._tie_to_sweep(store.client, run_id)
        self._client, self.run_id = store.client, run_id
        return store.client, run_id

    def _go_on(self, client: MlflowClient) -> str | None:
        run_id = self._run.run_id or (self._named(client, self._run.name) if self._was_away else None)
        if run_id is None:
            return None
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            warn(f"MLflow run {run_id} is not in {without_credentials(self._uri)}; a new one is made")
            return None
        client.update_run(run_id, status="RUNNING")
        self.goes_on = True
        self._sent_params = set(found.data.params)
        sent: Sequence[Any] = found.data._metric_objs  # the only place that has the steps
        self._sent_metrics = {one.key: (one.step, one.value) for one in sent}
        return run_id

    def _named(self, client: MlflowClient, name: str) -> str | None:
        """The run of that name: made by an earlier request, whose answer may never have come, or by the sweep."""
        assert self.experiment_id is not None
        found = client.search_runs([self.experiment_id], f"attributes.run_name = '{name}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create_run(self, client: MlflowClient) -> str:
        tags = {"mlflow.source.name": "llmtune", **self._run.tags}
        family = {_SWEEP_TAG: self._run.sweep, _PARENT_TAG: self._run.parent_run_id}
        tags |= {key: value for key, value in family.items() if value}
        self._was_away = True  # where the answer to this doesn't come, the next attempt looks for the run
        assert self.experiment_id is not None
        return client.create_run(self.experiment_id, run_name=self._run.name, tags=tags).info.run_id

    def _tie_to_sweep(self, client: MlflowClient, run_id: str) -> None:
        """Make a job's run the child of its sweep's, where the store was away as either was made: the later one does.

        Each is there before it looks for the other, so that one of two at the same time finds the other.
        """
        if self._run.sweep is not None and self._run.parent_run_id is None:
            parent = self._named(client, self._run.sweep)
            if parent is not None:
                client.set_tag(run_id, _PARENT_TAG, parent)
        if self._run.is_sweep and self.experiment_id is not None:
            for job in client.search_runs([self.experiment_id], f"tags.{_SWEEP_TAG} = '{self._run.name}'"):
                if _PARENT_TAG not in job.data.tags:
                    client.set_tag(job.info.run_id, _PARENT_TAG, run_id)

    def _sender(self, kind: str) -> Callable[[MlflowClient, str, Sequence[Entry]], None]:
        return {
            "params": self._send_params,
            "tags": _send_tags,
            "metrics": self._send_metrics,
            "artifact": _send_artifact,
            "dataset": _send_dataset,
            "end": _send_end,
        }[kind]

    def _send_params(self, client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
        texts = entries[0].content
        items = [Param(key, text) for key, text in texts.items() if key not in self._sent_params]
        for start in range(0, len(items), _PARAMS_PER_CALL):
            client.log_batch(run_id, params=items[start : start + _PARAMS_PER_CALL])

    def _send_metrics(self, client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
        """Send the metrics that the store lacks; a run that goes on makes some of them again."""
        sent, metrics = dict(self._sent_metrics), []
        for entry in entries:
            step = entry.content["step"]
            for key, value in entry.content["values"].items():
                if _is_new(key, (step, value), sent.get(key)):
                    metrics.append(Metric(key, value, entry.content["timestamp"], step))
                    sent[key] = (step, value)
        for start in range(0, len(metrics), _METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])
        self._sent_metrics = sent


def _is_new(key: str, point: tuple[int, float], last: tuple[int, float] | None) -> bool:
    """Whether the store lacks a metric's point: a later step of a curve, or another value of a single figure."""
    is_curve = last is not None and last[0] > 0 and key.startswith(TRAINING_METRICS)
    return last is None or (point[0] > last[0] if is_curve else point != last)


def first_line(error: Exception) -> str:
    """The error's first line without credentials, in plain words where the connection failed; or its type."""
    lines = str(error).strip().splitlines()
    if "Max retries exceeded" in str(error):
        return next((plain for part, plain in _PLAIN_REASONS.items() if part in str(error)), "no connection")
    return without_credentials(lines[0])[:200] if lines else type(error).__name__


def _send_tags(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    client.log_batch(run_id, tags=[RunTag(key, text) for key, text in entries[0].content.items()])


def _send_artifact(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    content = entries[0].content
    path, folder = Path(content["path"]), content["folder"] or None
    if not path.exists():
        raise FileNotFoundError(2, "is gone", str(path))
    log = client.log_artifacts if path.is_dir() else client.log_artifact
    log(run_id, str(path), folder)


def _send_dataset(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    content = entries[0].content
    dataset = Dataset(
        name=content["name"],
        digest=content["digest"][:_LONGEST_DIGEST],
        source_type="llmtune",
        source=json.dumps({"source": content["source"], "digest": content["digest"]}),
        profile=json.dumps({"num_rows": content["num_rows"]}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", content["context"])])])


def _send_end(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    client.set_terminated(run_id, entries[0].content["status"], end_time=entries[0].content["timestamp"])
