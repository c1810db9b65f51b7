import pytest

from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.sweep.job import JobOutcome, SweepJob
from llmtune.sweep.summary import markdown, summarise, table_rows

pytestmark = pytest.mark.fast


def _outcome(path, name, status, error=None):
    job = SweepJob(name=name, folder=RunFolder(path / name), differences={"method": name}, command=["true"])
    return JobOutcome(job=job, status=status, seconds=61.26, error=error, mlflow_run_id=None)


@pytest.fixture
def entries(tmp_path):
    manifest = Manifest(RunFolder(tmp_path / "lora").manifest_file)
    train = {"num_trainable": 4884480, "seconds": 50.0, "tokens_per_second_per_device": 912.4, "peak_memory_gib": 1.254}
    manifest.finish_stage("train", train)
    losses = {"loss": 1.76123, "perplexity": 5.8196, "bits_per_byte": 0.7, "base_loss": 2.2159, "base_perplexity": 9.17}
    manifest.finish_stage("evaluate", losses)
    (tmp_path / "full").mkdir()
    RunFolder(tmp_path / "full").manifest_file.write_text("{")
    ended = [_outcome(tmp_path, "lora", "FINISHED"), _outcome(tmp_path, "full", "FAILED", "exit status 3")]
    return summarise([*ended, _outcome(tmp_path, "a|b", None)])


def test_figures_come_from_the_manifests(entries):
    assert table_rows(entries) == [
        ("lora", "FINISHED", "1.7612", "61"),
        ("full", "FAILED", "-", "61"),
        ("a|b", "NOT STARTED", "-", "61"),
    ]
    assert entries[0]["train_seconds"] == 50.0


def test_markdown_is_a_table_and_names_the_failures(entries):
    lines = markdown(entries).splitlines()
    assert lines[0] == "| job | status | test loss | seconds |"
    assert all(line.replace("\\|", "").count("|") == 5 for line in lines[:5])
    assert lines[-1] == "- full: exit status 3"
