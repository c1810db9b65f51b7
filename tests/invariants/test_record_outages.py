"""A whole run whose store is away, hangs, dies or is full: the same weights, little time, and nothing missed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from record import (
    MOST_SECONDS_ADDED,
    TRAIN,
    BadServer,
    Stopwatch,
    Trained,
    at_step,
    history,
    locked,
    run_named,
    steps_by_metric,
    wait_for,
)

from llmtune.commands import runs
from llmtune.runs.lookup import list_runs
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.kept_file import read_kept
from small_disk import mounted
from store_server import StoreServer

LONG = ("data.num_examples=160", "train.num_epochs=6")
AWAY = ("refused", "hanging", "answers 500", "no SQLite file", "locked")


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train in this process, in a fresh folder; the store is `tracking.uri`."""
    from llmtune.cli import run

    stopwatch = Stopwatch(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def go(*words: str) -> Trained:
        started, stopwatch.seconds = time.monotonic(), 0.0
        assert run([*TRAIN, *words]) == 0
        return Trained(list_runs(Path("runs"))[0].folder, time.monotonic() - started, stopwatch.seconds)

    return go


@contextmanager
def _away(fault: str, tmp_path: Path) -> Iterator[str]:
    """The address of a store that can't be written to."""
    store = tmp_path / f"{fault}.db"
    if fault == "refused":
        yield "http://127.0.0.1:9"
    elif fault in ("hanging", "answers 500"):
        server = BadServer(hangs=fault == "hanging")
        yield server.uri
        server.close()
    elif fault == "locked":
        with locked(store):
            yield f"sqlite:///{store}"
    else:
        store.write_text("no SQLite file" * 100)
        yield f"sqlite:///{store}"


def _check_cost(trained: Trained, control: Trained, what: str) -> str:
    """The same weights, and less than 5 s of the training thread's time in the tracker; in words."""
    longer = trained.seconds - control.seconds
    figures = f"{what}: {trained.tracker_seconds:.2f} s in the tracker; the whole run took {longer:+.1f} s more"
    assert trained.weights == control.weights, what
    assert trained.tracker_seconds < MOST_SECONDS_ADDED, figures
    return figures


def _check_complete(client: MlflowClient, trained: Trained) -> None:
    """The store has every step of every metric of training once, as the folder has it."""
    run = run_named(client, trained.folder.path.name)
    assert run.info.status == "FINISHED"
    assert history(client, run.info.run_id) == sorted(trained.losses)
    for key, steps in steps_by_metric(trained.folder).items():
        assert [step for step, _ in history(client, run.info.run_id, key)] == steps, key
    assert len(run.data.params) > 50
    assert len(run.inputs.dataset_inputs) > 0
    assert not trained.kept.exists()
    assert RunStatusFile(trained.folder.status_file).read().mlflow_run_id == run.info.run_id


def test_a_store_that_is_away_changes_no_weight_adds_little_time_and_everything_is_kept(train, tmp_path, capsys):
    train()  # imports, prepared data
    control, figures = train("tracking.backend=none"), []
    for fault in AWAY:
        capsys.readouterr()
        with _away(fault, tmp_path) as uri:
            trained = train(f"tracking.uri={uri}")
        said = capsys.readouterr().out
        figures.append(_check_cost(trained, control, fault))
        num_told = said.count("can't be written to")
        assert num_told == 1 or (fault == "hanging" and num_told == 0), fault  # a request is given up after 5 s
        assert said.count("the next llmtune command sends them") == 1, fault
        _, entries = read_kept(trained.kept)
        losses = [entry for entry in entries if entry.kind == "metrics" and "train/loss" in entry.content["values"]]
        assert [entry.content["step"] for entry in losses] == control.sent_steps, fault
        assert entries[-1].kind == "end", fault
    print(*figures, sep="\n")


@pytest.mark.slow
def test_control_a_tracker_that_waits_for_a_store_that_hangs_takes_too_long(train, tmp_path, monkeypatch):
    monkeypatch.setattr("llmtune.tracking.mlflow._OPEN_SECONDS", 60.0)
    control = train("tracking.backend=none")
    with _away("hanging", tmp_path) as uri, pytest.raises(AssertionError, match="hanging"):
        _check_cost(train(f"tracking.uri={uri}"), control, "hanging")


@pytest.mark.slow
def test_a_server_that_hangs_or_dies_midway_gets_everything_once_it_is_back(train, tmp_path, capsys, impatient):
    server = StoreServer(tmp_path / "server")
    server.bring_back()
    try:
        train()
        control = train("tracking.backend=none", *LONG)
        client = MlflowClient(server.uri)
        capsys.readouterr()
        with at_step(Path("runs"), {20: server.hang, 60: server.bring_back}):
            hung = train(f"tracking.uri={server.uri}", *LONG)
        figures = [_check_cost(hung, control, "hangs midway, is back midway")]
        _check_complete(client, hung)
        with at_step(Path("runs"), {20: server.kill}):
            died = train(f"tracking.uri={server.uri}", *LONG)
        figures.append(_check_cost(died, control, "dies midway"))
        assert capsys.readouterr().out.count("the next llmtune command sends them") == 1
        assert died.kept.exists()
        server.bring_back()
        assert runs.run([]) == 0
        wait_for(lambda: not died.kept.exists())
        _check_complete(client, died)
        assert runs.run([]) == 0
        _check_complete(client, died)
        print(*figures, sep="\n")
    finally:
        server.kill()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 4 MB."""
    with mounted(tmp_path / "small", "4m") as folder:
        yield folder


def _fill(folder: Path) -> None:
    """Use up the file system's last byte."""
    with (folder / "filler").open("ab", buffering=0) as filler:
        for size in (65536, 512, 1):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    filler.write(b"x" * size)


def test_a_full_disk_under_the_store_costs_nothing_and_the_rest_comes_later(train, small_disk, capsys, impatient):
    uri = f"tracking.uri=sqlite:///{small_disk}/mlflow.db"
    first, control = train(uri), train("tracking.backend=none", *LONG)
    client = MlflowClient(uri.partition("=")[2])
    capsys.readouterr()
    with at_step(Path("runs"), {20: lambda: _fill(small_disk)}):
        midway = train(uri, *LONG)
    from_the_start = train(uri)
    assert capsys.readouterr().out.count("can't be written to") == 2
    for trained, same, when in ((midway, control, "midway"), (from_the_start, first, "from the start")):
        print(_check_cost(trained, same, f"a disk that is full {when}"))
        assert trained.kept.exists()
    (small_disk / "filler").unlink()
    assert runs.run([]) == 0
    wait_for(lambda: not midway.kept.exists() and not from_the_start.kept.exists())
    _check_complete(client, midway)
    _check_complete(client, from_the_start)


def test_a_run_goes_on_when_the_store_is_damaged_and_the_next_run_sends_what_was_kept(train, tmp_path, capsys):
    store = tmp_path / "mlflow.db"
    store.write_text("no SQLite file" * 100)
    first = train()
    assert RunStatusFile(first.folder.status_file).read().mlflow_run_id is None
    assert first.kept.exists()
    store.unlink()
    second = train()
    assert not first.kept.exists()
    assert first.weights == second.weights
    client = MlflowClient(f"sqlite:///{store}")
    _check_complete(client, first)
    _check_complete(client, second)
    params, inputs = zip(*(_described(client, trained) for trained in (first, second)), strict=True)
    assert params[0] == params[1]
    assert inputs[0] == inputs[1]
    train()  # and nothing is sent again
    _check_complete(client, first)


def _described(client: MlflowClient, trained: Trained) -> tuple[dict[str, str], int]:
    run = run_named(client, trained.folder.path.name)
    return run.data.params, len(run.inputs.dataset_inputs)
