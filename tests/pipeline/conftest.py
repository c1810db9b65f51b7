"""Runs of the whole pipeline in this process, on tiny random models."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmtune.cli import run
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest

ASSETS = Path(__file__).parent.parent / "assets"
SHORT = [
    "hardware.num_threads=1",
    "data.max_seq_len=64",
    "train.num_epochs=1",
    "data.num_examples=64",
    "evaluate.sample_max_new_tokens=8",
    "evaluate.num_general_examples=0",
]


@dataclass
class Workplace:
    """A working folder in which commands are typed."""

    folder: Path

    def type(self, *words: str) -> int:
        """Run a command line here; its exit status."""
        return run([*words, f"cache_dir={self.folder / 'cache'}"])

    def train(self, *words: str, model: str = "tiny_llama") -> int:
        """Run stages on the tiny model and examples."""
        return self.type(*SHORT, f"model={ASSETS / model}", f"data.path={ASSETS / 'examples.jsonl'}", *words)

    @property
    def newest(self) -> RunFolder:
        """The folder of the newest run."""
        return list_runs(self.folder / "runs")[0].folder

    @property
    def manifest(self) -> Manifest:
        """The newest run's manifest."""
        return Manifest(self.newest.manifest_file)


@pytest.fixture
def workplace(tmp_path, monkeypatch, empty_store) -> Workplace:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # One thread: where tests share the cores, two on a tiny model wait for each other 10 times as long as they compute.
    monkeypatch.setattr("llmtune.pipeline.usable_cores", lambda: 1)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ASSETS.parent.parent / "src"), os.environ.get("PYTHONPATH", "")])
    )
    return Workplace(tmp_path)
