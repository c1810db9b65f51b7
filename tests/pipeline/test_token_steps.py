"""A run whose steps are filled with tokens: what it says, records and ships, and that it goes on."""

import json

UNTRACKED = "tracking.backend=none"
FILLED = ("train.batch_unit=tokens", "train.tokens_per_step=256", "train.micro_batch_size=2")


def _entries(run):
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def test_steps_of_tokens_from_the_first_to_the_model_card(workplace, capsys):
    words = ["train", "export", UNTRACKED, *FILLED, "train.num_epochs=2", "export.formats=[adapter]"]
    assert workplace.train(*words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "at most 256 tokens (micro-batches of at most 128 tokens, processes 1), about 2" in said
    run, results = workplace.newest, workplace.manifest.stage("train")
    entries = _entries(run)
    tokens = [entry["train/num_tokens"] for entry in entries]
    in_steps = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    assert max(in_steps) <= 256
    epochs = [entry["train/epoch"] for entry in entries]
    assert (epochs[-1], epochs.count(1.0)) == (2.0, 1)
    whole = in_steps[: epochs.index(1.0) + 1]
    expected = workplace.manifest.section("data")["splits"]["train"]["num_tokens"]
    assert (sum(whole), sum(in_steps)) == (expected, 2 * expected)
    assert sum(whole[:-1]) > 0.97 * 256 * len(whole[:-1])
    assert results["steps"] == len(entries) == workplace.manifest.section("choices")["total_steps"]
    card = (run.exports / "adapter" / "README.md").read_text()
    assert "tokens_per_step" in card and "gradient_accumulation_steps" not in card
    print(f"{len(entries)} steps, {sum(whole[:-1]) / (256 * len(whole[:-1])):.1%} full but for each epoch's last")


def test_a_run_goes_on_with_its_steps_of_tokens(workplace, capsys):
    assert workplace.train("train", UNTRACKED, *FILLED) == 0
    steps = workplace.manifest.stage("train")["steps"]
    capsys.readouterr()
    assert workplace.type("train", "run=latest", "train.tokens_per_step=320") == 2
    assert "train.tokens_per_step=320: the run began with 256" in capsys.readouterr().err
    allow = "resume_allow=[train.num_epochs,seed,train.micro_batch_size]"
    assert workplace.type("train", "run=latest", "train.num_epochs=2", "seed=5", "train.micro_batch_size=1", allow) == 0
    total = workplace.manifest.stage("train")["steps"]
    assert total == workplace.manifest.section("choices")["total_steps"]
    assert abs(total - 2 * steps) <= 1
    assert [entry["step"] for entry in _entries(workplace.newest)] == list(range(1, total + 1))
