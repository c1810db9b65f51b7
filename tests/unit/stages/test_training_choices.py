"""What is decided at run time, as far as it needs no model."""

from types import SimpleNamespace
from typing import Any

import pytest

from llmtune.runs.manifest import Manifest
from llmtune.stages.training_choices import _record_company

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("begun", "sharing", "recorded"),
    [
        ({}, None, None),
        ({}, "3", 3),
        ({"total_steps": 8}, "2", 2),  # it began alone, and went on beside another
        ({"jobs_at_once": 3}, None, 3),
        ({"jobs_at_once": 3}, "2", 3),
    ],
)
def test_a_run_keeps_with_how_many_jobs_it_shared_its_device(tmp_path, monkeypatch, begun, sharing, recorded) -> None:
    monkeypatch.delenv("LLMTUNE_JOBS_AT_ONCE", raising=False)
    if sharing is not None:
        monkeypatch.setenv("LLMTUNE_JOBS_AT_ONCE", sharing)
    manifest = Manifest(tmp_path / "manifest.json")
    manifest.record("choices", begun)
    context: Any = SimpleNamespace(manifest=manifest)
    _record_company(context, begun)
    choices = Manifest(tmp_path / "manifest.json").section("choices")
    assert choices.get("jobs_at_once") == recorded
    assert {**choices, **begun} == choices
