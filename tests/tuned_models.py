"""Tiny models that a few steps moved far from their base, and what their export needs."""

from pathlib import Path

import torch

from llmtune.config.data import FilesConfig
from llmtune.config.export import ExportConfig
from llmtune.config.method import FullConfig, LoraConfig, QloraConfig
from llmtune.config.model import ModelConfig
from llmtune.data.preparing.prepared import prepare_data
from llmtune.export.format import CardFacts, ExportContext
from llmtune.export.gate.check import Gate
from llmtune.export.registry import make_format
from llmtune.export.writing import ExportResult, write_export
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


def export(name: str, context: ExportContext, target: Path) -> ExportResult:
    """One format, written and put to the gate."""
    gate = Gate(context, target.with_name(".asked"))
    try:
        return write_export(make_format(name), context, target, gate)
    finally:
        gate.close()
