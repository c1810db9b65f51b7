"""A run's own chat template, tokens and end token on its model's tokenizer."""

import pytest

from llmtune.config.model import ModelConfig
from llmtune.errors import ConfigError
from llmtune.models.source import locate_model
from llmtune.models.tokenizer import (
    Adaptation,
    ChatTemplate,
    load_tokenizer,
    load_vocabulary,
    read_template,
    tokenizer_digest,
)
from llmtune.models.vocabulary import NewToken, Vocabulary

pytestmark = pytest.mark.fast
CHATML = Adaptation(add_tokens=("<|im_start|>", "<|im_end|>"), end_token="<|im_end|>")


@pytest.fixture
def gpt2(tiny_gpt2, tmp_path):
    return locate_model(ModelConfig(name="tiny", source="folder", path=str(tiny_gpt2)), tmp_path)


@pytest.fixture
def llama(tiny_llama, tmp_path):
    return locate_model(ModelConfig(name="tiny", source="folder", path=str(tiny_llama)), tmp_path)


def test_tokens_are_added_whole_and_end_texts(gpt2):
    tokenizer, vocabulary = load_vocabulary(gpt2, CHATML)
    assert vocabulary == Vocabulary((NewToken("<|im_start|>", 384), NewToken("<|im_end|>", 385)), 385)
    assert tokenizer("<|im_start|>a<|im_end|>").input_ids == [384, *tokenizer("a").input_ids, 385]
    assert tokenizer.eos_token_id == 385 and tokenizer.pad_token == "<|pad|>"
    assert tokenizer.decode([384, *tokenizer("a cat").input_ids, 385], skip_special_tokens=True) == "a cat"
    plain, nothing = load_vocabulary(gpt2, Adaptation())  # control
    assert nothing == Vocabulary() and plain.eos_token_id == 0
    assert len(plain("<|im_start|>").input_ids) > 1


def test_tokens_that_are_there_are_said_and_not_added(llama, monkeypatch):
    told = []
    monkeypatch.setattr("llmtune.models.tokenizer.say", told.append)
    tokenizer, vocabulary = load_vocabulary(llama, Adaptation(add_tokens=("<|im_start|>", "<|new|>")))
    assert vocabulary == Vocabulary((NewToken("<|new|>", 384),), None)
    assert [line.partition(":")[2].split(" already")[0] for line in told] == [" the model has <|im_start|>"]
    assert len(tokenizer) == 385


def test_each_key_changes_the_digest(gpt2):
    template = ChatTemplate("a.jinja", "{{ messages }}")
    changes = [
        Adaptation(),
        Adaptation(template),
        Adaptation(ChatTemplate("a.jinja", "{{ messages }}!")),
        Adaptation(add_tokens=("<|a|>",)),
        Adaptation(add_tokens=("<|b|>",)),
        Adaptation(end_token="<|pad|>"),
        Adaptation(add_tokens=("<|a|>",), end_token="<|a|>"),
    ]
    digests = [tokenizer_digest(load_tokenizer(gpt2, change)) for change in changes]
    assert len(set(digests)) == len(changes)
    assert tokenizer_digest(load_tokenizer(gpt2, Adaptation(template))) == digests[1]
    # the file's name is no part of it
    assert tokenizer_digest(load_tokenizer(gpt2, Adaptation(ChatTemplate("b", template.text)))) == digests[1]


def test_an_adapters_tokenizer_takes_the_models_place(gpt2, tmp_path):
    load_tokenizer(gpt2, CHATML).save_pretrained(tmp_path / "adapter")
    tokenizer, vocabulary = load_vocabulary(gpt2, Adaptation(folder=tmp_path / "adapter"))
    assert vocabulary == load_vocabulary(gpt2, CHATML)[1]
    assert tokenizer_digest(tokenizer) == tokenizer_digest(load_tokenizer(gpt2, CHATML))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (Adaptation(end_token="<|x|>"), r"data.end_token=<\|x\|>: is no special token .* which has <\|endoftext\|>, "),
        (Adaptation(end_token="a"), "data.end_token=a: is no special token"),
        (Adaptation(add_tokens=("a", "<|a|>")), "data.add_tokens: a is an ordinary piece of the model's vocabulary"),
        (Adaptation(ChatTemplate("t.jinja", "x\n{% foo %}")), r"t.jinja:2: Encountered unknown tag 'foo'"),
        (Adaptation(ChatTemplate("t.jinja", "{% for a in b %}")), r"t.jinja:1: Unexpected end of template"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(gpt2, change, problem):
    with pytest.raises(ConfigError, match=problem) as found:
        load_tokenizer(gpt2, change)
    assert "\n" not in str(found.value)


def test_a_template_may_refuse_a_conversation(gpt2):
    text = "{{ raise_exception('no') }}"
    assert load_tokenizer(gpt2, Adaptation(ChatTemplate("t.jinja", text))).chat_template == text


def test_files_that_are_no_template(tmp_path):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00a")
    (tmp_path / "good").write_text("{{ messages }}")
    problems = {
        "": "is a folder",
        "nowhere": "there is no such file",
        "empty": "is empty",
        "binary": "isn't UTF-8",
    }
    for name, problem in problems.items():
        with pytest.raises(ConfigError, match=problem) as found:
            read_template(str(tmp_path / name))
        assert str(found.value).startswith(f"data.chat_template={tmp_path / name}: ") and "\n" not in str(found.value)
    assert read_template(str(tmp_path / "good")).text == "{{ messages }}"
