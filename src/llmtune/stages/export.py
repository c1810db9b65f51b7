"""`export`: weights to folders that other programs load, each checked after reloading."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune import distributed
from llmtune.config.validate import to_plain
from llmtune.export.format import CardFacts, ExportContext
from llmtune.export.registry import default_formats, export_format
from llmtune.logs import say
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RESULT_STEP, RunContext

_CARD_METRICS = ("loss", "perplexity", "bits_per_byte")
_CARD_TRAINING = ("learning_rate", "num_epochs", "micro_batch_size", "gradient_accumulation_steps", "optimizer")


def run(context: RunContext) -> None:
    """Write, reload and compare each format; record where it is and how far it differs."""
    if not distributed.is_first():
        return
    config = context.config
    export = ExportContext(
        method=context.method,
        source=context.source,
        checkpoint=context.checkpoint,
        tokenizer=context.tokenizer,
        held_out=context.data.validation if len(context.data.validation) else context.data.test,
        settings=config.export,
        facts=_facts(context),
        precision=context.precision,
        device=context.device,
    )
    formats = config.export.formats or default_formats(export.has_adapter)
    if config.export.formats is None:
        say(f"export.formats: {' and '.join(formats)}")
    target = Path(config.export.path) if config.export.path else context.folder.exports
    results: dict[str, Any] = {}
    for name in formats:
        result = export_format(name, export, target / name)
        figures = {figure.name: figure.value for figure in result.report.figures}
        shown = ", ".join(f"{key} {value:.2g}" for key, value in figures.items())
        say(f"exported {name}: {result.folder} ({result.num_bytes / 2**20:,.0f} MiB; {shown})")
        results[name] = {"folder": str(result.folder), "num_bytes": result.num_bytes, "parity": result.report.as_json()}
        context.tracker.log_metrics({f"export/{name}_{key}": value for key, value in figures.items()}, RESULT_STEP)
        context.tracker.log_artifact(result.folder / "parity.json", f"exports/{name}")
        context.tracker.log_artifact(result.folder / "README.md", f"exports/{name}")
        if name == "hf" and config.tracking.log_model == "merged":
            context.tracker.log_artifact(result.folder, "merged")
    context.manifest.finish_stage("export", results)


def _facts(context: RunContext) -> CardFacts:
    """What the model card says of the run."""
    config = to_plain(context.config)
    evaluated, origin = _evaluated(context), context.data.report["origin"]
    training = {key: config["train"][key] for key in _CARD_TRAINING}
    return CardFacts(
        title=f"{context.config.model.name}-{context.config.method.name}",
        method={**config["method"], **training, "seed": context.config.seed, "precision": context.precision.name},
        data={
            "digest": context.data.digest,
            "training examples": len(context.data.train),
            "licence": origin.get("licence"),
            "origin": Path(origin["path"]).name if origin.get("path") else origin.get("id"),
        },
        metrics={name: (evaluated.get(f"base_{name}"), evaluated.get(name)) for name in _CARD_METRICS},
    )


def _evaluated(context: RunContext) -> Mapping[str, Any]:
    """The evaluation's figures, of this run or of the one that it was made from."""
    own = context.manifest.stage("evaluate")
    return own or Manifest(context.trained_run.manifest_file).stage("evaluate")
