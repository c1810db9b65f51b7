"""The stages that are left to do, in order."""

import gc
from collections.abc import Callable

import pytest

from llmtune import cli, pipeline
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

    folder = RunFolder(tmp_path / "runs" / "mine")
    with pytest.raises(LlmtuneError, match="with fewer rows"):
        _run_with(prepare, folder, monkeypatch)
    record = RunStatusFile(folder.status_file).read()
    assert record is not None
    assert (record.status, record.error) == ("FAILED", "prepare: the machine is out of memory")


def test_what_stood_before_the_stages_is_left_out_of_searches_for_garbage(tmp_path, monkeypatch) -> None:
    left_out = []
    _run_with(lambda context: left_out.append(gc.get_freeze_count()), RunFolder(tmp_path / "mine"), monkeypatch)
    assert left_out[0] > 10_000
    assert gc.get_freeze_count() == 0


def test_a_command_seldom_searches_for_garbage(monkeypatch) -> None:
    before, found = gc.get_threshold(), []
    monkeypatch.setattr(cli, "_run_and_exit", lambda: found.append(gc.get_threshold()[0]))
    try:
        cli.main()
    finally:
        gc.set_threshold(*before)
    assert found == [100_000]
    assert before[0] < 10_000, "only a process of our own does so"


def _run_with(prepare: Callable[[object], None], folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a `prepare` stage that does this, of a model that isn't there."""
    monkeypatch.setitem(RECIPES, "prepare", prepare)
    for name in ("_set_up_torch", "start_logging"):
        monkeypatch.setattr(pipeline, name, lambda *given, **named: None)
    monkeypatch.setattr("llmtune.stages.results.show_results", lambda context: None)
    config = RunConfig(
        model=ModelConfig(name="tiny", source="folder", path="tiny"),
        tracking=TrackingConfig(backend="none"),
        runs_dir=str(folder.path.parent),
    )
    pipeline.run_stages(folder, config, ["prepare"])
