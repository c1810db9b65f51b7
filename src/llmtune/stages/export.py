"""`export`: weights to folders that other programs load, each checked after reloading."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmtune import distributed
from llmtune.config.export import EXPORT_FORMATS
from llmtune.config.validate import to_plain
from llmtune.errors import RunError
from llmtune.export.format import CardFacts, ExportContext, ExportSubject
from llmtune.export.gate.check import Gate
from llmtune.export.push import check_access
from llmtune.export.registry import check_formats, default_formats, make_format
from llmtune.export.room import size_words
from llmtune.export.writing import ExportResult, check_target, write_export
from llmtune.logs import say
from llmtune.models.digest import describe_weights
from llmtune.models.tokenizer import tokenizer_digest
from llmtune.runs.manifest import Manifest, is_finished_export
from llmtune.stages.context import RESULT_STEP, RunContext
from llmtune.stages.shipping import check_registration, shipped

_FINISHED = "exports"
_SHOWN = ("logit_difference", "kl_mean", "top1_agreement", "loss_rise", "loss_rise_from_4bit")
_ADAPTER_FACTS = ("rank", "alpha", "dropout", "target_modules")
_CARD_METRICS = ("loss", "perplexity", "bits_per_byte")
_CARD_TRAINING = ("learning_rate", "num_epochs", "micro_batch_size", "gradient_accumulation_steps", "optimizer")
_CARD_TRAINING_BY_TOKENS = ("learning_rate", "num_epochs", "tokens_per_step", "optimizer")


def check(context: RunContext) -> None:
    """Refuse, before anything is trained, an export that can't be: a format, an upload, a registration.

    Raises:
        ConfigError: names each format that can't hold the model with its reason; or why the rest can't be.
        UserError: the Hub can't be reached, or refuses.
    """
    config = context.config
    if config.export.path is not None:
        adapter = config.method.name not in ("full", "none")
        for name in config.export.formats or default_formats(adapter):
            target = Path(config.export.path).absolute() / name
            if _finished_at(context, name, target) is None:
                check_target(target, overwrite=config.export.overwrite)
    check_access(config.export)
    check_registration(context)
    if config.export.formats is not None:
        subject = ExportSubject(source=context.source, method=config.method.name, tokenizer=context.tokenizer)
        check_formats(config.export.formats, subject)


def run(context: RunContext) -> None:
    """Write, reload and compare each format; record where it is and how far it differs; upload or register if asked."""
    if not distributed.is_first():
        return
    config = context.config
    export = export_context(context)
    formats = tuple(dict.fromkeys(config.export.formats or default_formats(export.has_adapter)))
    if config.export.formats is None:
        say(f"export.formats: {' and '.join(formats)}")
    if export.split != "validation":
        say("there are no validation examples: each export is compared with the trained model on training examples")
    _check_exports_inside(context)
    gate = Gate(export, context.folder.exports / ".asked")
    try:
        results = {name: _export_once(context, export, gate, name) for name in formats}
    finally:
        gate.close()
    context.manifest.finish_stage("export", shipped(context, export.facts, results))


def export_context(context: RunContext) -> ExportContext:
    """The trained model and what its export needs."""
    validated = len(context.data.validation) > 0
    return ExportContext(
        method=context.method,
        source=context.source,
        checkpoint=context.checkpoint,
        tokenizer=context.tokenizer,
        examples=context.data.validation if validated else context.data.train,
        split="validation" if validated else "training",
        settings=context.config.export,
        facts=_facts(context),
        precision=context.precision,
        device=context.device,
    )


def _check_exports_inside(context: RunContext) -> None:
    """Refuse a link in the run folder that leads out of it."""
    exports = context.folder.exports
    for name in ("", *EXPORT_FORMATS):
        if not (exports / name).resolve().is_relative_to(context.folder.path.resolve()):
            raise RunError(
                f"{exports / name} is a link that leads out of the run folder; remove it, or name the place with "
                "export.path="
            )


def _export_once(context: RunContext, export: ExportContext, gate: Gate, name: str) -> dict[str, Any]:
    """Write one format and record it as finished; one that an earlier try finished stays."""
    own_folder = export.settings.path is None
    target = (context.folder.exports if own_folder else Path(str(export.settings.path))) / name
    made_from = _made_from(export)
    earlier = _finished_earlier(context, name, made_from)
    if earlier is not None and (own_folder or Path(earlier["folder"]) == target.resolve()):
        say(f"exported {name}: finished earlier, {earlier['folder']}")
        return earlier
    chosen = make_format(name)
    if chosen.note:
        say(f"export {name}: {chosen.note}")
    finished = write_export(chosen, export, target, gate, is_ours=own_folder)
    figures = {figure.name: figure.value for figure in finished.report.figures}
    say(f"exported {name}: {finished.folder} ({_summary(finished)})")
    result = {
        "folder": str(finished.folder),
        "num_bytes": finished.num_bytes,
        "seconds": finished.seconds,
        "parity": finished.report.as_json(),
    }
    context.manifest.record(_FINISHED, {name: {"made_from": made_from, "result": result}})
    _track(context, name, finished.folder, figures)
    return result


def _made_from(export: ExportContext) -> dict[str, Any]:
    """Everything that decides what an export's files hold, and whether they pass."""
    settings = export.settings
    return {
        "checkpoint": export.checkpoint.name,
        "weights": describe_weights(export.checkpoint)["sha256"],
        "base": export.source.weights_digest,
        "tokenizer": tokenizer_digest(export.tokenizer),
        "end_tokens": export.subject.end_token_ids,
        "max_shard_size": settings.max_shard_size,
        "merge_base": settings.merge_base,
        "max_loss_rise": settings.max_loss_rise,
        "version": version("llmtune"),
    }


def _finished_earlier(context: RunContext, name: str, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of this run, or of the one whose weights it takes, that made the same export and still has it."""
    for manifest in (context.manifest, Manifest(context.trained_run.manifest_file)):
        earlier = manifest.section(_FINISHED).get(name)
        if earlier and earlier["made_from"] == made_from and is_finished_export(earlier["result"]):
            return earlier["result"]
    return None


def _finished_at(context: RunContext, name: str, target: Path) -> dict[str, Any] | None:
    """What an earlier try of this run finished at a place that was named."""
    earlier = context.manifest.section(_FINISHED).get(name)
    return earlier if earlier and Path(earlier["result"]["folder"]) == target.resolve() else None


def _summary(finished: ExportResult) -> str:
    """Size, time and the figures that say most, on one line."""
    figures = {figure.name: figure.value for figure in finished.report.figures}
    shown = ", ".join(f"{key} {figures[key]:.2g}" for key in _SHOWN if key in figures)
    return f"{size_words(finished.num_bytes)}, {finished.seconds:.0f} s; {shown}"


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
    by_tokens = context.config.train.batch_unit == "tokens"
    training = {key: config["train"][key] for key in (_CARD_TRAINING_BY_TOKENS if by_tokens else _CARD_TRAINING)}
    training |= {"seed": context.config.seed, "precision": context.precision.name}
    if context.config.source_run is None and context.config.is_trained_elsewhere:
        method = {key: config["method"][key] for key in _ADAPTER_FACTS if key in config["method"]}
        return CardFacts(title=context.config.model.name, method=method, is_trained_here=False)
    return CardFacts(
        title=f"{context.config.model.name}-{context.config.method.name}",
        method={**_told(config["method"]), **training},
        data=_trained_on(context),
        metrics={name: (evaluated.get(f"base_{name}"), evaluated.get(name)) for name in _CARD_METRICS},
    )


def _told(method: Mapping[str, Any]) -> dict[str, Any]:
    """The method's settings for the card, without those that aren't set."""
    named = {"method" if key == "name" else key: value for key, value in method.items()}
    return {key: value for key, value in named.items() if value is not None}


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
