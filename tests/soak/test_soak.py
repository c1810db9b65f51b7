"""A long run under random kills, signals, outages, full disks and damages ends as the one that nothing disturbed."""

import os
import subprocess
from pathlib import Path

import pytest
from disturbed import Disturber, environment, fresh_folder, llmtune
from mlflow import MlflowClient

from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from store_server import StoreServer

SEED = 20
WHAT_IS_COMPARED = ("train/loss", "train/grad_norm", "train/learning_rate", "evaluate/validation_loss")


@pytest.fixture
def server(tmp_path):
    server = StoreServer(tmp_path / "store")
    server.bring_back()
    yield server
    server.bring_back()
    server.kill()


def _command(assets: Path, server: StoreServer, steps: int) -> list[str]:
    return llmtune(
        "train",
        "hardware=cpu",
        "hardware.num_threads=1",
        f"model={assets / 'tiny_llama'}",
        f"data.path={assets / 'examples.jsonl'}",
        "data.max_seq_len=64",
        "train.micro_batch_size=2",
        "train.num_epochs=1000",
        f"train.max_steps={steps}",
        "train.checkpoint_every_steps=7",
        "train.validate_every_steps=100",
        "train.log_every_steps=5",
        "train.keep_checkpoints=2",
        "tracking.system_metrics=false",
        f"tracking.uri={server.uri}",
        "cache_dir=cache",
    )


def _histories(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Each metric as the store has it, in the order of its steps; a step that was sent twice stands twice."""
    names = [name for name in client.get_run(run_id).data.metrics if name in WHAT_IS_COMPARED]
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name)) for name in names
    }


def _files(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    return {name: MetricsLog(folder.metrics_file).losses(name) for name in WHAT_IS_COMPARED}


def _soak(assets, tmp_path, server, monkeypatch, *, steps: int, gap: int) -> Disturber:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    command = _command(assets, server, steps)
    straight = fresh_folder(tmp_path / "straight")
    subprocess.run(command, cwd=straight, env=os.environ, check=True, capture_output=True, timeout=900)
    disturber = Disturber(command, fresh_folder(tmp_path / "disturbed"), server, SEED, gap)
    disturbed, undisturbed = disturber.run_to_the_end(), list_runs(straight / "runs")[0].folder

    assert _files(disturbed) == _files(undisturbed)
    assert [step for step, _ in _files(disturbed)["train/loss"]] == list(range(1, steps + 1))
    ours, theirs = (Manifest(folder.manifest_file).stage("train") for folder in (disturbed, undisturbed))
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    records = [RunStatusFile(folder.status_file).read() for folder in (disturbed, undisturbed)]
    client = MlflowClient(server.uri)
    sent = [_histories(client, record.mlflow_run_id) for record in records]
    assert sent[0] == sent[1]
    assert len(sent[0]["train/loss"]) == len({step for step, _ in sent[0]["train/loss"]}) > 0
    assert [record.status for record in records] == ["FINISHED", "FINISHED"]
    assert client.get_run(records[0].mlflow_run_id).info.status == "FINISHED"
    counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(disturber.counts.items()))
    print(f"{steps} steps in {disturber.num_lives} processes: {counts}; {disturber.kills_in_save} kills inside a save")
    return disturber


@pytest.mark.slow
def test_two_thousand_disturbed_steps_end_as_undisturbed_ones(assets, tmp_path, server, monkeypatch):
    disturber = _soak(assets, tmp_path, server, monkeypatch, steps=2000, gap=30)
    assert len(disturber.counts) == 7, "each kind of disturbance came"
    assert sum(disturber.counts.values()) >= 20


@pytest.mark.slow
def test_control_a_run_that_draws_another_order_is_told_from_it(assets, tmp_path, server, monkeypatch):
    command = _command(assets, server, 20)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    folders = []
    for seed in (1, 2):
        folder = fresh_folder(tmp_path / f"seed-{seed}")
        subprocess.run([*command, f"seed={seed}"], cwd=folder, check=True, capture_output=True, timeout=300)
        folders.append(list_runs(folder / "runs")[0].folder)
    assert _files(folders[0]) != _files(folders[1])
