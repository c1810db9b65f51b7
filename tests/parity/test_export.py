"""An export equals the trained model, or it isn't there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.config.data import FilesConfig
from llmtune.config.export import ExportConfig
from llmtune.config.method import FullConfig, LoraConfig, QloraConfig
from llmtune.config.model import ModelConfig
from llmtune.data.preparing.prepared import prepare_data
from llmtune.errors import ExportCheckFailed, UserError
from llmtune.export.adapter import AdapterFormat
from llmtune.export.format import CardFacts, ExportContext
from llmtune.export.hf import HuggingFaceFormat
from llmtune.export.registry import export_format
from llmtune.methods.registry import make_method
from llmtune.models.load import LoadSettings
from llmtune.models.precision import Precision
from llmtune.models.source import locate_model
from llmtune.models.tokenizer import load_tokenizer, tokenizer_digest

CPU = torch.device("cpu")
FP32 = Precision("fp32", "cpu", "test")
HOW = LoadSettings(compute_dtype=torch.float32, device=CPU)
METHODS = {
    "full": FullConfig(),
    "lora": LoraConfig(rank=4, dropout=0.0),
    "qlora": QloraConfig(rank=4, dropout=0.0),
}


def train_and_describe(folder: Path, method_name: str, examples_file: Path, work: Path) -> ExportContext:
    """A few steps of plain torch, so that the trained weights are far from the base's."""
    source = locate_model(ModelConfig(name=folder.name, source="folder", path=str(folder)), work)
    tokenizer = load_tokenizer(source)
    config = FilesConfig(path=str(examples_file), num_examples=16)
    data = prepare_data(config, tokenizer, tokenizer_digest(tokenizer), work)
    method = make_method(METHODS[method_name])
    model = method.make_trainable(method.load(source, HOW), seed=1).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for index in [0, 1, 2, 3] * 3:
        ids = torch.tensor([data.train.input_ids(index).tolist()])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    method.save(model, work / "checkpoint")
    return ExportContext(
        method=method,
        source=source,
        checkpoint=work / "checkpoint",
        tokenizer=tokenizer,
        examples=data.validation,
        split="validation",
        settings=ExportConfig(max_loss_rise=1.0),
        facts=CardFacts(title="tuned", data={"rows": 16}, metrics={"perplexity": (9.0, 5.0)}),
        precision=FP32,
        device=CPU,
    )


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
    result = export_format("hf", context, tmp_path / "hf")
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
@pytest.mark.parametrize("model_name", ["tiny_llama", "tiny_gpt2"])
def test_the_adapter_in_plain_peft_equals_the_trained_model(trained, tmp_path, recwarn, model_name, method_name):
    context = trained(model_name, method_name)
    export_format("adapter", context, tmp_path / "adapter")
    recwarn.clear()
    base = context.method.load(context.source, HOW)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert [str(warning.message) for warning in recwarn] == []
    expected = context.method.load_trained(context.source, context.checkpoint, HOW)
    assert_close(logits_of(reloaded, context), logits_of(expected, context), 1e-5)


def test_a_qlora_export_records_the_step_from_four_bits(trained, tmp_path):
    report = export_format("hf", trained("tiny_llama", "qlora"), tmp_path / "hf").report.as_json()["figures"]
    trained_loss, merged_loss = report["loss_trained_4bit"]["value"], report["loss_merged"]["value"]
    assert trained_loss != merged_loss
    assert report["loss_rise_from_4bit"]["value"] == pytest.approx(merged_loss - trained_loss)
    assert report["logit_difference"]["value"] <= 1e-4
    assert report["kl_largest"]["value"] <= 1e-6


def test_a_qlora_export_that_is_worse_than_allowed_is_discarded(trained, tmp_path, monkeypatch):
    context = trained("tiny_llama", "qlora")
    losses = iter([3.05, 3.0])  # merged, then the trained 4-bit model
    monkeypatch.setattr("llmtune.export.hf.examples_loss", lambda *_: next(losses))
    context = replace(context, settings=ExportConfig(max_loss_rise=0.02))
    with pytest.raises(ExportCheckFailed, match=r"loss_rise_from_4bit .* is 0\.05, allowed is 0\.02; .*method=lora"):
        export_format("hf", context, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


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
    write = format_class.write

    def write_and_nudge(self, context, folder):
        write(self, context, folder)
        nudge(folder / file, part)

    monkeypatch.setattr(format_class, "write", write_and_nudge)
    with pytest.raises(ExportCheckFailed, match=r"logit_difference .* allowed is (1e-05|0.0001); export again"):
        export_format(format_class.name, trained("tiny_llama", "lora"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_lost_weight_is_found(trained, tmp_path):
    context = trained("tiny_llama", "lora")
    chosen = HuggingFaceFormat()
    chosen.write(context, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportCheckFailed, match="wrong_weights"):
        chosen.check(context, tmp_path).require("hf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_16_bits_is_shipped_in_16_bits(examples_file, tiny_llama, tmp_path, dtype):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
    base = tmp_path / "base"
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(base)
    context = train_and_describe(base, "lora", examples_file, tmp_path)
    report = export_format("hf", context, tmp_path / "hf").report.as_json()["figures"]
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").dtype == dtype
    assert report["kl_mean"]["value"] > 0
    assert report["loss_rise"]["bound"] is not None


def test_shards_are_no_larger_than_asked_and_load(trained, tmp_path):
    context = trained("tiny_llama", "lora")
    context = replace(context, settings=ExportConfig(max_shard_size="100KB"))
    export_format("hf", context, tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf")


def test_what_is_there_stays_unless_it_may_be_replaced(trained, tmp_path):
    context = trained("tiny_llama", "lora")
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="isn't empty; set export"):
        export_format("adapter", context, target)
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    context = replace(context, settings=ExportConfig(overwrite=True))
    export_format("adapter", context, target)
    assert not (target / "mine.txt").exists() and (target / "adapter_model.safetensors").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_check_keeps_the_export_that_was_there(trained, tmp_path, monkeypatch):
    context = trained("tiny_llama", "lora")
    export_format("adapter", context, tmp_path / "adapter")
    before = {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    write = AdapterFormat.write

    def write_and_nudge(self, context, folder):
        write(self, context, folder)
        nudge(folder / "adapter_model.safetensors", "layers.1.mlp.up_proj.lora_B")

    monkeypatch.setattr(AdapterFormat, "write", write_and_nudge)
    context = replace(context, settings=ExportConfig(overwrite=True))
    with pytest.raises(ExportCheckFailed):
        export_format("adapter", context, tmp_path / "adapter")
    assert {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before


def test_full_has_no_adapter_to_ship(trained, tmp_path):
    with pytest.raises(UserError, match=r"method=full trains the whole model; set export.formats=\[hf\]"):
        export_format("adapter", trained("tiny_llama", "full"), tmp_path / "adapter")


def test_the_card_and_the_record_say_what_it_is_and_name_no_folder(trained, tmp_path):
    context = trained("tiny_llama", "qlora")
    for name in ("adapter", "hf"):
        export_format(name, context, tmp_path / name)
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
        report = export_format(name, context, tmp_path / name).report
        assert all(figure.passed for figure in report.figures)
