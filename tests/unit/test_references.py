"""What `run=` may name."""

import json

import pytest

from llmtune.errors import ModelError, RunError
from llmtune.models.adapter_files import AdapterFiles, read_adapter
from llmtune.references import NamedModel, NamedRun, Places, resolve
from llmtune.runs.status import RunStatusFile

pytestmark = pytest.mark.fast


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    monkeypatch.chdir(tmp_path)
    return Places(tmp_path / "runs")


@pytest.fixture
def run(places):
    folder = places.runs_dir / "20260101-000000-lora-m-abcd"
    (folder / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-20").mkdir()
    (folder / "checkpoints" / "checkpoint-best").symlink_to("checkpoint-9")
    (folder / "config.yaml").write_text("seed: 3\n")
    RunStatusFile(folder / "status.json").start("a" * 32)
    return folder


def adapter_at(folder, **changes):
    folder.mkdir(parents=True)
    content = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "revision": "c" * 40, "r": 4}
    content |= {"lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**content, **changes}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize("reference", ["latest", "a" * 32, "20260101-000000-lora-m-abcd", "PATH"])
def test_a_run_is_found_by_each_of_its_names(places, run, reference) -> None:
    found = resolve(str(run) if reference == "PATH" else reference, places)
    assert isinstance(found, NamedRun)
    assert (found.folder.path, found.config, found.checkpoint) == (run, {"seed": 3}, None)


@pytest.mark.parametrize(("name", "real"), [("checkpoint-20", "checkpoint-20"), ("checkpoint-best", "checkpoint-9")])
def test_a_checkpoint_brings_its_run(places, run, name, real) -> None:
    found = resolve(f"{run.relative_to(places.runs_dir.parent)}/checkpoints/{name}", places)
    assert isinstance(found, NamedRun)
    assert (found.folder.path, found.checkpoint) == (run, run / "checkpoints" / real)


def test_a_checkpoint_that_is_not_there_lists_those_that_are(places, run) -> None:
    with pytest.raises(RunError, match=r"has checkpoint-9, checkpoint-20, checkpoint-best$"):
        resolve(f"{run}/checkpoints/checkpoint-100", places)


def test_an_adapter_says_what_it_is(places, tmp_path) -> None:
    found = resolve(str(adapter_at(tmp_path / "mine")), places)
    assert found == AdapterFiles(
        folder=tmp_path / "mine",
        base="org/base",
        revision="c" * 40,
        rank=4,
        alpha=8.0,
        dropout=0.1,
        target_modules=("q_proj", "v_proj"),
    )


@pytest.mark.parametrize(
    ("changes", "special"),
    [
        ({"use_dora": True}, ("use_dora",)),
        ({"bias": "all", "rank_pattern": {"q": 2}}, ("rank_pattern", "bias")),
        ({"target_modules": ".*proj"}, ("target_modules as a pattern",)),
    ],
)
def test_what_training_cannot_go_on_with_is_named(places, tmp_path, changes, special) -> None:
    assert read_adapter(adapter_at(tmp_path / "mine", **changes), "run=mine").special == special


def test_unusable_adapters_are_refused(places, tmp_path) -> None:
    with pytest.raises(ModelError, match="of type LOHA; only LORA"):
        resolve(str(adapter_at(tmp_path / "loha", peft_type="LOHA")), places)
    pickled = adapter_at(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors, and pickled weights"):
        resolve(str(pickled), places)
    broken = adapter_at(tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read as PEFT writes it"):
        resolve(str(broken), places)


def test_models_are_folders_and_named_configs(places, tiny_llama) -> None:
    assert resolve(str(tiny_llama), places) == NamedModel(str(tiny_llama))
    assert resolve("gpt2", places) == NamedModel("gpt2")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("gptt2", "run=gptt2: no run folder is there; .*Did you mean gpt2?"),
        ("hub", "run=hub: no run folder is there"),
        ("runs/nothing", "run=runs/nothing: no run folder is there"),
        ("file.txt", "run=file.txt: is a file; name its folder"),
        ("empty", r"run=empty: is a folder without config.yaml .* it holds nothing"),
        ("b" * 32, "no run folder belongs to this MLflow run"),
        ("org/name", r"run=org/name: .*HF_HUB_OFFLINE"),
    ],
)
def test_what_leads_nowhere_is_said(places, run, tmp_path, reference, message) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises((RunError, ModelError), match=message):
        resolve(reference, places)


def test_the_key_that_was_typed_is_named(places) -> None:
    with pytest.raises(RunError, match=r"^method\.adapter=nothing: no run folder is there"):
        resolve("nothing", places, key="method.adapter")


def test_a_sweep_lists_its_runs(places) -> None:
    sweep = places.runs_dir / "20260101-000000-sweep-abcd"
    job = sweep / "20260101-000001-lora-m-abcd"
    job.mkdir(parents=True)
    (job / "config.yaml").write_text("seed: 1\n")
    for folder in (sweep, job):
        RunStatusFile(folder / "status.json").start()
    with pytest.raises(RunError, match=f"is a sweep; finish it with -m run={sweep}, or name one of its runs: {job}$"):
        resolve(str(sweep), places)


def test_a_run_of_another_folder_is_found_through_the_store(places, tmp_path, run) -> None:
    from llmtune.tracking.mlflow import MlflowTracker, TrackedRun

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    elsewhere = run.rename(tmp_path / "moved")
    tracked = TrackedRun(experiment="e", name="n", tags={"run_folder": str(elsewhere)})
    tracker = MlflowTracker(uri, tracked, tmp_path, system_metrics=False)
    tracker.close("FINISHED")
    found = resolve(str(tracker.run_id), places)
    assert isinstance(found, NamedRun)
    assert found.folder.path == elsewhere
    elsewhere.rename(tmp_path / "lost")
    with pytest.raises(RunError, match=r"the store says .*moved, and no such folder is on this machine"):
        resolve(str(tracker.run_id), places)


def test_an_id_that_cannot_be_had_says_that_no_folder_is_here_either(places, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"^run=nope/nope: .*HF_HUB_OFFLINE.*\. No folder of that name is here either$"
    ):
        resolve("nope/nope", places)
