"""The tokenizer and its digest."""

import json
import shutil

import pytest

from llmtune.config.model import ModelConfig
from llmtune.errors import ModelError
from llmtune.models.source import locate_model
from llmtune.models.tokenizer import load_tokenizer, tokenizer_digest


def source_of(folder, tmp_path):
    return locate_model(ModelConfig(name="tiny", source="folder", path=str(folder)), tmp_path)


@pytest.mark.fast
def test_digest_survives_saving_and_use(tiny_model, tmp_path):
    tokenizer = load_tokenizer(source_of(tiny_model, tmp_path))
    digest = tokenizer_digest(tokenizer)
    tokenizer(["a cat", "two cats and a dog"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == digest
    shutil.copytree(tiny_model, tmp_path / "copy")
    tokenizer.save_pretrained(tmp_path / "copy")
    again = load_tokenizer(source_of(tmp_path / "copy", tmp_path))
    assert tokenizer_digest(again) == digest
    assert again("add 3 and 4:").input_ids == tokenizer("add 3 and 4:").input_ids


@pytest.mark.fast
def test_digest_tells_template_and_special_tokens(tiny_llama, tmp_path):
    tokenizer = load_tokenizer(source_of(tiny_llama, tmp_path))
    digests = {tokenizer_digest(tokenizer)}
    tokenizer.chat_template = "{{ messages }}"
    digests.add(tokenizer_digest(tokenizer))
    tokenizer.pad_token = "<|endoftext|>"
    digests.add(tokenizer_digest(tokenizer))
    tokenizer.add_tokens(["zebra"])
    digests.add(tokenizer_digest(tokenizer))
    assert len(digests) == 4


@pytest.mark.fast
def test_pad_falls_back_to_eos_and_eos_is_needed(tiny_gpt2, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_gpt2, copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(source_of(copy, tmp_path)).pad_token_id == 0
    del settings["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="has no eos_token"):
        load_tokenizer(source_of(copy, tmp_path))
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_tokenizer(source_of(copy, tmp_path))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer files"):
        load_tokenizer(source_of(copy, tmp_path))
