"""A first-time user's session, typed with flags, each command for real; paths are those that `train` printed."""

import json
import re
import shutil

import pytest

from llmtune.runs.manifest import Manifest

from .conftest import ASSETS

FAST = ["tracking.backend=none", "data.max_seq_len=64"]


@pytest.fixture
def files(workplace) -> dict[str, str]:
    """Files of examples under names with special characters, and the tiny model."""
    train, evaluation = workplace.folder / "my data (1)=a, b's.jsonl", workplace.folder / "eval.jsonl"
    rows = (ASSETS / "examples.jsonl").read_text().splitlines()
    train.write_text("\n".join(rows[:120]) + "\n")
    evaluation.write_text("\n".join(rows[150:180]) + "\n")
    shutil.copytree(ASSETS / "tiny_llama", workplace.folder / "model")
    return {"F": train.name, "E": evaluation.name, "M": "./model"}


def test_the_first_session(workplace, files, capsys) -> None:
    def typed(line: str, **places: str) -> str:
        words = [{**files, **places}.get(word, word) for word in line.split()]
        assert workplace.type(*words, *FAST) == 0, line
        return capsys.readouterr().out

    checkpoints = {}
    for line in (
        "train --model M --train-data F --method lora --epochs 3 --batch-size 4",
        "train --model M --train-data F --method qlora --batch-size 1 --epochs 1",
        "train --model M --train-data F --eval-data E --method full --epochs 1",
    ):
        printed = typed(line)
        checkpoints[line.split()[6]] = re.search(r"checkpoint: (\S+/checkpoints/checkpoint-\d+)", printed)[1]

    prompt = "add 3 and 4: (x), it's"
    written = typed("generate --model-path R --prompt P --max-length 8", R=checkpoints["lora"], P=prompt)
    assert prompt in written
    written = typed(
        "generate --model-path R --prompt P --max-length 9 --temperature 0.9 --num-samples 3",
        R=checkpoints["lora"],
        P="def fibonacci(",
    )
    assert written.count("def fibonacci(") == 3

    losses = {}
    for method, checkpoint in checkpoints.items():
        printed = typed("evaluate --model-path R --eval-data E", R=checkpoint)
        losses[method] = Manifest(workplace.newest.manifest_file).stage("evaluate")
        assert all(word in printed for word in ("test loss", "test perplexity", "evaluation, tokens per second"))
    assert all(figures["num_examples"] == 30 for figures in losses.values())
    assert losses["lora"]["loss"] < losses["lora"]["base_loss"]
    assert len({figures["loss"] for figures in losses.values()}) == 3

    typed("export --model-path R --output-path O --format hf", R=checkpoints["lora"], O="./exported model")
    exported = workplace.folder / "exported model" / "hf"
    assert json.loads((exported / "parity.json").read_text())
    written = typed("generate --model-path R --prompt P --max-length 8 --temperature 0", R=str(exported), P="add 3")
    again = typed("generate --model-path R --prompt P --max-length 8 --temperature 0", R=checkpoints["lora"], P="add 3")
    assert written.splitlines()[-1] == again.splitlines()[-1]


def test_a_chat_answers_line_by_line(workplace, files, monkeypatch, capsys) -> None:
    lines = iter(["hello", "", "and then?"])

    def typed(_prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = []
    from llmtune.stages.generate import Writer

    answer = Writer.answer
    monkeypatch.setattr(Writer, "answer", lambda self, turns, how: asked.append([*turns]) or answer(self, turns, how))
    assert workplace.type("generate", f"--model={files['M']}", "--max-length", "4") == 0
    assert [[turn["role"] for turn in turns] for turns in asked] == [["user"], ["user", "assistant", "user"]]
    assert "model: model as it is" in capsys.readouterr().out
