"""The end of a run: its results, what they say, where everything is, and what to type next."""

from collections.abc import Iterator
from typing import Any

from llmtune.evaluation.reading import CAVEAT, read_perplexity
from llmtune.logs import print_table, say
from llmtune.stages.context import RunContext
from llmtune.tracking.links import run_link, ui_base
from llmtune.tracking.mlflow import MlflowTracker
from llmtune.tracking.model_registry import version_link
from llmtune.training.advice import compared_with_base


def show_results(context: RunContext) -> None:
    """Show what the finished stages found and suggest, where it is and the commands that go on from it."""
    rows = list(_rows(context))
    if rows:
        title = f"results: {context.folder.path.name}"
        if context.config.method.name == "none":
            print_table(title, ("", "model"), [(row[0], row[2]) for row in rows])
        else:
            print_table(title, ("", "base model", "tuned", "change"), rows)
    perplexity = context.manifest.stage("evaluate").get("perplexity")
    if perplexity is not None:
        reading = read_perplexity(perplexity)
        say(f"perplexity {perplexity:.2f}: {reading.grade}, {reading.meaning}. {CAVEAT}")
    for sentence in _advice(context):
        say(f"advice: {sentence}")
    say(f"run folder: {context.folder.path}")
    for name, result in context.manifest.stage("export").items():
        say(f"export {name}: {result['folder']}")
        if "hub" in result:
            say(f"on the Hub: {result['hub']['url']}")
    tracker = context.tracker
    if isinstance(tracker, MlflowTracker) and tracker.run_id and tracker.experiment_id:
        base = ui_base(tracker.uri, context.config.tracking.ui_port)
        for registered in _registered(context):
            say(f"in the registry: {version_link(base, registered['name'], registered['version'])}")
        say(f"MLflow: {run_link(base, tracker.experiment_id, tracker.run_id)} (after: python -m llmtune ui)")
    _say_next(context)


def _registered(context: RunContext) -> list[dict[str, Any]]:
    """What of the exports went into MLflow's model registry."""
    results = context.manifest.stage("export").values()
    return [result["registered"] for result in results if "registered" in result]


def _rows(context: RunContext) -> Iterator[tuple[str, str, str, str]]:
    evaluated, trained = context.manifest.stage("evaluate"), context.manifest.stage("train")
    for name, label, digits in (
        ("loss", "test loss (nats per token)", 4),
        ("perplexity", "test perplexity", 2),
        ("bits_per_byte", "bits per byte", 4),
    ):
        if name in evaluated:
            base, tuned = evaluated.get(f"base_{name}"), evaluated[name]
            change = "" if base is None else f"{(tuned - base) / base:+.1%}"
            yield (label, _number(base, digits), _number(tuned, digits), change)
    if general := evaluated.get("general"):
        base, tuned = general.get("base_loss"), general["loss"]
        change = "" if base is None else f"{(tuned - base) / base:+.1%}"
        yield ("general text loss", _number(base, 4), _number(tuned, 4), change)
    if evaluated:
        base, tuned = evaluated.get("base_tokens_per_second"), evaluated["tokens_per_second"]
        yield ("evaluation, tokens per second", _number(base, 0), _number(tuned, 0), "")
    if trained:
        share = trained["num_trainable"] / trained["num_parameters"]
        yield ("trainable parameters", "", f"{trained['num_trainable']:,}", f"{share:.2%} of all")
        speed = trained["tokens_per_second_per_device"]
        yield ("training, tokens per second", "", f"{speed:,.0f}" if speed else "-", "")
        yield ("training time (s)", "", f"{trained['seconds']:.0f}", f"{trained['steps']} steps")
        yield ("peak memory (GiB)", "", f"{trained['peak_memory_gib']:.2f}", "")


def _advice(context: RunContext) -> Iterator[str]:
    """What the curves showed when training ended, and whether the test set bears the training out."""
    evaluated, config = context.manifest.stage("evaluate"), context.config
    curves = context.manifest.stage("train").get("advice", [])
    yield from curves
    base, tuned = evaluated.get("base_loss"), evaluated.get("loss")
    by_us = config.method.name != "none" and (config.source_run is not None or context.manifest.stage("train"))
    if base is not None and tuned is not None and by_us:
        yield from compared_with_base(base, tuned, config.train, config.method, explained=bool(curves))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _say_next(context: RunContext) -> None:
    """Commands with this run's folder filled in."""
    config = context.config
    if not context.manifest.stage("train") and not config.is_trained_elsewhere:
        say(f"next:\n  python -m llmtune train run={context.folder.path}")
        return
    run = context.trained_run.path
    if config.source_run is None and config.is_trained_elsewhere:
        run = config.source_weights or config.model.id or config.model.path or config.model.name
    say(
        "next:\n"
        f'  python -m llmtune generate run={run} generate.prompt="..."\n'
        f"  python -m llmtune evaluate run={run} data.eval_path=other.jsonl\n"
        f"  python -m llmtune export run={run} export.formats=[hf] export.path=FOLDER"
    )
