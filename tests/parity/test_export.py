"""An export equals the trained model, or it isn't there."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.config.export import ExportConfig
from llmtune.config.model import ModelConfig
from llmtune.errors import ConfigError, ExportCheckFailed, UserError
from llmtune.export import merge as merging
from llmtune.export.adapter import AdapterFormat
from llmtune.export.format import ExportContext, ExportFormat
from llmtune.export.gate.check import Gate
from llmtune.export.hf import HuggingFaceFormat
from llmtune.export.registry import check_formats
from llmtune.models.source import locate_model
from tuned_models import HOW, export, train_and_describe


@pytest.fixture(scope="module")
def trained(assets, examples_file, tmp_path_factory):
    """Trains each (model, method) once."""
    made: dict[tuple[str, str], ExportContext] = {}

    def get(model_name: str, method_name: str) -> ExportContext:
        key = (model_name, method_name)
        if key not in made:
            work = tmp_path_factory.mktemp("-".join(key))
            made[key] = train_and_describe(assets / model_name, method_name, examples_file, work)
        return made[key]

    return get


def logits_of(model: torch.nn.Module, context: ExportContext) -> torch.Tensor:
    ids = torch.tensor([context.examples.input_ids(0).tolist()])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def assert_close(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    assert (found - expected).abs().max() <= share * expected.abs().max()


@pytest.mark.parametrize("method_name", ["full", "lora", "qlora"])
@pytest.mark.parametrize("model_name", ["tiny_llama", "tiny_gpt2"])
def test_the_merged_folder_in_plain_transformers_equals_the_trained_model(trained, tmp_path, model_name, method_name):
    context = trained(model_name, method_name)
    result = export("hf", context, tmp_path / "hf")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    if method_name == "full":
        expected = context.method.load_trained(context.source, context.checkpoint, HOW)
    else:
        base = AutoModelForCausalLM.from_pretrained(context.source.folder, dtype=torch.float32)
        expected = PeftModel.from_pretrained(base, str(context.checkpoint))
    assert_close(logits_of(reloaded, context), logits_of(expected, context), 1e-4)
    untouched = AutoModelForCausalLM.from_pretrained(context.source.folder, dtype=torch.float32)
    difference = (logits_of(reloaded, context) - logits_of(untouched, context)).abs().max()
    assert difference > 0.05, "training moved nothing, so equality would say nothing"
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight
    assert result.folder == tmp_path / "hf" and result.num_bytes > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").get_vocab() == context.tokenizer.get_vocab()
    assert reloaded.generation_config.eos_token_id == context.tokenizer.eos_token_id


@pytest.mark.parametrize("method_name", ["lora", "qlora"])
@pytest.mark.parametrize("model_name", ["tiny_llama", pytest.param("tiny_gpt2", marks=pytest.mark.slow)])
def test_the_adapter_in_plain_peft_equals_the_trained_model(trained, tmp_path, recwarn, model_name, method_name):
    context = trained(model_name, method_name)
    export("adapter", context, tmp_path / "adapter")
    recwarn.clear()
    base = context.method.load(context.source, HOW)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert [str(warning.message) for warning in recwarn] == []
    expected = context.method.load_trained(context.source, context.checkpoint, HOW)
    assert_close(logits_of(reloaded, context), logits_of(expected, context), 1e-5)


def test_a_qlora_export_records_the_step_from_four_bits(trained, tmp_path):
    report = export("hf", trained("tiny_llama", "qlora"), tmp_path / "hf").report.as_json()["figures"]
    trained_loss, merged_loss = report["loss_trained_4bit"]["value"], report["loss_exported"]["value"]
    assert trained_loss != merged_loss
    assert report["loss_on_original_base"]["value"] == pytest.approx(merged_loss, abs=1e-6)
    assert report["loss_on_dequantized_base"]["value"] == pytest.approx(trained_loss, abs=1e-6)
    assert report["loss_rise_from_4bit"]["value"] == pytest.approx(merged_loss - trained_loss)
    assert report["logit_difference"]["value"] <= 1e-4
    assert report["kl_largest"]["value"] <= 1e-6


def test_a_qlora_export_that_is_worse_than_allowed_is_discarded(trained, tmp_path, monkeypatch):
    context = trained("tiny_llama", "qlora")
    four_bits = 5.0  # the merged model's is about 5.8
    monkeypatch.setattr(Gate, "_four_bit_losses", (four_bits, {"original": 5.8, "dequantized": 5.1}))
    context = replace(context, settings=ExportConfig(max_loss_rise=0.02))
    cure = r"export\.merge_base=dequantized changes the loss by \+0\.1; .*method=lora"
    with pytest.raises(ExportCheckFailed, match=rf"loss_rise_from_4bit .* is 0\.\d+, allowed is 0\.02; .*{cure}"):
        export("hf", context, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def tamper(monkeypatch, format_class: type[ExportFormat], change: Callable[[Path], object]) -> None:
    """Let a format's files change after they were written."""
    write = format_class.write

    def write_and_change(self, context, folder):
        write(self, context, folder)
        change(folder)

    monkeypatch.setattr(format_class, "write", write_and_change)


def nudge(path: Path, part: str) -> None:
    """Change one number of a safetensors file."""
    tensors = load_file(path)
    name = next(name for name in tensors if part in name)
    tensors[name].view(-1)[0] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("format_class", "file", "part"),
    [
        (HuggingFaceFormat, "model.safetensors", "layers.0.self_attn.v_proj"),
        (AdapterFormat, "adapter_model.safetensors", "layers.0.self_attn.v_proj.lora_B"),
    ],
)
def test_one_changed_weight_is_found_and_nothing_is_left(trained, tmp_path, monkeypatch, format_class, file, part):
    tamper(monkeypatch, format_class, lambda folder: nudge(folder / file, part))
    with pytest.raises(ExportCheckFailed, match=r"logit_difference .* allowed is (1e-05|0.0001); export again") as told:
        export(format_class.name, trained("tiny_llama", "lora"), tmp_path / "out")
    assert ("tensors_changed" in str(told.value)) == (format_class is HuggingFaceFormat)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_weight_is_found(trained, tmp_path, monkeypatch):
    def lose(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.norm.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    tamper(monkeypatch, HuggingFaceFormat, lose)
    with pytest.raises(ExportCheckFailed, match=r"weights_beyond .* is 64, allowed is 0; .*one was lost"):
        export("hf", trained("tiny_llama", "lora"), tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("format_class", [HuggingFaceFormat, AdapterFormat])
def test_one_changed_token_of_the_template_is_found(trained, tmp_path, monkeypatch, format_class):
    tamper(
        monkeypatch, format_class, lambda folder: change(folder / "chat_template.jinja", "<|im_end|>", "<|im_start|>")
    )
    with pytest.raises(ExportCheckFailed, match=r"conversations_rendered_otherwise \(of 3 .* is 3, allowed is 0"):
        export(format_class.name, trained("tiny_llama", "lora"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format_class", "file", "key"),
    [(HuggingFaceFormat, "generation_config.json", "eos_token_id"), (AdapterFormat, "base.json", "end_token_ids")],
)
def test_one_changed_end_token_is_found(trained, tmp_path, monkeypatch, format_class, file, key):
    def other_end(folder):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, key: [7]}))

    tamper(monkeypatch, format_class, other_end)
    with pytest.raises(ExportCheckFailed, match=r"end_tokens_wrong .* is 2, allowed is 0"):
        export(format_class.name, trained("tiny_llama", "lora"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_does_not_run_is_found_with_its_own_words(trained, tmp_path, monkeypatch):
    tamper(monkeypatch, HuggingFaceFormat, lambda folder: (folder / "config.json").write_text("{}"))
    monkeypatch.setattr(HuggingFaceFormat, "more_figures", lambda *_: [])
    with pytest.raises(ExportCheckFailed, match=r"was written and doesn't run: ValueError: .*model_type"):
        export("hf", trained("tiny_llama", "lora"), tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_name", ["tiny_llama", pytest.param("tiny_gpt2", marks=pytest.mark.slow)])
def test_a_qlora_adapter_merges_into_the_dequantized_base_too(trained, tmp_path, model_name):
    context = trained(model_name, "qlora")
    settings = ExportConfig(merge_base="dequantized", max_loss_rise=1e-5)  # it is the trained model but for rounding
    result = export("hf", replace(context, settings=settings), tmp_path / "hf")
    assert "unmerged model on the dequantized base" in result.report.compared
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    expected = context.method.load_trained(context.source, context.checkpoint, HOW)
    assert_close(logits_of(reloaded, context), logits_of(expected, context), 1e-4)
    original = AutoModelForCausalLM.from_pretrained(context.source.folder, dtype=torch.float32)
    assert (logits_of(reloaded, context) - logits_of(original, context)).abs().max() > 0.05


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}])
def test_adapters_of_other_kinds_merge(trained, tiny_llama, tmp_path, options):
    """DoRA, rank-stabilised scales, and whole modules trained beside the adapter, as plain PEFT writes them."""
    context = trained("tiny_llama", "lora")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    if "modules_to_save" in options:  # a head that trains by itself can't be tied
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
        base.config.tie_word_embeddings = False
        base.save_pretrained(tmp_path / "base")
        context.tokenizer.save_pretrained(tmp_path / "base")
        source = locate_model(ModelConfig(name="base", source="folder", path=str(tmp_path / "base")), tmp_path)
        context = replace(context, source=source)
    torch.manual_seed(3)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "checkpoint")
    context = replace(context, checkpoint=tmp_path / "checkpoint")
    export("hf", context, tmp_path / "hf")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert_close(logits_of(reloaded, context), logits_of(model, context), 1e-4)


def test_merging_takes_no_second_copy_of_the_model(tiny_llama, examples_file, tmp_path):
    """In 16 bits, weights are widened one layer after the other."""
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(base)
    context = train_and_describe(base, "lora", examples_file, tmp_path)
    wide: list[int] = []
    merge = LoraLinear.merge

    def merge_and_count(self, *arguments, **options):
        wide.append(sum(weight.dtype == torch.float32 for weight in frozen()))
        merge(self, *arguments, **options)

    model = None

    def frozen():
        return [module.base_layer.weight for module in model.modules() if isinstance(module, LoraLayer)]

    beside_base = merging._beside_base

    def remember(*arguments):
        nonlocal model
        model = beside_base(*arguments)
        return model

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LoraLinear, "merge", merge_and_count)
        patched.setattr(merging, "_beside_base", remember)
        merged = merging.load_merged(context, dtype=None)
    assert wide[:14] == [1] * 14 and max(wide) == 1
    assert {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_16_bits_is_shipped_in_16_bits(examples_file, tiny_llama, tmp_path, dtype):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
    base = tmp_path / "base"
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(base)
    context = train_and_describe(base, "lora", examples_file, tmp_path)
    report = export("hf", context, tmp_path / "hf").report.as_json()["figures"]
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").dtype == dtype
    assert report["kl_mean"]["value"] > 0
    assert report["loss_rise"]["bound"] is not None


def test_shards_are_no_larger_than_asked_and_load(trained, tmp_path):
    context = trained("tiny_llama", "lora")
    context = replace(context, settings=ExportConfig(max_shard_size="100KB"))
    export("hf", context, tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf")


def test_what_is_there_stays_unless_it_may_be_replaced(trained, tmp_path):
    context = trained("tiny_llama", "lora")
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="isn't empty; set export"):
        export("adapter", context, target)
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    (target / "parity.json").write_text("{}")
    context = replace(context, settings=ExportConfig(overwrite=True))
    export("adapter", context, target)
    assert not (target / "mine.txt").exists() and (target / "adapter_model.safetensors").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_check_keeps_the_export_that_was_there(trained, tmp_path, monkeypatch):
    context = trained("tiny_llama", "lora")
    export("adapter", context, tmp_path / "adapter")
    before = {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    name, part = "adapter_model.safetensors", "layers.1.mlp.up_proj.lora_B"
    tamper(monkeypatch, AdapterFormat, lambda folder: nudge(folder / name, part))
    context = replace(context, settings=ExportConfig(overwrite=True))
    with pytest.raises(ExportCheckFailed):
        export("adapter", context, tmp_path / "adapter")
    assert {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before


def test_full_has_no_adapter_to_ship(trained):
    with pytest.raises(
        ConfigError, match=r"adapter needs an adapter, and method=full has none; take export.formats=\[hf\]"
    ):
        check_formats(["adapter"], trained("tiny_llama", "full").subject)


def test_the_card_and_the_record_say_what_it_is_and_name_no_folder(trained, tmp_path):
    context = trained("tiny_llama", "qlora")
    for name in ("adapter", "hf"):
        export(name, context, tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        for words in ("tiny_llama", context.source.weights_digest, "| perplexity | 9 | 5 |", "| rows | 16 |"):
            assert words in card
        for folder in (tmp_path, context.source.folder, context.checkpoint):
            assert str(folder) not in card
        compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
        record = json.loads((tmp_path / name / "parity.json").read_text())
        assert record["figures"]["logit_difference"]["passed"] is True
    assert "BitsAndBytesConfig(" in (tmp_path / "adapter" / "README.md").read_text()


def test_without_room_on_the_gpu_an_export_is_merged_and_checked_on_the_cpu(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**40))
    context = replace(trained("tiny_llama", "lora"), device=torch.device("cuda"))
    for name in ("adapter", "hf"):
        report = export(name, context, tmp_path / name).report
        assert all(figure.passed for figure in report.figures)
