"""What the gate's questions bring back from a model, by hand and against transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.errors import ExportCheckFailed
from llmtune.export.gate.answers import Asked, answers_here, answers_of, close_asker
from llmtune.export.gate.questions import Questions
from llmtune.export.shipped.transformers_model import CachedModel, text_of

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18]]
LABELS = [-100, -100, 11, 12, -100, 14, 15, 16, 17, 18]
ASKED = Questions(
    prompts=PROMPTS,
    starts=[ids[: len(ids) // 2] for ids in PROMPTS],
    num_steps=6,
    examples=[{"input_ids": PROMPTS[1], "labels": LABELS}],
    texts=["a text"],
    conversations=[],
    pad_token_id=0,
    long=[*PROMPTS[1], *PROMPTS[1]],
    num_long=3,
)


@pytest.mark.fast
def test_answers_are_what_transformers_says(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = answers_here(CachedModel(model, text_of(model, tokenizer)), ASKED, tmp_path)
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            assert np.allclose(found.logits[row], model(torch.tensor([prompt])).logits[0], atol=1e-5)
            ids = prompt[: len(prompt) // 2]
            assert np.allclose(found.padded[row], model(torch.tensor([ids])).logits[0, -1], atol=1e-4)
            for step in range(6):
                logits = model(torch.tensor([ids])).logits[0, -1]
                best = logits.topk(2).values
                assert found.greedy[row, step] == logits.argmax()
                assert found.gaps[row, step] == pytest.approx(float(best[0] - best[1]), abs=1e-4)
                ids = [*ids, int(logits.argmax())]
        assert np.allclose(found.long, model(torch.tensor([ASKED.long])).logits[0, -3:], atol=1e-5)
        assert found.cache_kl.shape == (2, 6) and 0 <= found.cache_kl.max() < 1e-9
        ids, labels = torch.tensor([PROMPTS[1]]), torch.tensor([LABELS])
        assert found.loss == pytest.approx(float(model(ids, labels=labels).loss), abs=1e-5)
    assert found.text["encoded"] == [tokenizer("a text")["input_ids"]]


RUNTIME = """
import os, signal, sys
class Runtime:
    def __init__(self, folder, how):
        if how == "raise": raise ValueError("no\\nweights")
        if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit": os._exit(3)
        if how == "print": print("0", flush=True); raise ValueError("printed")
"""


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "doesn't run: ValueError: no weights$"),
        ("kill", "ended by signal 9, perhaps for want of memory"),
        ("exit", "its process ended with 3"),
        ("print", "doesn't run: ValueError: printed$"),
    ],
)
def test_a_runtime_that_fails_is_told_and_the_next_one_is_asked(tmp_path, how, words):
    (tmp_path / "runtime.py").write_text(RUNTIME)
    with pytest.raises(ExportCheckFailed, match=words):
        answers_of(Asked(tmp_path, options={"how": how}), ASKED, tmp_path / "work")


def test_the_cache_of_a_model_that_forgets_is_found(tiny_llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()

    class Forgetful(CachedModel):
        def step(self, tokens):
            self._mask = torch.cat([torch.zeros_like(self._mask[:, :2]), self._mask[:, 2:]], dim=1)
            return super().step(tokens)

    found = answers_here(Forgetful(model, text_of(model, AutoTokenizer.from_pretrained(tiny_llama))), ASKED, tmp_path)
    assert found.cache_kl.mean() > 1e-4


def test_asking_leaves_no_bytecode_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    close_asker()
    (tmp_path / "runtime.py").write_text(RUNTIME)
    with pytest.raises(ExportCheckFailed):
        answers_of(Asked(tmp_path, options={"how": "raise"}), ASKED, tmp_path / "work")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runtime.py", "work"]


def test_an_asker_that_ended_is_started_anew(tmp_path):
    (tmp_path / "runtime.py").write_text(RUNTIME)
    for _ in range(2):
        with pytest.raises(ExportCheckFailed, match="no weights"):
            answers_of(Asked(tmp_path, options={"how": "raise"}), ASKED, tmp_path / "work")
        close_asker()
