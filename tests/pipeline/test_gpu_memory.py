"""A GPU that is short of memory: tried before the first step, split in training, and the same numbers."""

import json
import random

import pytest
import torch

from llmtune.runs.metrics_log import MetricsLog
from llmtune.stages import training_choices

pytestmark = pytest.mark.gpu

LARGE = [
    "train",
    "hardware=single_gpu",
    "tracking.backend=none",
    "train.precision=fp32",
    "method.dropout=0.0",
    "train.micro_batch_size=128",
    "train.gradient_accumulation_steps=1",
    "data.max_seq_len=256",
    "data.num_examples=300",
    "train.deterministic=true",
]
GIB = 2**30


@pytest.fixture
def train_within(workplace, monkeypatch):
    """Trains on long rows with at most so many GiB allocated by torch; the run's manifest and losses."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    words = random.Random(1)
    rows = [" ".join(words.choices(["one", "two", "three", "four"], k=200)) for _ in range(400)]
    file = workplace.folder / "long.jsonl"
    file.write_text("".join(json.dumps({"text": f"{number} {row}"}) + "\n" for number, row in enumerate(rows)))

    def train(gib, *more, status=0):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if gib is None else gib * GIB / total)
        assert workplace.train(*LARGE, f"data.path={file}", *more) == status
        manifest = workplace.manifest
        return manifest, [loss for _, loss in MetricsLog(workplace.newest.metrics_file).losses("train/loss")]

    yield train
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.use_deterministic_algorithms(False)


def _peak(manifest) -> float:
    return manifest.stage("train")["peak_memory_gib"]


def _weights(manifest) -> dict[str, str]:
    return manifest.stage("train")["weights_sha256"]


def test_the_largest_micro_batch_is_tried_and_split_before_the_first_step(train_within) -> None:
    free, losses = train_within(None)
    assert free.section("choices")["micro_batch_split"] == [{"from_step": 1, "pieces": 1}]
    limit = 0.6 * _peak(free)
    short, short_losses = train_within(limit)
    (split,) = short.section("choices")["micro_batch_split"]
    print(f"peak {_peak(free):.3f} GiB; within {limit:.3f}: {split['pieces']} pieces, peak {_peak(short):.3f}")
    assert split["from_step"] == 1 and split["pieces"] > 1
    assert _peak(short) <= limit
    assert short_losses == pytest.approx(losses, rel=1e-5)


def test_where_nothing_fits_it_ends_before_the_first_step(train_within, capsys) -> None:
    """The optimizer's state alone is more than any GPU has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_choices, "_optimizer_bytes", lambda *given: 2.0**50)
        manifest, _ = train_within(None, status=1)
    shown = capsys.readouterr()
    assert "activations are computed again in the backward pass" in " ".join(shown.out.split())
    assert "with a single example a pass" in shown.err and "train.activation_checkpointing" not in shown.err
    assert not manifest.section("choices")


def test_a_run_does_not_depend_on_whether_memory_was_tried(train_within, monkeypatch) -> None:
    tried, losses = train_within(None)
    monkeypatch.setattr("llmtune.stages.train.fit", lambda *given: None)
    untried, untried_losses = train_within(None)
    assert _weights(tried) == _weights(untried)
    assert losses == untried_losses


def test_a_step_that_runs_out_of_memory_is_made_again_split(train_within, monkeypatch) -> None:
    free, losses = train_within(None)
    monkeypatch.setattr("llmtune.stages.train.fit", lambda *given: None)
    short, short_losses = train_within(0.6 * _peak(free))
    first, *found = short.section("choices")["micro_batch_split"]
    print(f"peak {_peak(free):.3f} GiB; splits {found}")
    assert first == {"from_step": 1, "pieces": 1} and found[0] == {"from_step": 1, "pieces": 2}
    assert short_losses == pytest.approx(losses, rel=1e-5)
