"""A base model's chat template, added tokens and end token through the whole pipeline, as a person types them."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
START, END = 384, 385
"""The ids after tiny_gpt2's own."""
STAGES = ("prepare", "train", "evaluate", "export")


@pytest.fixture
def chat(workplace, examples_file) -> list[str]:
    """The words that make a base model chat, and a file of conversations."""
    (workplace.folder / "chatml.jinja").write_text(TEMPLATE)
    rows = [json.loads(line) for line in examples_file.read_text().splitlines()]
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    (workplace.folder / "chats.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return [
        "data.path=chats.jsonl",
        "data.chat_template=chatml.jinja",
        "data.add_tokens=[<|im_start|>,<|im_end|>]",
        "data.end_token=<|im_end|>",
        "data.max_seq_len=96",
        "train.learning_rate=0.02",
    ]


def card_code(folder: Path, base: Path) -> dict:
    """What the loading code of an export's model card makes."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    made: dict = {}
    exec(code.replace('"FOLDER"', repr(str(folder))).replace('"tiny-gpt2"', repr(str(base))), made)
    return made


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.tensor([[START, 70, 80, END, START, 90]])).logits[0].float()


@pytest.mark.parametrize(
    "method", ["lora", pytest.param("full", marks=pytest.mark.slow), pytest.param("qlora", marks=pytest.mark.slow)]
)
def test_added_tokens_reach_every_file(workplace, chat, tiny_gpt2, method):
    assert workplace.train(f"method={method}", *chat, "export.max_loss_rise=10", *STAGES, model="tiny_gpt2") == 0
    run = workplace.newest
    told = workplace.manifest.section("model")
    assert told["added_tokens"] == {"<|im_start|>": START, "<|im_end|>": END}
    assert told["end_token"] == "<|im_end|>" and told["chat_template"]["text"] == TEMPLATE
    merged = run.exports / "hf"
    folders = [run.final_checkpoint, merged, *([run.exports / "adapter"] if method != "full" else [])]
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", END)
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer("<|im_start|>a").input_ids[0] == START
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == END + 1
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == [END, 0] and model.config.eos_token_id == END
    # the new rows were trained: they began equal, and the mean of the others
    rows = model.get_input_embeddings().weight.detach()[START:]
    assert float((rows[0] - rows[1]).abs().max()) > 1e-3
    own = load_file(tiny_gpt2 / "model.safetensors")["transformer.wte.weight"]
    kept = torch.equal(model.get_input_embeddings().weight[:START], own)
    assert kept == (method != "full")
    assert "| added tokens |" in (merged / "README.md").read_text()
    if method == "full":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        made = card_code(run.exports / "adapter", tiny_gpt2)
    assert isinstance(made["model"], PeftModel)
    assert made["model"].generation_config.eos_token_id == END
    if method == "lora":
        assert torch.allclose(logits(made["model"].eval()), logits(model), atol=1e-4)
        # control: without room for the new tokens PEFT can't load it
        with pytest.raises(IndexError):
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_gpt2), run.exports / "adapter")


def test_a_run_keeps_its_template(workplace, chat, capsys):
    """Later stages work when the template's file is gone; a run that goes on refuses another content."""
    template = workplace.folder / "chatml.jinja"
    words = ["method=lora", "train.max_steps=4", "train.checkpoint_every_steps=2", "prepare"]
    assert workplace.train(*chat, *words, model="tiny_gpt2") == 0
    run = workplace.newest
    template.write_text(TEMPLATE.replace("user", "person").replace("<|im_end|>", "<|im_end|>!"))
    assert workplace.type("train", f"run={run.path}") != 0
    assert f"data.chat_template={template}: has changed since the run began" in capsys.readouterr().err
    template.unlink()
    assert workplace.type("train", f"run={run.path}") == 0
    assert workplace.type("evaluate", "export", f"run={run.path}") == 0
    assert AutoTokenizer.from_pretrained(run.exports / "adapter").chat_template == TEMPLATE
    checkpoint = run.checkpoint(4)
    capsys.readouterr()
    ask = ("generate.prompt=add 3 and 4:", "generate.max_new_tokens=6", "generate.temperature=0")
    texts = []
    for named in (run.path, checkpoint, run.exports / "adapter"):
        assert workplace.type("generate", f"run={named}", *ask) == 0
        texts.append(capsys.readouterr().out.partition("\n")[2])
    moved = shutil.copytree(checkpoint.resolve(), workplace.folder / "moved")
    assert workplace.type("generate", f"run={moved}", *ask) == 0
    assert {*texts, capsys.readouterr().out.partition("\n")[2]} == {texts[0]}


def test_added_tokens_resume_exactly(workplace, chat):
    """Rows and optimizer state go on bit for bit."""
    words = [*chat, "method=lora", "train.max_steps=6", "train.checkpoint_every_steps=3", "train"]
    assert workplace.train(*words, model="tiny_gpt2") == 0
    straight = workplace.newest
    assert workplace.train(*words, model="tiny_gpt2") == 0
    stopped = workplace.newest
    shutil.rmtree(stopped.final_checkpoint.resolve())
    for link in (stopped.final_checkpoint, stopped.best_checkpoint):
        link.unlink(missing_ok=True)
    manifest = json.loads(stopped.manifest_file.read_text())
    manifest["stages"].pop("train")
    stopped.manifest_file.write_text(json.dumps(manifest))
    assert workplace.type("train", f"run={stopped.path}") == 0
    one, two = (load_file(run.checkpoint(6) / "adapter_model.safetensors") for run in (straight, stopped))
    assert any("trainable_tokens_delta" in name for name in one)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_going_on_from_an_adapter_with_added_tokens(workplace, chat, capsys):
    assert workplace.train(*chat, "method=lora", "train.max_steps=2", "train", model="tiny_gpt2") == 0
    first = workplace.newest
    plain = [word for word in chat if "tokens" not in word and "end_token" not in word]
    again = ["method=lora", f"method.adapter={first.path}", "train.max_steps=2", "train"]
    assert workplace.train(*plain, *again, model="tiny_gpt2") == 2
    assert "set data.add_tokens=[<|im_start|>,<|im_end|>]" in capsys.readouterr().err
    assert workplace.train(*chat, *again, model="tiny_gpt2") == 0
    # control: another token under the same id
    other = [word.replace("<|im_start|>", "<|other|>") for word in chat]
    (workplace.folder / "chatml.jinja").write_text(TEMPLATE.replace("<|im_start|>", "<|other|>"))
    assert workplace.train(*other, *again, model="tiny_gpt2") == 2
    assert "its added tokens are [<|im_start|>,<|im_end|>]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("data.chat_template=nowhere.jinja", "nowhere.jinja: there is no such file"),
        ("data.chat_template=.", "is a folder"),
        ("data.add_tokens=[<|a|>,<|a|>]", "data.add_tokens: <|a|> is listed 2 times"),
        ("data.end_token=<|nothing|>", "data.end_token=<|nothing|>: is no special token"),
    ],
)
def test_mistakes_end_with_one_line(workplace, chat, capsys, word, problem):
    assert workplace.train(*chat, word, "prepare", model="tiny_gpt2") == 2
    told = capsys.readouterr().err
    assert problem in told and "Traceback" not in told
