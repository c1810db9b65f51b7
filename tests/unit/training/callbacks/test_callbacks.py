"""What each callback does around steps."""

import pytest

from llmtune.errors import TrainingFault
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.callbacks.metrics import MetricsCallback
from llmtune.training.callbacks.progress import ProgressCallback
from llmtune.training.callbacks.validation import ValidationCallback, ValidationSettings
from llmtune.training.checkpoint import list_checkpoints, load_checkpoint
from llmtune.training.loop import train
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.fast


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def _validation(losses, log, tracker, every_steps=1, patience=None):
    values = iter(losses)
    return ValidationCallback(lambda model: next(values), ValidationSettings(every_steps, patience), log, tracker)


def _checkpoints(tmp_path, every_steps=None, validate_every_steps=1, keep=1):
    return CheckpointCallback(RunFolder(tmp_path), CheckpointSettings(every_steps, validate_every_steps, keep))


def _names(tmp_path):
    return {path.name for path in list_checkpoints(tmp_path / "checkpoints")}


def test_every_step_is_written_and_some_are_sent(make_parts, log, tracker):
    train(make_parts(total_steps=5), TrainState(), [MetricsCallback(log, tracker, log_every_steps=2)])
    assert [step for step, _ in log.losses("train/loss")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in tracker.metrics] == [2, 4, 5]
    first, last = log.read()[0], log.read()[-1]
    assert set(first) == {
        "step", "train/loss", "train/learning_rate", "train/grad_norm", "train/epoch", "train/num_tokens",
    }  # fmt: skip
    assert set(last) - set(first) == {"train/tokens_per_second_per_device"}
    assert last["train/epoch"] == pytest.approx(5 / 3)


def test_the_last_step_of_an_early_stop_is_sent(make_parts, log, tracker):
    metrics = MetricsCallback(log, tracker, log_every_steps=10)
    train(make_parts(), TrainState(), [metrics, _validation([1.0, 2.0, 3.0], log, tracker, patience=2)])
    assert [step for step, entry in tracker.metrics if "train/loss" in entry] == [3]


def test_a_resumed_run_cuts_the_entries_beyond_its_checkpoint(make_parts, log, tracker):
    parts = make_parts(total_steps=4)
    train(parts, TrainState(), [MetricsCallback(log, tracker, 1)])
    MetricsCallback(log, tracker, 1).on_train_start(parts, TrainState(global_step=2))
    assert [entry["step"] for entry in log.read()] == [1, 2]


def test_validation_keeps_the_best_and_logs_it(make_parts, log, tracker):
    state = train(make_parts(total_steps=4), TrainState(), [_validation([3.0, 1.0, 2.0, 1.5], log, tracker)])
    assert state.validation_losses == [(1, 3.0), (2, 1.0), (3, 2.0), (4, 1.5)]
    assert (state.best_validation_loss, state.best_step) == (1.0, 2)
    assert log.losses("evaluate/validation_loss") == state.validation_losses
    assert tracker.metrics[1] == (2, {"evaluate/validation_loss": 1.0})


@pytest.mark.parametrize(("patience", "stopped_at"), [(1, 3), (2, 5), (None, 6)])
def test_early_stopping_counts_validations_without_improvement(make_parts, log, tracker, patience, stopped_at):
    losses = [3.0, 2.0, 2.5, 1.9, 1.9, 1.9] if patience == 1 else [3.0, 2.0, 1.9, 2.5, 1.9, 1.8]
    state = train(make_parts(), TrainState(), [_validation(losses, log, tracker, patience=patience)])
    assert state.global_step == stopped_at


def test_a_resumed_run_that_had_stopped_early_makes_no_step(make_parts, log, tracker):
    state = TrainState(global_step=3, best_validation_loss=1.0, best_step=1, validations_without_improvement=2)
    assert train(make_parts(), state, [_validation([], log, tracker, patience=2)]).global_step == 3


@pytest.mark.parametrize("logged_by_a_killed_run", [False, True])
def test_a_validation_that_is_made_up_for_is_logged_once(make_parts, log, tracker, logged_by_a_killed_run):
    if logged_by_a_killed_run:
        log.append(2, {"evaluate/validation_loss": 2.0})
    state = TrainState(global_step=2, validation_losses=[(1, 3.0)], best_validation_loss=3.0, best_step=1)
    train(make_parts(total_steps=3), state, [_validation([2.0, 1.0], log, tracker)])
    assert log.losses("evaluate/validation_loss") == [(2, 2.0), (3, 1.0)]
    assert state.validation_losses == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [step for step, _ in tracker.metrics] == [2, 3], "the tracker leaves out by itself what its store has"


def test_a_validation_loss_that_is_no_number_is_a_fault(make_parts, log, tracker):
    with pytest.raises(TrainingFault, match="validation loss after step 1 is nan"):
        train(make_parts(), TrainState(), [_validation([float("nan")], log, tracker)])


def test_best_and_final_are_linked_and_the_rest_removed(make_parts, log, tracker, tmp_path):
    callbacks = [_validation([3.0, 1.0, 2.0, 1.5], log, tracker), _checkpoints(tmp_path)]
    train(make_parts(total_steps=4), TrainState(), callbacks)
    assert _names(tmp_path) == {"checkpoint-2", "checkpoint-4"}
    assert (tmp_path / "checkpoints" / "checkpoint-best").readlink().name == "checkpoint-2"
    assert (tmp_path / "checkpoints" / "checkpoint-final").readlink().name == "checkpoint-4"


def test_a_checkpoint_knows_the_validation_of_its_own_step(make_parts, log, tracker, tmp_path):
    parts = make_parts(total_steps=2)
    train(parts, TrainState(), [_validation([3.0, 1.0], log, tracker), _checkpoints(tmp_path)])
    assert load_checkpoint(tmp_path / "checkpoints" / "checkpoint-best", parts).best_step == 2


def test_a_best_step_between_two_checkpoints_is_saved_too(make_parts, log, tracker, tmp_path):
    callbacks = [_validation([3.0, 1.0, 2.0, 2.5, 2.6, 2.7], log, tracker), _checkpoints(tmp_path, every_steps=3)]
    train(make_parts(), TrainState(), callbacks)
    assert _names(tmp_path) == {"checkpoint-2", "checkpoint-6"}


def test_without_validation_five_are_saved_and_the_newest_kept(make_parts, tmp_path):
    train(make_parts(), TrainState(), [_checkpoints(tmp_path, validate_every_steps=None, keep=3)])
    assert _names(tmp_path) == {"checkpoint-4", "checkpoint-5", "checkpoint-6"}
    assert not (tmp_path / "checkpoints" / "checkpoint-best").exists()


def test_an_early_stop_is_saved_as_final(make_parts, log, tracker, tmp_path):
    callbacks = [_validation([1.0, 2.0], log, tracker, patience=1), _checkpoints(tmp_path, every_steps=5)]
    train(make_parts(), TrainState(), callbacks)
    assert (tmp_path / "checkpoints" / "checkpoint-final").readlink().name == "checkpoint-2"


def test_a_resume_sets_the_best_link_that_a_kill_left_out(make_parts, log, tracker, tmp_path):
    parts = make_parts(total_steps=2)
    train(parts, TrainState(), [_validation([3.0, 1.0], log, tracker), _checkpoints(tmp_path)])
    link = tmp_path / "checkpoints" / "checkpoint-best"
    link.unlink()
    _checkpoints(tmp_path).on_train_start(parts, TrainState(global_step=2, best_step=2))
    assert link.readlink().name == "checkpoint-2"


@pytest.mark.parametrize("best_step", [None, 1])
def test_a_resume_drops_a_best_link_that_its_state_knows_nothing_of(make_parts, log, tracker, tmp_path, best_step):
    parts = make_parts(total_steps=2)
    train(parts, TrainState(), [_validation([3.0, 1.0], log, tracker), _checkpoints(tmp_path)])
    _checkpoints(tmp_path).on_train_start(parts, TrainState(global_step=1, best_step=best_step))
    assert not (tmp_path / "checkpoints" / "checkpoint-best").is_symlink()


def test_progress_counts_earlier_steps_and_shows_loss_and_speed(make_parts, step_result):
    shown = []

    class Line:
        def advance(self, amount=1, note=""):
            shown.append((amount, note))

    callback, parts = ProgressCallback(Line()), make_parts()
    callback.on_train_start(parts, TrainState(global_step=4))
    for _ in range(3):
        for listener in parts.watch.listeners:
            listener([step_result])
        callback.on_step_end(parts, TrainState(), step_result)
    assert shown == [(4, "resumed"), (1, "loss 2.0000"), (1, "loss 2.0000"), (1, "loss 2.0000 80 tokens/s")]
