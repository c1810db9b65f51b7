"""What the base model came to is measured once for the jobs of a sweep, and again where anything of it differs."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from llmtune.data.preparing.general import GeneralText
from llmtune.evaluation.perplexity import make_report
from llmtune.runs.environment import BASE_EVALUATIONS_VARIABLE
from llmtune.stages import base_evaluation
from llmtune.stages.base_evaluation import shared_base
from llmtune.stages.measuring import Measured

pytestmark = pytest.mark.fast
TEST: Any = SimpleNamespace(
    num_tokens=np.array([4, 6]), num_supervised_tokens=np.array([2, 3]), num_supervised_bytes=np.array([5, 5])
)
SUMS = np.array([1.5, 3.5])


def context(**changed: Any) -> Any:
    """A run, as far as the base model's measurement depends on it; `general` is a digest, or None."""
    asked = {"precision": "fp32", "batch_tokens": 64, "weights": "w", "test": "t", "general": "g", "new_tokens": 8}
    asked |= {
        "begun": {},
        "attention": "auto",
        "decoder": "auto",
        "packing": True,
        "deterministic": False,
        "minutes": None,
    } | changed
    config = SimpleNamespace(
        train=SimpleNamespace(packing=asked["packing"], deterministic=asked["deterministic"]),
        model=SimpleNamespace(attention=asked["attention"], decoder=asked["decoder"]),
        data=SimpleNamespace(max_seq_len=64),
        sweep=SimpleNamespace(job_timeout_minutes=asked["minutes"]),
        evaluate=SimpleNamespace(batch_tokens=asked["batch_tokens"], sample_max_new_tokens=asked["new_tokens"]),
    )
    general = asked["general"] and GeneralText(TEST, ["a", "b"], asked["general"], "here")
    return SimpleNamespace(
        config=config,
        begun_choices=asked["begun"],
        describe_model=lambda: {
            "weights_digest": asked["weights"],
            "tokenizer_digest": "k",
            "location": Path.cwd().name,
        },
        data=SimpleNamespace(test=TEST, report={"splits": {"test": {"tokens_sha256": asked["test"]}}}),
        general=general,
        precision=SimpleNamespace(name=asked["precision"]),
        device=torch.device("cpu"),
    )


class Measuring:
    """Measures, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Measured:
        self.times += 1
        return Measured(make_report(TEST, SUMS, 2.0), make_report(TEST, 2 * SUMS, 3.0), ["one", "two"])


@pytest.fixture
def measuring() -> Measuring:
    return Measuring()


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(BASE_EVALUATIONS_VARIABLE, str(tmp_path / "shared"))
    return tmp_path / "shared"


def kept_in(shared: Path) -> list[Path]:
    return [path for path in shared.iterdir() if path.is_dir()]


def test_the_second_job_takes_what_the_first_measured(shared, measuring, capsys, tmp_path, monkeypatch):
    first = shared_base(context(), 2, measuring)
    assert "earlier job" not in capsys.readouterr().out
    monkeypatch.chdir(shared)  # where the model lies doesn't count
    second = shared_base(context(), 2, measuring)
    assert measuring.times == 1 and len(kept_in(shared)) == 1
    assert first is not None and second is not None
    assert second.answers == ["one", "two"] and second.figures() == first.figures()
    assert second.test.loss == 1.0 and second.test.loss_sums.tolist() == SUMS.tolist()
    assert second.general is not None and second.general.loss == 2.0 and second.general.seconds == 3.0
    assert "base model: measured by an earlier job of the sweep, loss 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": "bf16"},
        {"batch_tokens": 32},
        {"weights": "others"},
        {"test": "another"},
        {"general": "another"},
        {"general": None},
        {"new_tokens": 9},
        {"begun": {"attention": "eager", "packed": False}},
        {"attention": "eager"},
        {"decoder": "transformers"},
        {"begun": {"decoder": "llmtune"}},
        {"packing": False},
        {"deterministic": True},
    ],
)
def test_another_measurement_is_made_where_anything_differs(changed, shared, measuring):
    shared_base(context(), 2, measuring)
    shared_base(context(**changed), 2, measuring)
    assert measuring.times == 2 and len(kept_in(shared)) == 2


def test_so_it_is_with_other_threads_prompts_and_code(shared, measuring, monkeypatch):
    shared_base(context(), 2, measuring)
    shared_base(context(), 3, measuring)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    shared_base(context(), 2, measuring)
    monkeypatch.setattr(base_evaluation, "_code_digest", lambda: "another version")
    shared_base(context(), 2, measuring)
    assert measuring.times == 4


@pytest.mark.parametrize("name", ["test.npy", "general.npy", "measured.json"])
@pytest.mark.parametrize("how", ["flipped", "shortened", "gone"])
def test_what_is_damaged_is_measured_again_aloud(name, how, shared, measuring, capsys):
    shared_base(context(), 2, measuring)
    file = kept_in(shared)[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content if how == "flipped" else content[:-3])
    found = shared_base(context(), 2, measuring)
    assert measuring.times == 2 and found is not None and found.test.loss == 1.0
    assert "is damaged" in capsys.readouterr().out
    shared_base(context(), 2, measuring)
    assert measuring.times == 2  # it was kept anew


def test_a_job_that_stands_still_keeps_the_others_waiting_for_a_share_of_their_limit_at_most(
    shared, measuring, capsys, monkeypatch
):
    shared_base(context(), 2, measuring)  # which makes the lock's file
    (lock,) = shared.glob("*.lock")
    shutil.rmtree(kept_in(shared)[0])
    monkeypatch.setattr("llmtune.data.preparing.alone._PATIENCE", 0.01)
    began = time.monotonic()
    with FileLock(lock):
        found = shared_base(context(minutes=0.02), 2, measuring)
    assert 0.3 <= time.monotonic() - began < 30
    assert measuring.times == 2 and found is not None and found.test.loss == 1.0
    assert (
        "the other process isn't done after 0 s; measuring the base model is done here too" in capsys.readouterr().out
    )
    assert len(kept_in(shared)) == 1


@pytest.mark.parametrize(("minutes", "seconds"), [(None, 600.0), (1.2, 18.0), (1000.0, 600.0)])
def test_how_long_it_waits(minutes, seconds):
    assert base_evaluation._longest_wait(context(minutes=minutes)) == pytest.approx(seconds)


def test_alone_it_is_measured_and_nothing_kept(measuring, tmp_path, monkeypatch):
    monkeypatch.delenv(BASE_EVALUATIONS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    shared_base(context(), 2, measuring)
    shared_base(context(), 2, measuring)
    assert measuring.times == 2 and list(tmp_path.iterdir()) == []


def test_the_other_processes_do_as_the_first(shared, measuring, monkeypatch):
    shared_base(context(), 2, measuring)
    monkeypatch.setattr("llmtune.distributed.is_first", lambda: False)
    for told, times in ((1.0, 1), (0.0, 2)):
        monkeypatch.setattr(base_evaluation, "value_of_first", lambda value, device, told=told: told)
        found = shared_base(context(), 2, measuring)
        assert measuring.times == times and (found is None) == (told == 1.0)


def test_it_is_not_kept_half(shared, measuring, monkeypatch):
    def fail(*arguments: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(base_evaluation, "write_sealed", fail)
        assert shared_base(context(), 2, measuring) is not None
    assert kept_in(shared) == []
    without = Measured(make_report(TEST, SUMS, 2.0), None, [])
    found = [shared_base(context(general=None), 0, lambda: without) for _ in range(2)]
    assert found[1] is not None and found[1].general is None
