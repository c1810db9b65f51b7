"""A run's tokenizer is made again from its config and its record."""

import dataclasses
from pathlib import Path

import pytest

from llmtune.config.data import FilesConfig
from llmtune.config.method import LoraConfig, UntrainedConfig
from llmtune.config.model import ModelConfig
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError, RunError
from llmtune.models.source import locate_model
from llmtune.models.tokenizer import Adaptation, ChatTemplate, load_tokenizer
from llmtune.models.vocabulary import NewToken, Vocabulary
from llmtune.stages.adaptation import (
    check_same_tokens,
    check_tokens_of_adapter,
    describe_adaptation,
    find_adaptation,
)

pytestmark = pytest.mark.fast
TWO = Vocabulary((NewToken("<|a|>", 384), NewToken("<|b|>", 385)), 385)


@pytest.fixture
def template(tmp_path) -> Path:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    return tmp_path / "t.jinja"


def config_with(template=None, **changes) -> RunConfig:
    data = FilesConfig(chat_template=None if template is None else str(template), add_tokens=("<|a|>", "<|b|>"))
    return dataclasses.replace(
        RunConfig(model=ModelConfig(name="tiny", source="folder", path="x"), data=data), **changes
    )


def test_a_run_that_begins_reads_the_file(template):
    found = find_adaptation(config_with(template), {}, is_trained=False)
    assert found == Adaptation(ChatTemplate(str(template), "{{ messages }}"), ("<|a|>", "<|b|>"))
    assert find_adaptation(config_with(), {}, is_trained=False).chat_template is None


def test_a_run_that_began_keeps_the_text(template):
    config = config_with(template)
    first = find_adaptation(config, {}, is_trained=False)
    begun = describe_adaptation(first, TWO, "<|b|>")
    assert begun["added_tokens"] == {"<|a|>": 384, "<|b|>": 385} and begun["end_token"] == "<|b|>"
    assert find_adaptation(config, begun, is_trained=False) == first
    template.write_text("{{ other }}")
    assert find_adaptation(config, begun, is_trained=True) == first
    with pytest.raises(RunError, match=rf"data.chat_template={template}: has changed since the run began; restore it"):
        find_adaptation(config, begun, is_trained=False)
    template.unlink()
    assert find_adaptation(config, begun, is_trained=False) == first
    # another file is another template
    other = template.with_name("u.jinja")
    with pytest.raises(ConfigError, match="there is no such file"):
        find_adaptation(config_with(other), begun, is_trained=True)


def test_tokens_are_those_of_the_weights():
    begun = describe_adaptation(Adaptation(), TWO, "<|b|>")
    check_same_tokens(begun, TWO)
    check_same_tokens({}, TWO)
    with pytest.raises(RunError, match=r"data.add_tokens=\[\]: the run's weights have rows for \[<\|a\|>,<\|b\|>\]"):
        check_same_tokens(begun, Vocabulary())
    with pytest.raises(RunError, match="leave it as it was"):
        check_same_tokens({"weights_digest": "of a run without added tokens"}, TWO)


def test_nothing_is_added_to_weights_that_do_not_train():
    with pytest.raises(ConfigError, match=r"data.add_tokens: nothing trains here"):
        find_adaptation(config_with(method=UntrainedConfig()), {}, is_trained=True)
    # the run's own weights have them
    of_run = config_with(source_run="/runs/x")
    assert find_adaptation(of_run, {}, is_trained=True).add_tokens == ("<|a|>", "<|b|>")


@pytest.fixture
def gpt2(tiny_gpt2, tmp_path):
    return locate_model(ModelConfig(name="tiny", source="folder", path=str(tiny_gpt2)), tmp_path)


def make_adapter(folder, ids, base) -> Path:
    folder.mkdir()
    listed = f'{{"transformer.wte": {ids}}}' if ids else "null"
    settings = f'"peft_type": "LORA", "base_model_name_or_path": "{base}", "r": 4, "lora_alpha": 8'
    (folder / "adapter_config.json").write_text(f'{{{settings}, "trainable_token_indices": {listed}}}')
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_an_adapters_folder_brings_its_tokenizer(gpt2, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", [384, 385], gpt2.folder)
    config = config_with(method=LoraConfig(), data=FilesConfig(), source_weights=str(adapter))
    assert find_adaptation(config, {}, is_trained=True).folder is None
    load_tokenizer(gpt2, Adaptation(add_tokens=("<|a|>", "<|b|>"))).save_pretrained(adapter)
    assert find_adaptation(config, {}, is_trained=True).folder == adapter
    # one of a run is known by the run's record
    of_run = dataclasses.replace(config, source_run="/runs/x")
    assert find_adaptation(of_run, {}, is_trained=True).folder is None


def test_training_goes_on_from_an_adapter_of_the_same_tokens(gpt2, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", [384, 385], gpt2.folder)
    load_tokenizer(gpt2, Adaptation(add_tokens=("<|a|>", "<|b|>"))).save_pretrained(adapter)
    check_tokens_of_adapter(adapter, dataclasses.replace(gpt2, vocabulary=TWO))
    with pytest.raises(RunError, match=r"set data.add_tokens=\[<\|a\|>,<\|b\|>\], or start without an adapter"):
        check_tokens_of_adapter(adapter, gpt2)
    swapped = Vocabulary((NewToken("<|b|>", 384), NewToken("<|a|>", 385)))
    with pytest.raises(RunError, match=r"its added tokens are \[<\|a\|>,<\|b\|>\]"):
        check_tokens_of_adapter(adapter, dataclasses.replace(gpt2, vocabulary=swapped))
    plain = make_adapter(tmp_path / "plain", [], gpt2.folder)
    check_tokens_of_adapter(plain, gpt2)
    with pytest.raises(RunError, match=r"trained rows for 0 added tokens, and data.add_tokens adds 2 .*; leave it out"):
        check_tokens_of_adapter(plain, dataclasses.replace(gpt2, vocabulary=TWO))
