"""What the registry's script answers: as transformers would, each prompt as if it were alone."""

import json
import shutil
import sys
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.export.companions import write_scripts
from llmtune.export.registered_model import folder_sums, write_model

PROMPTS = ["Once upon a time", "The", "A longer prompt that has many more tokens than the others", ""]
SHORT = {"max_new_tokens": 10}


@pytest.fixture
def exported(tmp_path, tiny_llama) -> Path:
    folder = shutil.copytree(tiny_llama, tmp_path / "hf")
    write_scripts("hf", folder)
    return folder


def load(exported: Path, staged: Path) -> mlflow.pyfunc.PyFuncModel:
    """The logged model as pyfunc loads it."""
    write_model(exported, staged, folder_sums(exported), model_id="m-1", run_id="r")
    return mlflow.pyfunc.load_model(str(staged))


@pytest.fixture
def loaded(exported, tmp_path):
    return load(exported, tmp_path / "staged")


def greedy(folder: Path, prompt: str, num_tokens: int) -> str:
    """What transformers writes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(prompt)["input_ids"] or [model.generation_config.eos_token_id]
    written = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=num_tokens)[0, len(ids) :]
    return tokenizer.decode(written, skip_special_tokens=True)


def test_a_batch_is_what_transformers_writes_of_each_prompt(exported, loaded):
    expected = [greedy(exported, prompt, 10) for prompt in PROMPTS]
    parts = {name: sys.modules.get(name) for name in ("runtime", "text", "transformers_model")}
    assert len(set(expected)) == len(PROMPTS)
    assert loaded.predict(PROMPTS, params=SHORT) == expected
    assert [loaded.predict([prompt], params=SHORT)[0] for prompt in PROMPTS] == expected
    assert loaded.predict(pd.DataFrame({"any name": PROMPTS}), params=SHORT) == expected
    assert loaded.predict({"prompt": PROMPTS}, params=SHORT) == expected
    assert loaded.predict("The", params=SHORT) == expected[1:2]
    assert {name: sys.modules.get(name) for name in parts} == parts, "its scripts get in nobody's way"
    assert not list(exported.rglob("__pycache__"))


def test_text_ends_at_the_models_end_tokens(exported, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    ids = tokenizer("The")["input_ids"]
    written = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=10)[0, len(ids) :].tolist()
    end = next(token for token in written if token != written[0])
    settings = json.loads((exported / "generation_config.json").read_text())
    (exported / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, end]}))
    answer = load(exported, tmp_path / "staged").predict(["The", "Once"], params=SHORT)[0]
    assert answer == tokenizer.decode(written[: written.index(end)], skip_special_tokens=True)


def test_a_seed_gives_a_text_whatever_stands_beside_it(loaded):
    drawn = {**SHORT, "temperature": 0.9, "seed": 3}
    together = loaded.predict(PROMPTS, params=drawn)
    assert together == [loaded.predict([prompt], params=drawn)[0] for prompt in PROMPTS]
    assert together != loaded.predict(PROMPTS, params=SHORT)
    assert together != loaded.predict(PROMPTS, params={**drawn, "seed": 4})


def test_a_long_prompt_beside_a_short_one_runs_out_of_positions_alone(tiny_llama, loaded):
    prompts = ["a b " * 245, "x"]
    assert len(AutoTokenizer.from_pretrained(tiny_llama)(prompts[0])["input_ids"]) == 491
    answers = loaded.predict(prompts, params={"max_new_tokens": 100})
    assert answers == [loaded.predict([prompt], params={"max_new_tokens": 100})[0] for prompt in prompts]
    with pytest.raises(ValueError, match="a prompt has 521 tokens, and the model takes 512"):
        loaded.predict(["a b " * 260])


def test_questions_go_through_the_chat_template(exported, loaded):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    question = [{"role": "user", "content": "Who?"}]
    rendered = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert loaded.predict(["Who?"], params={**SHORT, "chat": True}) == [greedy(exported, rendered, 10)]


@pytest.mark.parametrize("params", [{"max_new_tokens": 0}, {"temperature": -0.5}])
def test_params_that_cant_be_are_refused(loaded, params):
    with pytest.raises(ValueError, match="max_new_tokens is 1 or more, temperature 0 or more"):
        loaded.predict(["a"], params=params)
