"""`export`: weights to folders that other programs load, each checked after reloading."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmtune import distributed
from llmtune.config.validate import to_plain
from llmtune.errors import RunError
from llmtune.export.format import CardFacts, ExportContext
from llmtune.export.push import push, pushed_format
from llmtune.export.registry import default_formats, export_format
from llmtune.logs import say
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RESULT_STEP, RunContext

_FINISHED = "exports"
_CARD_METRICS = ("loss", "perplexity", "bits_per_byte")
_CARD_TRAINING = ("learning_rate", "num_epochs", "micro_batch_size", "gradient_accumulation_steps", "optimizer")


def run(context: RunContext) -> None:
    """Write, reload and compare each format; record where it is and how far it differs; upload one if asked."""
    if not distributed.is_first():
        return
    config = context.config
    validated = len(context.data.validation) > 0
    export = ExportContext(
        method=context.method,
        source=context.source,
        checkpoint=context.checkpoint,
        tokenizer=context.tokenizer,
        examples=context.data.validation if validated else context.data.train,
        split="validation" if validated else "training",
        settings=config.export,
        facts=_facts(context),
        precision=context.precision,
        device=context.device,
    )
    formats = config.export.formats or default_formats(export.has_adapter)
    if config.export.formats is None:
        say(f"export.formats: {' and '.join(formats)}")
    if not validated:
        say("there are no validation examples: each export is compared with the trained model on training examples")
    results = {name: _export_once(context, export, name) for name in formats}
    if config.export.push_to_hub is not None:
        name = pushed_format(formats)
        results[name] = {**results[name], "hub": _push(context, name, Path(results[name]["folder"]))}
    context.manifest.finish_stage("export", results)


def _export_once(context: RunContext, export: ExportContext, name: str) -> dict[str, Any]:
    """Write one format and record it as finished; one that an earlier try finished stays."""
    own_folder = export.settings.path is None
    target = (context.folder.exports if own_folder else Path(str(export.settings.path))) / name
    made_from = {"checkpoint": export.checkpoint.name, "max_shard_size": export.settings.max_shard_size}
    if own_folder and not target.resolve().is_relative_to(context.folder.path.resolve()):
        raise RunError(
            f"{target} is a link that leads out of the run folder; remove it, or name the place with export.path="
        )
    earlier = context.manifest.section(_FINISHED).get(name)
    if own_folder and earlier and earlier["made_from"] == made_from and (target / "parity.json").exists():
        say(f"exported {name}: finished earlier, {target}")
        return earlier["result"]
    if own_folder:  # what stands there without a record is what a killed try left
        export = replace(export, settings=replace(export.settings, overwrite=True))
    finished = export_format(name, export, target)
    figures = {figure.name: figure.value for figure in finished.report.figures}
    shown = ", ".join(f"{key} {value:.2g}" for key, value in figures.items())
    say(f"exported {name}: {finished.folder} ({finished.num_bytes / 2**20:,.0f} MiB; {shown})")
    result = {
        "folder": str(finished.folder),
        "num_bytes": finished.num_bytes,
        "parity": finished.report.as_json(),
    }
    context.manifest.record(_FINISHED, {name: {"made_from": made_from, "result": result}})
    _track(context, name, finished.folder, figures)
    return result


def _push(context: RunContext, name: str, folder: Path) -> dict[str, Any]:
    """Upload one format's folder, and say where it is."""
    say(f"export.push_to_hub: the {name} format is uploaded to {context.config.export.push_to_hub}")
    again = f"python -m llmtune export run={context.folder.path}"
    pushed = push(folder, context.config.export, context.source.name, again)
    seen = "private" if pushed.private else "everybody sees it"
    say(f"uploaded to {pushed.repo}, commit {pushed.commit[:12]} ({seen}): {pushed.url}")
    return pushed.as_json()


def _track(context: RunContext, name: str, folder: Path, figures: Mapping[str, float]) -> None:
    """Log an export's figures, card and record; the merged model itself where that was asked for."""
    tracker = context.tracker
    tracker.log_metrics({f"export/{name}_{key}": value for key, value in figures.items()}, RESULT_STEP)
    tracker.log_artifact(folder / "parity.json", f"exports/{name}")
    tracker.log_artifact(folder / "README.md", f"exports/{name}")
    if name == "hf" and context.config.tracking.log_model == "merged":
        tracker.log_artifact(folder, "merged")


def _facts(context: RunContext) -> CardFacts:
    """What the model card says of the run."""
    config = to_plain(context.config)
    evaluated = _evaluated(context)
    training = {key: config["train"][key] for key in _CARD_TRAINING}
    if context.config.source_run is None and context.config.is_trained_elsewhere:
        method = config["method"] if context.config.method.name != "none" else {}
        return CardFacts(title=context.config.model.name, method=method)
    return CardFacts(
        title=f"{context.config.model.name}-{context.config.method.name}",
        method={**config["method"], **training, "seed": context.config.seed, "precision": context.precision.name},
        data=_trained_on(context),
        metrics={name: (evaluated.get(f"base_{name}"), evaluated.get(name)) for name in _CARD_METRICS},
    )


def _trained_on(context: RunContext) -> dict[str, Any]:
    """The data that the weights were trained on, and those that they were measured on."""
    data = context.data
    here = {**data.report, "digest": data.digest}
    recorded = Manifest(context.trained_run.manifest_file).section("data")
    trained = recorded or here
    measured = here if context.manifest.stage("evaluate") else trained
    sources = [source for source in trained.get("sources", ()) if source["role"] == "train"]
    sources += [source for source in measured.get("sources", ()) if source["role"] == "eval"]
    num_examples = trained.get("splits", {}).get("train", {}).get("num_examples", "not recorded")
    return {"digest": trained["digest"], "training examples": num_examples, **_origins(sources)}


def _origins(sources: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where the examples come from, and under which licence, a line a source."""
    lines: dict[str, str] = {}
    for number, source in enumerate(sources, start=1):
        name = Path(source["path"]).name if source.get("path") else str(source.get("id") or source["name"])
        revision = f" at {source['revision'][:12]}" if source.get("revision") else ""
        use = "measured on" if source["role"] == "eval" else f"{source['rows']:,} rows"
        licence = source.get("licence") or "licence not stated"
        lines["source" if len(sources) == 1 else f"source {number}"] = f"{name}{revision}, {use}, {licence}"
    return lines


def _evaluated(context: RunContext) -> Mapping[str, Any]:
    """The evaluation's figures, of this run or of the one that it was made from."""
    own = context.manifest.stage("evaluate")
    return own or Manifest(context.trained_run.manifest_file).stage("evaluate")
