"""`compare` on records that were written by hand: what it takes, shows, keeps and tells MLflow."""

import errno
import json
import shutil
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from sqlalchemy.exc import DatabaseError

from llmtune.commands import compare
from llmtune.commands.compare import parse_request
from llmtune.config.validate import to_plain, to_run_config
from llmtune.errors import ConfigError, RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import new_sweep_folder
from llmtune.runs.manifest import write_json
from llmtune.runs.status import RunStatusFile
from llmtune.sweep import comparing, known_runs
from llmtune.sweep.candidates import candidates_of
from llmtune.sweep.comparing import compare_jobs
from llmtune.sweep.job import JobOutcome, SweepJob, SweepSettings
from llmtune.sweep.plan import SweepPlan, write_plan
from llmtune.tracking.client import MlflowException

pytestmark = pytest.mark.fast

GAINS = {"lora": 0.98, "full": 1.0}
"""Method to how far it is below the base model, nats a token."""
SEEDS = (1, 2, 3)
OLD, PARENT = "sqlite:////old.db", "a" * 32
HARD = np.random.default_rng(1).normal(3.0, 0.5, 60)
"""The base model's loss on each test example, nats a token."""


def write_losses(folder: RunFolder, model: str, losses: np.ndarray) -> None:
    path, count = folder.predictions_file(model), len(losses)
    path.parent.mkdir(exist_ok=True)
    columns = {"num_supervised_tokens": [10] * count, "num_supervised_bytes": [40] * count}
    pq.write_table(pa.table({"example_id": [f"e{i}" for i in range(count)], "loss_sum": 10 * losses, **columns}), path)


def write_run(path: Path, method: str, seed: int, data: str = "d1") -> RunFolder:
    """A run's record, as far as a comparison reads it."""
    folder, random = RunFolder(path), np.random.default_rng([seed, len(method)])
    path.mkdir(parents=True)
    plain = {
        "model": {"name": "tiny", "source": "folder", "path": "/models/tiny"},
        "method": {"name": method},
        "data": {"source": "files", "path": "/data/train.jsonl"},
        "train": {"learning_rate": 2e-5 if method == "full" else 2e-4},
        "seed": seed,
        "tracking": {"uri": OLD},
    }
    folder.config_file.write_text(yaml.dump(to_plain(to_run_config(plain))))
    stages = {"train": {"seconds": 60.0, "peak_memory_gib": 1.0}, "evaluate": {"checkpoint": "checkpoint-8"}}
    content = {"format_version": 1, "stages": stages, "model": {"weights_digest": "w", "tokenizer_digest": "t"}}
    data_section = {"digest": data, "split_digests": {"train": data, "test": "t1"}}
    write_json(folder.manifest_file, {**content, "data": data_section, "choices": {"device_name": "CPU"}})
    write_losses(folder, "base", HARD)
    write_losses(folder, "tuned", HARD - GAINS[method] + random.normal(0, 0.003) + random.normal(0, 0.01, len(HARD)))
    status = RunStatusFile(folder.status_file)
    status.start(mlflow_id(method, seed), OLD)
    status.end("FINISHED")
    return folder


def mlflow_id(method: str, seed: int) -> str:
    return f"{list(GAINS).index(method)}{seed}".ljust(32, "0")


def make_sweep(runs_dir: Path, methods: Sequence[str] = ("lora", "full"), seeds: Sequence[int] = SEEDS) -> RunFolder:
    """A sweep that ended; its last job failed before it measured anything."""
    sweep = new_sweep_folder(runs_dir, datetime(2026, 1, 2, 3, 4, 5))
    jobs = []
    for method in methods:
        for seed in seeds:
            folder = write_run(runs_dir / f"20260102-030405-{method}-tiny-000{seed}", method, seed)
            jobs.append(job_of(folder, method, seed))
    failed = RunFolder(runs_dir / "20260102-030405-full-tiny-0009")
    shutil.copytree(jobs[0].folder.path, failed.path)
    failed.config_file.write_text(failed.config_file.read_text().replace("seed: 1\n", "seed: 9\n"))
    write_json(failed.manifest_file, {"format_version": 1, "stages": {}})
    RunStatusFile(failed.status_file).end("FAILED", "out of memory")
    jobs.append(job_of(failed, "full", 9))
    write_plan(sweep, SweepPlan(stages=["train"], working_folder=runs_dir, jobs=jobs))
    RunStatusFile(sweep.status_file).start(PARENT, OLD)
    RunStatusFile(sweep.status_file).end("FAILED")
    return sweep


def job_of(folder: RunFolder, method: str, seed: int) -> SweepJob:
    differences = {"method": method, "seed": str(seed)}
    return SweepJob(name=f"{method} seed={seed}", folder=folder, differences=differences, command=[])


class Stores:
    """MLflow stores that note what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.known: set[str] = {mlflow_id("lora", 1), mlflow_id("full", 2)}

    def __call__(self, uri: str) -> Any:
        return SimpleNamespace(
            set_tag=lambda run_id, key, text: self.told.append((uri, run_id, key, text)),
            log_artifact=lambda run_id, path: self.told.append((uri, run_id, Path(path).name)),
            get_run=self._run,
        )

    def _run(self, run_id: str) -> Any:
        if run_id not in self.known:
            raise MlflowException("there is no such run", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(info=SimpleNamespace(experiment_id="7"))


@pytest.fixture
def stores(monkeypatch) -> Stores:
    stores = Stores()
    monkeypatch.setattr(comparing, "open_existing_store", stores)
    monkeypatch.setattr(known_runs, "open_existing_store", stores)
    return stores


@pytest.fixture
def runs_dir(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def sweep(runs_dir) -> RunFolder:
    return make_sweep(runs_dir)


def read_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "comparison.json").read_text())


def test_a_sweep_is_compared_kept_with_it_and_told_to_its_store(sweep, runs_dir, stores, capsys) -> None:
    assert compare.run([f"run={sweep.path.name}", f"runs_dir={runs_dir}"]) == 0
    found = read_json(sweep.path)
    text = (sweep.path / "comparison.md").read_text()
    assert text.startswith(f"## {sweep.path.name}")
    assert "full seed=9: FAILED, out of memory" in text
    assert found["unfair"] == []
    assert "lora" in found["verdict"] and "full" in found["verdict"]
    assert stores.told[0][:3] == (OLD, PARENT, "mlflow.note.content")
    assert "| base model |" in stores.told[0][3]
    files = ("comparison.json", "comparison.md", "comparison.html")
    assert stores.told[1:] == [(OLD, PARENT, name) for name in files]
    assert all((sweep.path / name).stat().st_size for name in files)
    shown = unquote("".join(capsys.readouterr().out.split()))
    assert f"thecomparison:{sweep.path}/comparison.html" in shown
    assert f'compare-runs?runs=["{mlflow_id("full", 2)}","{mlflow_id("lora", 1)}"]&experiments=["7"]' in shown


def test_a_typed_store_is_the_one_that_is_told(sweep, runs_dir, stores) -> None:
    assert compare.run(["run=latest", f"runs_dir={runs_dir}", "tracking.uri=sqlite:////new.db"]) == 0
    assert [told[0] for told in stores.told] == ["sqlite:////new.db"] * 4


def test_what_is_typed_counts(sweep, runs_dir, stores) -> None:
    """60 s at 6 an hour are 0.1; a margin of nearly nothing decides otherwise than one of 5 %."""
    before = _compared(sweep, runs_dir)
    after = _compared(sweep, runs_dir, "compare.price_per_hour=6", "compare.margin=0.0001")
    assert before["verdict"] != after["verdict"]
    (lora,) = [row for row in after["rows"] if row["name"] == "lora"]
    assert lora["price"] == pytest.approx(0.1)


def _compared(sweep: RunFolder, runs_dir: Path, *words: str) -> dict[str, Any]:
    assert compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}", *words]) == 0
    return read_json(sweep.path)


def test_runs_of_no_one_sweep_get_a_folder_of_their_own_and_no_store_is_told(sweep, runs_dir, stores) -> None:
    names = ",".join(sorted(path.name for path in runs_dir.glob("*-tiny-000[12]")))
    assert compare.run([f"runs=[{names}]", f"runs_dir={runs_dir}"]) == 0
    (folder,) = runs_dir.glob("*-comparison-*")
    assert (folder / "comparison.md").read_text().startswith("## 4 runs")
    assert stores.told == [] and not (sweep.path / "comparison.md").exists()


def test_runs_that_may_not_be_ranked_are_an_exit_status_of_1(runs_dir, stores) -> None:
    write_run(runs_dir / "20260102-030405-lora-tiny-0001", "lora", 1)
    write_run(runs_dir / "20260102-030405-full-tiny-0001", "full", 1, data="d2")
    words = ["runs=20260102-030405-lora-tiny-0001,20260102-030405-full-tiny-0001", f"runs_dir={runs_dir}"]
    assert compare.run(words) == 1
    (folder,) = runs_dir.glob("*-comparison-*")
    assert read_json(folder)["unfair"] != []


def test_where_no_run_can_be_compared_each_reason_is_told(runs_dir, stores) -> None:
    sweep = _with_nothing_measured(runs_dir)
    with pytest.raises(RunError, match=r"none of the runs can be compared: full seed=9: out of memory"):
        compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}"])
    assert not (sweep.path / "comparison.json").exists()


def _with_nothing_measured(runs_dir: Path) -> RunFolder:
    sweep = make_sweep(runs_dir, methods=("lora",), seeds=(1,))
    content = json.loads(sweep.sweep_file.read_text())
    write_json(sweep.sweep_file, {**content, "jobs": content["jobs"][1:]})
    return sweep


def test_a_store_that_is_away_is_said_and_the_files_stay(sweep, runs_dir, monkeypatch, capsys) -> None:
    monkeypatch.setattr(comparing, "open_existing_store", lambda uri: None)
    monkeypatch.setattr(known_runs, "open_existing_store", lambda uri: None)
    assert compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"the MLflow store {OLD} is away" in shown and "side by side" not in shown
    assert (sweep.path / "comparison.html").exists()


def test_a_damaged_store_is_said_once_and_costs_nothing_else(sweep, runs_dir, monkeypatch, capsys) -> None:
    """What SQLAlchemy raises comes through mlflow as it is."""
    error = DatabaseError("SELECT name", {}, sqlite3.DatabaseError("file is not a database"))
    for room in (comparing, known_runs):
        monkeypatch.setattr(room, "open_existing_store", lambda uri: _raise(error))
    assert compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("warning: ") == 1
    assert shown.index("the comparison: ") < shown.index("could not be brought up to date: (sqlite3.DatabaseError)")


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize("typed", [None, "sqlite:////typed.db"])
def test_a_store_that_was_moved_with_the_sweep_is_the_one_of_the_working_folder(
    sweep, runs_dir, tmp_path, monkeypatch, capsys, typed
) -> None:
    """The recorded one is gone; a typed one is nevertheless the only one that is asked."""
    here, stores = f"sqlite:///{tmp_path / 'mlflow.db'}", Stores()
    stores.known.add(PARENT)
    for room in (comparing, known_runs):
        monkeypatch.setattr(room, "open_existing_store", lambda uri: None if uri == OLD else stores(uri))
    monkeypatch.chdir(tmp_path)
    words = [f"tracking.uri={typed}"] if typed else []
    assert compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}", *words]) == 0
    assert {told[0] for told in stores.told} == {typed or here}
    assert "side by side: " in capsys.readouterr().out
    stores.known.clear()
    assert known_runs.store_of([PARENT], None, OLD) == OLD


def test_a_store_that_can_never_be_one_is_told_before_the_work(sweep, runs_dir) -> None:
    with pytest.raises(ConfigError, match="nothing is no kind of MLflow store"):
        compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}", "tracking.uri=nothing://x"])
    assert not (sweep.path / "comparison.json").exists()


@pytest.mark.parametrize("is_sweep", [True, False])
def test_where_nothing_can_be_written_the_answer_is_shown(
    sweep, runs_dir, stores, monkeypatch, capsys, is_sweep
) -> None:
    """A sweep's page in MLflow gets its text; for runs of no one sweep there is no place for a folder."""
    if is_sweep:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(comparing, "write_files", lambda comparison, folder: _raise(full))
        words, reason = [f"run={sweep.path}", f"runs_dir={runs_dir}"], "no space left: make room"
    else:
        words = [f"runs={','.join(map(str, runs_dir.glob('*-tiny-000[12]')))}", "runs_dir=/proc/nowhere"]
        reason = "runs_dir=/proc/nowhere: the folder can't be made"
    assert compare.run(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "lora" in shown and f"the comparison isn't kept in files: {reason}" in shown
    assert "the comparison: " not in shown
    assert [told[2] for told in stores.told] == (["mlflow.note.content"] if is_sweep else [])


def test_a_damaged_config_of_the_first_run_is_one_run_less(sweep, runs_dir, stores) -> None:
    folders = [job.folder for job in candidates_of([str(sweep.path)], runs_dir).candidates]
    folders[0].config_file.write_text("seed: [1\n")
    assert compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}"]) == 0
    found = read_json(sweep.path)
    assert sorted(row["name"] for row in found["rows"]) == ["base model", "full", "lora"]
    assert any("isn't YAML" in run["error"] for run in found["missing"])
    for folder in folders:
        folder.config_file.write_text("seed: [1\n")
    with pytest.raises(RunError, match=rf"{folders[0].config_file}:2: isn't YAML"):
        compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}"])


def test_a_sweep_at_work_says_of_each_job_where_it_stands(sweep, runs_dir, stores) -> None:
    """Its eighth job is being trained, by this process; of the ninth there is only the config."""
    first = runs_dir / "20260102-030405-lora-tiny-0001"
    content = json.loads(sweep.sweep_file.read_text())
    for seed in (11, 12):
        run = RunFolder(runs_dir / f"20260102-030405-lora-tiny-00{seed}")
        run.path.mkdir()
        run.config_file.write_text((first / "config.yaml").read_text().replace("seed: 1\n", f"seed: {seed}\n"))
        content["jobs"].append({**content["jobs"][0], "name": f"lora seed={seed}", "folder": str(run.path)})
        if seed == 11:
            RunStatusFile(run.status_file).start()
    write_json(sweep.sweep_file, content)
    assert compare.run([f"run={sweep.path}", f"runs_dir={runs_dir}"]) == 0
    missing = {run["name"]: run["error"] for run in read_json(sweep.path)["missing"]}
    assert missing["lora seed=11"] == "still running"
    assert missing["lora seed=12"] == "not started"


def test_a_run_is_a_candidate_once_by_whatever_name(sweep, runs_dir) -> None:
    one = f"20260102-030405-lora-tiny-000{SEEDS[1]}"
    of_sweep = candidates_of([PARENT], runs_dir)
    assert of_sweep.sweep is not None and of_sweep.sweep.path.samefile(sweep.path)
    assert [each.name for each in of_sweep.candidates][-2:] == ["full seed=3", "full seed=9"]
    assert [each.status for each in of_sweep.candidates] == ["FINISHED"] * 6 + ["FAILED"]
    several = candidates_of(["latest", one, str(runs_dir / one), mlflow_id("lora", SEEDS[1])], runs_dir)
    assert several.sweep is None and len(several.candidates) == 7
    alone = candidates_of([one], runs_dir)
    assert alone.sweep is None and [each.name for each in alone.candidates] == [one]


def test_a_sweep_of_an_older_llmtune_is_known_by_its_summary(sweep, runs_dir) -> None:
    sweep.sweep_file.unlink()
    with pytest.raises(RunError, match="names no runs; name them with runs="):
        candidates_of([str(sweep.path)], runs_dir)
    name = "20260102-030405-lora-tiny-0001"
    sweep.summary_file.write_text(json.dumps([{"folder": str(runs_dir / name)}]))
    assert [each.name for each in candidates_of([str(sweep.path)], runs_dir).candidates] == [name]


def test_of_a_sweep_whose_plan_is_damaged_the_runs_of_the_summary_are_taken(sweep, runs_dir, capsys) -> None:
    sweep.sweep_file.write_text("{")
    with pytest.raises(RunError, match=r"names no runs \(.*sweep.json is damaged"):
        candidates_of([str(sweep.path)], runs_dir)
    name = "20260102-030405-lora-tiny-0001"
    sweep.summary_file.write_text(json.dumps([{"folder": f"/elsewhere/{name}"}]))
    assert [each.folder.path for each in candidates_of([str(sweep.path)], runs_dir).candidates] == [runs_dir / name]
    shown = " ".join(capsys.readouterr().out.split())
    assert "the runs are those that" in shown and "is damaged" in shown


def test_a_sweep_that_ends_compares_its_own_jobs(sweep, runs_dir) -> None:
    outcomes = [
        JobOutcome(job=job_of(RunFolder(path), *_method_and_seed(path)), status="FINISHED")
        for path in sorted(runs_dir.glob("*-tiny-000[123]"))
    ]
    lost = SweepJob(name="lost", folder=RunFolder(runs_dir / "lost"), differences={}, command=[])
    settings = SweepSettings(folder=sweep, experiment="e")
    compared = compare_jobs([*outcomes, JobOutcome(job=lost, status="KILLED", error="interrupted")], settings)
    assert compared is not None
    comparison, files = compared
    assert sorted(row.name for row in comparison.rows) == ["base model", "full", "lora"]
    assert [(run.name, run.status, run.error) for run in comparison.missing] == [("lost", "KILLED", "interrupted")]
    assert files.page == sweep.path / "comparison.html"
    assert compare_jobs([JobOutcome(job=lost, status=None)], settings) is None


def _method_and_seed(path: Path) -> tuple[str, int]:
    return path.name.split("-")[2], int(path.name[-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=[]"], r"runs=\[\]: names nothing; name a sweep or runs, such as runs=\[A,B\]"),
        (["run=,"], "run=,: names nothing"),
        (["run="], "run=: is empty; name one, or leave it out"),
        (["latest"], "latest: compare takes KEY=VALUE, such as run=latest"),
        (["compare.margins=0.1"], "compare.margins: compare has no such key. Did you mean compare.margin"),
        (["run=a", "runs=b"], "run= and runs=: leave one out"),
        (["train.num_epochs=3"], "train.num_epochs: compare has no such key"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_request(words)


def test_what_was_asked_for_is_taken_apart() -> None:
    asked = parse_request(["runs=[a, b,a]", "runs_dir=there", "compare.margin=0.1", "tracking.uri=sqlite:///x.db"])
    assert (asked.references, asked.runs_dir) == (("a", "b"), Path("there"))
    assert asked.overrides == ("compare.margin=0.1", "tracking.uri=sqlite:///x.db")
    assert (asked.typed("tracking.uri"), asked.typed("tracking.ui_port")) == ("sqlite:///x.db", None)
    assert parse_request([]).references == ("latest",)
