"""No secret reaches a byte of a run's folder, its log, the store or the terminal, while harmless keys do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from record import ADDRESSES, SECRETS, TRAIN, BadServer, hits, make_tracker, run_named

from llmtune import errors, logs
from llmtune.commands import runs
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.entry import KEPT_FILE
from llmtune.tracking.kept_file import read_kept

SWEEP = ["-m", "method.rank=2,4", "data.num_examples=16"]


def _llmtune(work: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    set_here = {**os.environ, "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1", **SECRETS, **environment}
    return subprocess.run(
        [sys.executable, "-m", "llmtune", *words],
        cwd=work,
        env=set_here,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture
def secrets(monkeypatch):
    """The environment holds them."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run_here(store, secrets, monkeypatch):
    """Types a command line in this process, with secrets around it; the store is the default one."""
    from llmtune.cli import run

    monkeypatch.chdir(store.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return run


def test_a_run_leaves_no_secret_in_folder_store_or_terminal(run_here, tmp_path, capfd):
    assert run_here([*TRAIN, "data.num_examples=16"]) == 0
    said = capfd.readouterr()
    assert "canary" not in said.out + said.err
    assert hits(tmp_path) == []
    (listed,) = list_runs(tmp_path / "runs")
    params = run_named(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), listed.folder.path.name).data.params
    assert params["generate.max_new_tokens"] == "100"


def _experiment_of(name: str) -> None:
    """Put an experiment `leak` here whose MLflow experiment holds an environment variable's value."""
    Path("experiments").mkdir(exist_ok=True)
    Path("experiments/leak.yaml").write_text(f"# @package _global_\ntracking:\n  experiment: a-${{oc.env:{name}}}\n")


def test_a_config_that_holds_a_secret_and_an_error_that_names_one_leave_none(run_here, tmp_path, monkeypatch, capsys):
    prepare = ["prepare", *TRAIN[1:], "data.num_examples=16"]
    for name in SECRETS:
        _experiment_of(name)
        assert run_here([*prepare, "experiment=leak"]) == 2
        assert f"tracking.experiment: holds the value of {name}" in capsys.readouterr().err

    def fails(context):
        raise RuntimeError(f"{' '.join(SECRETS.values())} {' '.join(ADDRESSES)}")

    monkeypatch.setattr("llmtune.stages.recipes.RECIPES", {"prepare": fails})
    assert run_here(prepare) == 1
    (failed,) = list_runs(tmp_path / "runs")
    assert failed.record.status == "FAILED"
    assert failed.record.error is not None
    assert failed.record.error.startswith(f"RuntimeError: {' '.join(['***'] * len(SECRETS))} http")
    assert (tmp_path / "mlflow.db").exists()
    assert hits(tmp_path) == []


def test_control_a_value_that_is_no_secret_is_found_where_it_is_recorded(run_here, tmp_path, monkeypatch):
    monkeypatch.setenv("HARMLESS_MAX_TOKENS", "canaryHarmless")
    _experiment_of("HARMLESS_MAX_TOKENS")
    assert run_here(["prepare", *TRAIN[1:], "data.num_examples=16", "experiment=leak"]) == 0
    assert {Path(hit).name for hit in hits(tmp_path)} >= {"config.yaml", "mlflow.db"}


@pytest.mark.parametrize("uri", ADDRESSES)
def test_an_address_with_credentials_is_refused_in_a_config_and_written_nowhere(
    run_here, tmp_path, monkeypatch, capfd, uri
):
    prepare = ["prepare", *TRAIN[1:], "data.num_examples=16"]
    assert run_here([*prepare, f"tracking.uri='{uri}'"]) == 2
    told = capfd.readouterr()
    assert "tracking.uri: holds credentials" in told.err
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    can_be_parsed = not any(mark in uri for mark in ("/Slash", "?Mark", "9/canary"))
    assert run_here(prepare) == (0 if can_be_parsed else 2)
    again = capfd.readouterr()
    assert ("can't be written to" in again.out) == can_be_parsed
    assert "canary" not in told.out + told.err + again.out + again.err
    assert hits(tmp_path) == []


@pytest.mark.slow
def test_a_sweep_whose_server_fails_keeps_entries_without_a_secret_and_they_come_later(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = BadServer(message=f"{SECRETS['HF_TOKEN']} is no token for https://me:canaryAnswerEEEE@host")
    try:
        uri = f"http://me:canaryUriFFFF@127.0.0.1:{server.port}"
        done = _llmtune(tmp_path, *TRAIN, *SWEEP, MLFLOW_TRACKING_URI=uri)
    finally:
        server.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("can't be written to") == 3  # the sweep and its two jobs
    assert "canary" not in done.stdout + done.stderr
    kept = list((tmp_path / "runs").rglob(KEPT_FILE))
    assert len(kept) == 3
    assert sum(len(read_kept(file)[1]) for file in kept) > 10
    assert hits(tmp_path) == []
    for file in kept:  # the store is another, and serves
        status = RunStatusFile(RunFolder(file.parent).status_file)
        status.start(None, f"sqlite:///{store}")
        status.end("FINISHED")
    assert runs.run([]) == 0
    assert not list((tmp_path / "runs").rglob(KEPT_FILE))
    assert hits(tmp_path) == []
    client = MlflowClient(f"sqlite:///{store}")
    sweep, *jobs = sorted(
        (run_named(client, file.parent.name) for file in kept), key=lambda run: "sweep" in run.data.tags
    )
    assert [job.data.tags["mlflow.parentRunId"] for job in jobs] == [sweep.info.run_id] * 2
    assert {job.data.params["method.rank"] for job in jobs} == {"2", "4"}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "runs" / "a-run"
    path.mkdir(parents=True)
    RunStatusFile(RunFolder(path).status_file).start()
    return path


@pytest.mark.usefixtures("secrets")
def test_what_a_tracker_is_given_is_kept_without_secrets_and_harmless_keys_are_kept_whole(folder, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    tracker = make_tracker("http://me:canaryUriGGGG@127.0.0.1:9/x", folder)
    tracker.log_params({"hub.token": "canaryParamHHHH", "generate.max_tokens": 7, "use_cls_token": True})
    tracker.log_params({"data.note": [f"see {SECRETS['HF_TOKEN']}", {"inner": SECRETS["AWS_SECRET_ACCESS_KEY"]}]})
    tracker.log_dataset("mine", "d", "https://me:canarySourceIIII@host/mine.jsonl", "train", 1)
    tracker.set_tags({"origin": f"https://me:canaryTagJJJJ@host {SECRETS['SOME_SERVICE_API_KEY']}"})
    tracker.close("FAILED")
    written = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"canary" not in written
    assert "canary" not in capsys.readouterr().out
    params = [entry.content for entry in read_kept(folder / KEPT_FILE)[1] if entry.kind == "params"]
    assert params[0] == {"hub.token": "***", "generate.max_tokens": "7", "use_cls_token": "true"}
    assert params[1] == {"data.note": '["see ***", {"inner": "***"}]'}


@pytest.mark.fast
@pytest.mark.usefixtures("secrets")
def test_what_is_said_and_what_ends_a_command_show_no_secret(capsys):
    spellings = (str, lambda value: json.dumps(value)[1:-1], lambda value: quote(value, safe=""))
    secrets = [spelt(value) for value in SECRETS.values() for spelt in spellings]
    text = f"{' '.join(secrets)} {' '.join(ADDRESSES)} max_tokens"
    for tell in (logs.say, logs.warn, logs.fail, lambda message: errors.report(errors.RunError(message))):
        tell(text)
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err
    assert " ".join((said.out + said.err).split()).count(f"{' '.join(['***'] * len(secrets))} http") == 4
    assert (said.out + said.err).count("max_tokens") == 4
