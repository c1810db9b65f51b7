"""What is decided at run time, as far as it needs no model."""

from types import SimpleNamespace
from typing import Any

import pytest

from llmtune.runs.manifest import Manifest
from llmtune.stages import training_choices
from llmtune.stages.training_choices import _record_company, capture
from llmtune.training.captured import CaptureChoice

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


def _captured(monkeypatch: pytest.MonkeyPatch, begun: dict[str, Any], *, here: bool, elsewhere: bool) -> Any:
    """What `capture` comes to, and what it released."""
    released: list[Any] = []
    monkeypatch.setattr(training_choices, "choose_capture", lambda *how, **more: CaptureChoice(here, "as it is"))
    monkeypatch.setattr(training_choices, "most_over_ranks", lambda value, device: max(value, not elsewhere))
    monkeypatch.setattr(training_choices, "release_capture", released.append)
    monkeypatch.setattr(training_choices, "decoder_of", lambda model: SimpleNamespace(drops=True))
    context: Any = SimpleNamespace(
        manifest=SimpleNamespace(section=lambda name: begun),
        config=SimpleNamespace(train=SimpleNamespace(compile="auto")),
    )
    parts: Any = SimpleNamespace(device=None, model=None)
    choices: Any = SimpleNamespace(capture=None)
    capture(context, parts, choices)
    return choices.capture, released == [parts]


def test_a_pass_is_captured_in_every_process_or_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _captured(monkeypatch, {}, here=True, elsewhere=True) == (CaptureChoice(True, "as it is"), False)
    choice, released = _captured(monkeypatch, {}, here=True, elsewhere=False)
    assert not choice.captured
    assert released


def test_a_captured_pass_that_cant_be_had_again_is_told_where_dropout_depends_on_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _captured(monkeypatch, {"compile": True}, here=False, elsewhere=False)
    assert "compile: the run began with a captured pass" in capsys.readouterr().out
    _captured(monkeypatch, {"compile": False}, here=False, elsewhere=False)
    _captured(monkeypatch, {}, here=False, elsewhere=False)
    assert not capsys.readouterr().out
