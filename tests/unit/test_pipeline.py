"""The stages that are left to do, in order."""

import pytest

from llmtune import pipeline
from llmtune.config.model import ModelConfig
from llmtune.config.run import RunConfig
from llmtune.config.tracking import TrackingConfig
from llmtune.errors import LlmtuneError
from llmtune.pipeline import stages_to_run
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.runs.status import RunStatusFile
from llmtune.stages.recipes import RECIPES

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("asked", "finished", "left"),
    [
        (["prepare", "train", "evaluate", "export"], [], ["prepare", "train", "evaluate", "export"]),
        (["evaluate"], [], ["prepare", "train", "evaluate"]),
        (["export"], ["prepare", "train"], ["export"]),
        (["train"], ["prepare", "train"], []),
        (["export", "evaluate"], ["prepare", "train", "export"], ["evaluate"]),
        (["prepare"], [], ["prepare"]),
    ],
)
def test_stages_bring_what_they_need_and_are_done_once(tmp_path, asked, finished, left) -> None:
    manifest = Manifest(tmp_path / "manifest.json")
    (tmp_path / "parity.json").write_text("{}")
    for stage in finished:
        manifest.finish_stage(stage, {"hf": {"folder": str(tmp_path), "num_bytes": 2}})
    assert stages_to_run(asked, manifest, trained_elsewhere=False) == left


def test_an_export_that_was_removed_is_made_again(tmp_path) -> None:
    manifest = Manifest(tmp_path / "manifest.json")
    for stage in ("prepare", "train", "export"):
        manifest.finish_stage(stage, {"hf": {"folder": str(tmp_path / "gone"), "num_bytes": 2}})
    assert stages_to_run(["train", "export"], manifest, trained_elsewhere=False) == ["export"]


def test_a_run_on_anothers_weights_trains_nothing(tmp_path) -> None:
    manifest = Manifest(tmp_path / "manifest.json")
    assert stages_to_run(["evaluate", "export"], manifest, trained_elsewhere=True) == [
        "prepare",
        "evaluate",
        "export",
    ]


def test_a_stage_that_runs_out_of_memory_is_recorded_with_a_line_that_stands_alone(tmp_path, monkeypatch) -> None:
    def prepare(context: object) -> None:
        raise MemoryError

    monkeypatch.setitem(RECIPES, "prepare", prepare)
    for name in ("_set_up_torch", "start_logging"):
        monkeypatch.setattr(pipeline, name, lambda *given, **named: None)
    config = RunConfig(
        model=ModelConfig(name="tiny", source="folder", path="tiny"),
        tracking=TrackingConfig(backend="none"),
        runs_dir=str(tmp_path / "runs"),
    )
    folder = RunFolder(tmp_path / "runs" / "mine")
    with pytest.raises(LlmtuneError, match="with fewer rows"):
        pipeline.run_stages(folder, config, ["prepare"])
    record = RunStatusFile(folder.status_file).read()
    assert record is not None
    assert (record.status, record.error) == ("FAILED", "prepare: the machine is out of memory")
