"""An adapter of ours is plain PEFT's: same logits, no warning, merges onto the unquantised base."""

import json
import logging
import warnings

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmtune.config.method import LoraConfig, QloraConfig
from llmtune.methods.registry import make_method
from llmtune.models.load import LoadSettings
from llmtune.models.quantization import keep_as_quantised, nf4_config

HOW = LoadSettings(torch.float32, torch.device("cpu"))
IDS = torch.arange(3, 40)[None]


def trained_adapter(config, source, folder):
    """An adapter whose weights are all away from zero, its model, and its logits."""
    method = make_method(config)
    model = method.make_trainable(method.load(source, HOW), 1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        method.save(model, folder)
        return model(IDS).logits


@pytest.mark.fast
def test_plain_peft_loads_it_silently(source, tmp_path, caplog):
    expected = trained_adapter(LoraConfig(), source, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's own use
        plain = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert caplog.records == []
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, expected)
        merged = plain.merge_and_unload(safe_merge=True)
        largest = float(expected.abs().max())
        assert float((merged(IDS).logits - expected).abs().max()) <= 1e-5 * largest


@pytest.mark.fast
def test_qlora_adapter_loads_on_both_bases(source, tmp_path):
    expected = trained_adapter(QloraConfig(), source, tmp_path / "adapter")
    quantised = AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=torch.float32, quantization_config=nf4_config(QloraConfig(), torch.float32)
    )
    keep_as_quantised(quantised, torch.float32)
    unquantised = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's own use
        on_four_bits = peft.PeftModel.from_pretrained(quantised, str(tmp_path / "adapter")).eval()
        on_plain = peft.PeftModel.from_pretrained(unquantised, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert torch.equal(on_four_bits(IDS).logits, expected)
        unmerged = on_plain(IDS).logits
        merged = on_plain.merge_and_unload(safe_merge=True)(IDS).logits
    largest = float(unmerged.abs().max())
    assert float((merged - unmerged).abs().max()) <= 1e-5 * largest
    # control: the base's rounding to 4 bits is no small thing
    assert float((unmerged - expected).abs().max()) > 1e-2 * largest


@pytest.mark.fast
def test_config_names_the_base(source, tmp_path):
    trained_adapter(LoraConfig(rank=4, alpha=6.0, dropout=0.05), source, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == source.location
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (4, 6.0, 0.05)
    assert written["inference_mode"] is True and written["task_type"] == "CAUSAL_LM" and written["bias"] == "none"
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
