"""The best checkpoint stays one that is there and whole, also where a run falls back behind it."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tiny_training import LORA_DROPOUT, Setup, make_parts

from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.stages import train as stage
from llmtune.stages.train import _resumed
from llmtune.tracking.null import NullTracker
from llmtune.training import checkpoint
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.callbacks.validation import ValidationCallback, ValidationSettings
from llmtune.training.checkpoint import find_damage
from llmtune.training.loop import train
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.fast

LOSSES = {1: 5.0, 2: 2.0, 3: 4.0, 4: 3.5, 5: 4.0, 6: 1.0, 7: 4.5, 8: 4.5, 9: 4.5, 10: 4.5}
"""By step: best is 2, then 6, for which 2 is removed."""


class Killed:
    """Ends the run after a step, once all before it is saved."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_start(self, parts, state) -> None: ...

    def on_step_end(self, parts, state, result) -> None:
        if state.global_step == self._step:
            raise KeyboardInterrupt

    def on_train_end(self, parts, state) -> None: ...


def _go_on(model: Path, run: RunFolder, losses: dict[int, float], killed_after: int = 0, every: int = 1) -> TrainState:
    """Train a run from where it stands, with these validation losses, keeping two checkpoints."""
    parts = make_parts(model, Setup(LORA_DROPOUT))
    state = _resumed(cast(Any, SimpleNamespace(folder=run, config=SimpleNamespace(method=None))), parts)
    log = MetricsLog(run.metrics_file)
    saving = CheckpointCallback(run, CheckpointSettings(every, None, 2))
    settings = ValidationSettings(1, None)
    validating = ValidationCallback(lambda _: losses[state.global_step], settings, log, NullTracker())
    with suppress(KeyboardInterrupt), saving:
        train(parts, state, [validating, saving, Killed(killed_after)])
    return state


def _behind_the_best(model: Path, folder: Path, damaged: tuple[int, ...] = (6,)) -> RunFolder:
    """A run whose best step, 6, is damaged, and whose best before it is removed."""
    run = RunFolder(folder)
    _go_on(model, run, LOSSES, killed_after=6)
    assert [path.name for path in checkpoint.list_checkpoints(run.checkpoints)] == ["checkpoint-5", "checkpoint-6"]
    for step in damaged:
        (run.checkpoint(step) / "trainer_state.json").write_text("{")
    return run


BETTER = [
    pytest.param({}, 6, id="the same loss again"),
    pytest.param({6: 4.25}, 5, id="it isn't the best this time"),
    pytest.param({6: 4.25, 9: 3.0}, 9, id="another is"),
]
"""What differs in the losses after the fallback, and the best step then."""


@pytest.mark.parametrize(("changed", "best"), BETTER)
@pytest.mark.parametrize("every", [1, 7])
def test_behind_a_damaged_best_one_the_best_that_is_left_is_linked(tiny_llama, tmp_path, changed, best, every):
    run = _behind_the_best(tiny_llama, tmp_path)
    state = _go_on(tiny_llama, run, LOSSES | changed, every=every)
    assert (state.best_step, state.best_validation_loss) == (best, (LOSSES | changed)[best])
    assert run.best_checkpoint.resolve() == run.checkpoint(best).resolve()
    assert find_damage(run.best_checkpoint) is None


def test_with_no_whole_validated_one_there_is_no_best_until_the_next(tiny_llama, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(checkpoint, "warn", warnings.append)
    run = _behind_the_best(tiny_llama, tmp_path, damaged=(5, 6))
    state = TrainState(4, validation_losses=[(2, 2.0), (5, 4.0)], best_validation_loss=2.0, best_step=2)
    checkpoint.settle_best(state, run.checkpoints)
    assert (state.best_step, state.best_validation_loss) == (None, None)
    said = "checkpoint-2, the best by validation loss, is gone; the best that is left is none that was validated"
    assert warnings == [said]
    state = _go_on(tiny_llama, run, LOSSES)
    assert state.best_step == 6 and find_damage(run.best_checkpoint) is None


def test_control_a_best_that_is_gone_and_kept_names_other_weights_or_none(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "settle_best", lambda *given: None)
    for every in (1, 7):
        run = _behind_the_best(tiny_llama, tmp_path / str(every))
        assert _go_on(tiny_llama, run, LOSSES | {6: 4.25}, every=every).best_step == 2
        assert not run.checkpoint(2).exists() and not run.best_checkpoint.exists()
