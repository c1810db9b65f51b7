"""Run folders to results: what is read, what older records lack, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from llmtune.comparison.reading import read_result
from llmtune.comparison.results import TrainedOn
from llmtune.config.validate import to_plain, to_run_config
from llmtune.errors import RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import write_json

pytestmark = pytest.mark.fast

PLAIN = {
    "model": {"name": "tiny", "source": "folder", "path": "/models/tiny"},
    "method": {"name": "lora", "rank": 8},
    "data": {"source": "files", "path": "/data/train.jsonl"},
    "seed": 3,
}
TRAIN = {
    "steps": 8,
    "num_tokens": 5000,
    "num_trainable": 36,
    "num_parameters": 1036,
    "peak_memory_gib": 1.5,
    "tokens_per_second_per_device": 100.0,
    "seconds": 12.5,
    "best_validation_loss": 2.25,
    "checkpoint": "checkpoint-8",
}
MANIFEST: dict[str, Any] = {
    "format_version": 1,
    "stages": {
        "train": TRAIN,
        "evaluate": {"checkpoint": "checkpoint-8", "num_test_seen": 2, "general": {"digest": "g1"}},
    },
    "environment": {"packages": {"llmtune": "0.1.0", "torch": "2.13.0", "bitsandbytes": None, "numpy": "2.0"}},
    "model": {"weights_digest": "w1", "tokenizer_digest": "t1"},
    "data": {
        "digest": "d1",
        "split_digests": {"train": "s1", "test": "s2"},
        "sources": [{"role": "train", "digest": "f1"}, {"role": "eval", "digest": "f2"}],
    },
    "choices": {
        "precision": "bf16",
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "num_processes": 2,
        "total_steps": 9,
        "device_name": "H200",
    },
}
COLUMNS = {
    "example_id": ["b-1", "a", "b"],
    "loss_sum": [30.0, 10.0, 20.0],
    "num_supervised_tokens": [3, 1, 2],
    "num_supervised_bytes": [12, 4, 8],
}


def write_predictions(folder: RunFolder, model: str, **columns: Any) -> None:
    path = folder.predictions_file(model)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({**COLUMNS, **columns}), path)


def make_run(path: Path, plain: dict[str, Any] | None = None, manifest: dict[str, Any] | None = None) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir()
    folder.config_file.write_text(yaml.dump(to_plain(to_run_config({**PLAIN, **(plain or {})}))))
    write_json(folder.manifest_file, MANIFEST if manifest is None else manifest)
    write_predictions(folder, "tuned")
    return folder


def without(manifest: dict[str, Any], *sections: str) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key not in sections}


def test_a_run_is_read_whole(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    write_predictions(folder, "tuned", cluster=["doc2", "doc1", "doc2"])
    write_predictions(folder, "base", loss_sum=[60.0, 20.0, 40.0])
    write_predictions(folder, "general_tuned", loss_sum=[3.0, 1.0, 2.0])
    write_predictions(folder, "general_base", loss_sum=[2.0, 1.0, 2.0])
    write_json(folder.status_file, {"status": "FINISHED", "pid": 1, "process_started": 0.0, "host": "h"} | STARTED)
    found = read_result(folder)
    assert (found.method, found.seed, found.mlflow_run_id) == ("lora", 3, "5" * 32)
    assert found.config["method.rank"] == 8 and found.config["data.max_seq_len"] == 512
    assert found.tuned.example_ids == ("a", "b", "b-1")
    assert found.tuned.loss_sums.tolist() == [10.0, 20.0, 30.0]
    assert found.tuned.num_tokens.tolist() == [1, 2, 3]
    assert found.tuned.num_bytes.tolist() == [4, 8, 12]
    assert found.tuned.clusters.tolist() == ["doc1", "doc2", "doc2"]
    assert found.base is not None and found.base.loss_sums.tolist() == [20.0, 40.0, 60.0]
    assert found.general_tuned is not None and found.general_tuned.loss_sums.tolist() == [1.0, 2.0, 3.0]
    assert found.general_base is not None and found.general_base.loss_sums.tolist() == [1.0, 2.0, 2.0]
    assert found.validation_loss == 2.25
    assert found.num_test_seen == 2
    assert found.trained_on == TrainedOn(examples_per_step=24, total_steps=9, num_steps=8, num_tokens=5000)
    known = {name: found.digests[name] for name in ("base", "tokenizer", "train", "data", "general")}
    assert list(known.values()) == ["w1", "t1", "s1", "d1", "g1"]
    assert found.choices["precision"] == "bf16"
    assert found.versions == {"llmtune": "0.1.0", "torch": "2.13.0"}
    assert found.cost.tokens_per_second == 200.0  # of two devices
    assert (found.cost.num_trainable, found.cost.peak_memory_gib, found.cost.train_seconds) == (36, 1.5, 12.5)
    assert (found.cost.device, found.cost.num_devices) == ("H200", 2)


def test_steps_of_tokens_have_no_number_of_examples(tmp_path) -> None:
    choices = {name: value for name, value in MANIFEST["choices"].items() if name != "gradient_accumulation_steps"}
    filled = {"train": {"batch_unit": "tokens", "tokens_per_step": 4096}}
    found = read_result(make_run(tmp_path / "run", filled, {**MANIFEST, "choices": choices}))
    assert found.trained_on == TrainedOn(examples_per_step=None, total_steps=9, num_steps=8, num_tokens=5000)


STARTED = {"started_at": "2026-01-01T00:00:00+00:00", "mlflow_run_id": "5" * 32}


def test_an_older_record_lacks_clusters_digests_and_keys(tmp_path) -> None:
    evaluated = {"evaluate": {"checkpoint": "checkpoint-8"}, "train": TRAIN}
    folder = make_run(
        tmp_path / "run", manifest=without(MANIFEST, "data") | {"stages": evaluated} | {"data": {"digest": "d1"}}
    )
    saved = yaml.safe_load(folder.config_file.read_text())
    del saved["evaluate"], saved["data"]["overlong"]
    folder.config_file.write_text(yaml.dump(saved))
    found = read_result(folder)
    assert found.tuned.clusters.tolist() == ["a", "b", "b"]
    assert found.base is None and found.general_tuned is None and found.general_base is None
    assert found.num_test_seen == 0
    assert found.trained_on.total_steps == 9
    assert found.digests == {"base": "w1", "tokenizer": "t1", "data": "d1"}
    assert found.config["data.overlong"] == "truncate"  # the default, so it doesn't vary beside newer runs


def test_a_config_of_another_version_is_taken_as_it_is(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    saved = yaml.safe_load(folder.config_file.read_text())
    folder.config_file.write_text(yaml.dump(saved | {"later": {"key": 1}}))
    assert read_result(folder).config["later.key"] == 1


def test_what_training_took_is_that_of_the_run_that_trained(tmp_path) -> None:
    source = make_run(tmp_path / "source")
    own = without(MANIFEST, "choices") | {
        "stages": {"evaluate": {"checkpoint": "checkpoint-8"}},
        "data": {"digest": "d2"},
    }
    folder = make_run(tmp_path / "run", {"source_run": str(source.path)}, own)
    found = read_result(folder)
    assert (found.validation_loss, found.cost.train_seconds, found.choices["precision"]) == (2.25, 12.5, "bf16")
    assert (found.digests["train"], found.digests["data"]) == ("s1", "d1")


@pytest.mark.parametrize(("digest", "seen"), [("d1", 0), ("d2", None)])
def test_on_other_data_what_was_seen_is_unknown_unless_it_is_recorded(tmp_path, digest, seen) -> None:
    source = make_run(tmp_path / "source")
    own = MANIFEST | {"stages": {"evaluate": {"checkpoint": "checkpoint-8"}}, "data": {"digest": digest}}
    folder = make_run(tmp_path / "run", {"source_run": str(source.path)}, own)
    assert read_result(folder).num_test_seen == seen
    elsewhere = make_run(tmp_path / "elsewhere", {"source_weights": "/adapters/mine"}, own)
    assert read_result(elsewhere).num_test_seen is None
    recorded = make_run(tmp_path / "recorded", {"source_run": str(source.path)}, own | {"stages": MANIFEST["stages"]})
    assert read_result(recorded).num_test_seen == 2


@pytest.mark.parametrize(("name", "seconds", "named"), [("checkpoint-8", 12.5, False), ("checkpoint-4", None, True)])
def test_an_earlier_checkpoint_has_no_time_of_its_own(tmp_path, name, seconds, named) -> None:
    source = make_run(tmp_path / "source")
    weights = str(source.checkpoints / name)
    folder = make_run(tmp_path / "run", {"source_run": str(source.path), "source_weights": weights})
    found = read_result(folder)
    assert (found.cost.train_seconds, found.validation_loss) == (seconds, None if named else 2.25)
    assert found.cost.peak_memory_gib == 1.5
    assert found.config["source_weights"] == (weights if named else None)


def test_weights_from_elsewhere_have_no_cost(tmp_path) -> None:
    folder = make_run(tmp_path / "run", {"source_weights": "/adapters/mine"})
    found = read_result(folder)
    assert found.cost.train_seconds is None and found.cost.num_trainable is None
    assert found.validation_loss is None and "train" not in found.digests


def test_a_model_as_it_is_has_the_base_predictions(tmp_path) -> None:
    folder = make_run(tmp_path / "run", {"method": {"name": "none"}})
    folder.predictions_file("tuned").unlink()
    write_predictions(folder, "base", loss_sum=[60.0, 20.0, 40.0])
    found = read_result(folder)
    assert (found.method, found.trained_on) == ("none", TrainedOn())
    assert found.tuned.loss_sums.tolist() == [20.0, 40.0, 60.0]
    assert found.cost.num_trainable is None


def test_a_diverged_run_is_read(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    write_predictions(folder, "tuned", loss_sum=[float("nan"), float("inf"), 20.0])
    assert np.isnan(read_result(folder).tuned.loss_sums).sum() == 1


def test_a_run_that_has_not_measured_says_what_to_type(tmp_path) -> None:
    folder = make_run(tmp_path / "run", manifest=MANIFEST | {"stages": {"train": TRAIN}})
    with pytest.raises(
        RunError, match=f"hasn't measured its weights; type: python -m llmtune evaluate run={folder.path}$"
    ):
        read_result(folder)


def test_missing_predictions_are_measured_again_in_a_run_of_their_own(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    folder.predictions_file("tuned").unlink()
    # `evaluate run=RUN` would find the stage finished and do nothing.
    again = f"python -m llmtune evaluate run={folder.checkpoints / 'checkpoint-8'}"
    then = "python -m llmtune compare runs=[SWEEP,NEW_RUN]"
    with pytest.raises(RunError) as refused:
        read_result(folder)
    assert str(refused.value).endswith(f"tuned.parquet is missing; measure the weights again: {again}; then: {then}")


@pytest.mark.parametrize("model", ["tuned", "base", "general_tuned"])
def test_damaged_predictions_are_refused(tmp_path, model) -> None:
    folder = make_run(tmp_path / "run")
    write_predictions(folder, model)
    content = folder.predictions_file(model).read_bytes()
    folder.predictions_file(model).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=rf"{model}.parquet is damaged \(.*\); measure the weights again: python -m"):
        read_result(folder)


def test_predictions_without_a_column_are_refused(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    columns = {name: values for name, values in COLUMNS.items() if name != "loss_sum"}
    pq.write_table(pa.table(columns), folder.predictions_file("tuned"))
    with pytest.raises(RunError, match=r"tuned.parquet is damaged \(.*loss_sum"):
        read_result(folder)


def test_predictions_without_a_token_are_refused(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    write_predictions(folder, "tuned", num_supervised_tokens=[0, 0, 0])
    with pytest.raises(RunError, match=r"tuned.parquet holds no supervised token"):
        read_result(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "manifest.json is damaged"),
        ('{"format_version": 1}', "lacks what a run of ours has"),
        ("[]", "lacks what"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, content, message) -> None:
    folder = make_run(tmp_path / "run")
    folder.manifest_file.write_text(content)
    with pytest.raises(RunError, match=message):
        read_result(folder)


def test_a_folder_without_a_config_is_refused(tmp_path) -> None:
    with pytest.raises(RunError, match=r"config.yaml is missing"):
        read_result(RunFolder(tmp_path))


def test_a_config_without_a_method_is_refused(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    folder.config_file.write_text("seed: 1\n")
    with pytest.raises(RunError, match=r"config.yaml lacks what a run of ours has \(KeyError\('method.name'\)\)"):
        read_result(folder)
