"""No secret reaches a byte of a run's folder, its log, the store or the terminal, while harmless keys do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from record import TRAIN, BadServer, make_tracker, run_named

from llmtune import errors, logs
from llmtune.commands import runs
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.entry import KEPT_FILE
from llmtune.tracking.kept_file import read_kept

SECRETS = {
    "HF_TOKEN": "hf_canaryTokenAAAA",
    "MLFLOW_TRACKING_PASSWORD": "canaryPasswordBBBB",
    "AWS_SECRET_ACCESS_KEY": "canaryAwsKeyCCCC",
    "SOME_SERVICE_API_KEY": "canaryApiKeyDDDD",
}
SWEEP = ["-m", "method.rank=2,4", "data.num_examples=16"]


def _hits(work: Path) -> list[str]:
    files = [file for file in work.rglob("*") if file.is_file()]
    assert len(files) > 10
    return [str(file.relative_to(work)) for file in files if b"canary" in file.read_bytes()]


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
def run_here(store, monkeypatch):
    """Types a command line in this process, with secrets around it; the store is the default one."""
    from llmtune.cli import run

    monkeypatch.chdir(store.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return run


def test_a_run_leaves_no_secret_in_folder_store_or_terminal(run_here, tmp_path, capfd):
    assert run_here([*TRAIN, "data.num_examples=16"]) == 0
    said = capfd.readouterr()
    assert "canary" not in said.out + said.err
    assert _hits(tmp_path) == []
    (listed,) = list_runs(tmp_path / "runs")
    params = run_named(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), listed.folder.path.name).data.params
    assert params["generate.max_new_tokens"] == "100"


def test_control_a_value_that_is_no_secret_is_found_where_it_is_recorded(run_here, tmp_path):
    assert run_here([*TRAIN, "data.num_examples=16", "tracking.experiment=canary"]) == 0
    assert {Path(hit).name for hit in _hits(tmp_path)} >= {"config.yaml", "mlflow.db"}


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
    assert _hits(tmp_path) == []
    for file in kept:  # the store is another, and serves
        status = RunStatusFile(RunFolder(file.parent).status_file)
        status.start(None, f"sqlite:///{store}")
        status.end("FINISHED")
    assert runs.run([]) == 0
    assert not list((tmp_path / "runs").rglob(KEPT_FILE))
    assert _hits(tmp_path) == []
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


def test_what_a_tracker_is_given_is_kept_without_secrets_and_harmless_keys_are_kept_whole(folder, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
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
def test_what_is_said_and_what_ends_a_command_show_no_secret(monkeypatch, capsys):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    text = f"{' '.join(SECRETS.values())} https://me:canaryUriKKKK@host max_tokens"
    for tell in (logs.say, logs.warn, logs.fail, lambda message: errors.report(errors.RunError(message))):
        tell(text)
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err
    assert (said.out + said.err).count("*** *** *** *** https://host max_tokens") == 4
