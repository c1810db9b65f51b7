"""The stages that are left to do, in order."""

import pytest

from llmtune.pipeline import stages_to_run
from llmtune.runs.manifest import Manifest

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
    for stage in finished:
        manifest.finish_stage(stage, {"done": True})
    assert stages_to_run(asked, manifest, trained_elsewhere=False) == left


def test_a_run_on_anothers_weights_trains_nothing(tmp_path) -> None:
    manifest = Manifest(tmp_path / "manifest.json")
    assert stages_to_run(["evaluate", "export"], manifest, trained_elsewhere=True) == [
        "prepare",
        "evaluate",
        "export",
    ]
