"""How many test examples the weights may have seen."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from llmtune.config.data import FilesConfig
from llmtune.data.preparing.prepared import PreparedData, prepare_data
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages.known_examples import count_test_seen

pytestmark = pytest.mark.fast


@pytest.fixture
def prepare(tmp_path, tiny_gpt2) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)

    def prepare(**options: Any) -> PreparedData:
        return prepare_data(FilesConfig(find_near_duplicates=False, **options), tokenizer, "t", tmp_path / "cache")

    return prepare


def write(path: Any, numbers: range) -> str:
    path.write_text("".join(json.dumps({"text": f"text number {number}"}) + "\n" for number in numbers))
    return str(path)


def run_that_trained_on(data: PreparedData, folder: Any) -> RunFolder:
    run = RunFolder(folder)
    manifest = Manifest(run.manifest_file)
    manifest.record("data", {"digest": data.digest, "sources": data.report["sources"]})
    manifest.finish_stage("prepare", {"folder": str(data.folder)})
    return run


def context(data: PreparedData, run: RunFolder | None, eval_path: str | None = None) -> Any:
    source = None if run is None else str(run.path)
    config = SimpleNamespace(
        source_run=source, is_trained_elsewhere=run is not None, data=SimpleNamespace(eval_path=eval_path)
    )
    return SimpleNamespace(config=config, data=data, trained_run=run)


def test_of_another_file_what_stands_in_the_runs_training_or_validation_data(prepare, tmp_path):
    path = write(tmp_path / "a.jsonl", range(100))
    trained = prepare(path=path, validation_fraction=0.2, test_fraction=0.2)
    run = run_that_trained_on(trained, tmp_path / "run")
    other = write(tmp_path / "other.jsonl", range(90, 130))
    seen = {name.decode() for split in ("train", "validation") for name in trained.split(split).content_hashes()}
    theirs = prepare(eval_path=other)
    expected = sum(name.decode() in seen for name in theirs.test.content_hashes())
    assert 0 < expected < 10  # the run's own test examples among the ten don't count
    assert count_test_seen(context(theirs, run, other)) == expected
    assert count_test_seen(context(trained, run)) == 0
    again = prepare(path=path, validation_fraction=0.2, test_fraction=0.2, split_seed=5)
    known = sum(name.decode() in seen for name in again.test.content_hashes())
    assert count_test_seen(context(again, run)) == known > 0


def test_where_the_runs_prepared_data_are_gone_what_its_files_share(prepare, tmp_path):
    path, other = write(tmp_path / "a.jsonl", range(100)), write(tmp_path / "other.jsonl", range(90, 130))
    trained = prepare(path=path)
    run = run_that_trained_on(trained, tmp_path / "run")
    theirs = prepare(path=path, eval_path=other)
    shutil.rmtree(trained.folder)
    assert count_test_seen(context(theirs, run, other)) == 10
    assert count_test_seen(context(theirs, run)) is None  # of another split it can't be told
    left_out = run_that_trained_on(theirs, tmp_path / "left_out")
    elsewhere = prepare(path=path, eval_path=other, split_seed=3)
    shutil.rmtree(theirs.folder)
    assert count_test_seen(context(elsewhere, left_out, other)) == 0


def test_in_a_runs_own_split_there_are_none_and_of_weights_from_elsewhere_it_is_not_known(prepare, tmp_path):
    data = prepare(path=write(tmp_path / "a.jsonl", range(60)))
    assert count_test_seen(context(data, None)) == 0
    from_elsewhere = context(data, None)
    from_elsewhere.config.is_trained_elsewhere = True
    assert count_test_seen(from_elsewhere) is None
