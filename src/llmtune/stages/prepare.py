"""`prepare`: rows to token files, split into training, validation and test set."""

from typing import Any

from rich.text import Text

from llmtune import distributed
from llmtune.data.prepared import PreparedData, preview
from llmtune.data.splits import IN_TEST_FILE, check_not_empty
from llmtune.logs import print_table, say, show, warn
from llmtune.models.digest import describe_weights
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RunContext

_SHOWN_CHARACTERS = 700


def run(context: RunContext) -> None:
    """Prepare the data, or find it prepared; show and record what the model will learn from.

    Raises:
        DataError: the test file left no example to train on or to validate with.
    """
    say(f"model: {context.source.name} ({context.source.origin})")
    data = context.data
    trains = not context.config.is_trained_elsewhere
    _show(data, trains=trains)
    _warn_of_shared(context, trains=trains)
    num_examples = {name: split["num_examples"] for name, split in data.report["splits"].items()}
    check_not_empty(num_examples, context.config.data, f" after those {IN_TEST_FILE} were left out", training=trains)
    if context.config.tracking.log_text:
        _show_example(context, data)
    if not distributed.is_first():
        return
    origin = data.report["origin"]
    context.manifest.record("model", context.describe_model())
    if context.config.source_weights is not None:
        context.manifest.record("weights", describe_weights(context.checkpoint))
    context.manifest.record("data", {"digest": data.digest, **data.report})
    for name in ("train", "validation", "test"):
        rows = len(data.split(name))
        if rows:
            where = data.report["eval_origin"] if name == "test" and data.report["eval_origin"] else origin
            source = str(where.get("path") or where.get("id"))
            context.tracker.log_dataset(f"{context.config.data.source}-{name}", data.digest, source, name, rows)
    context.manifest.finish_stage("prepare", {"digest": data.digest, "folder": str(data.folder)})


def _show(data: PreparedData, *, trains: bool) -> None:
    splits: dict[str, dict[str, Any]] = data.report["splits"]
    rows = [
        (
            name,
            f"{split['num_examples']:,}",
            f"{split['num_tokens']:,}",
            f"{split['supervised_share']:.0%}",
            f"{split['mean_tokens']:.0f}",
            f"{split['longest_tokens']:,}",
            f"{split['num_truncated']:,}",
        )
        for name, split in splits.items()
        if trains or split["num_examples"]
    ]
    print_table("data", ("split", "examples", "tokens", "supervised", "mean tokens", "longest", "truncated"), rows)
    for source in data.report["rows"].values():
        for reason, count in source["dropped"].items():
            say(f"left out: {count:,} examples ({reason})")


def _warn_of_shared(context: RunContext, *, trains: bool) -> None:
    """Say what became of examples that stand in the training data and in the test file."""
    num_shared = context.data.report["num_test_in_training"]
    trained_on = Manifest(context.trained_run.manifest_file).section("data").get("digest")
    if num_shared and (trains or trained_on == context.data.digest):
        warn(
            f"{num_shared:,} examples also stand in data.eval_path; they were left out of training and validation, "
            "so that the test loss stays clean"
        )
    elif num_shared:
        warn(
            f"{num_shared:,} examples of data.eval_path also stand in the data that the run took its training examples "
            "from: the model may know them, and their loss says less"
        )


def _show_example(context: RunContext, data: PreparedData) -> None:
    """One example, what is learnt from in colour."""
    for example in preview(data.train, context.tokenizer, 1):
        text = Text(f"example {example.source} (green: supervised)\n")
        room = _SHOWN_CHARACTERS
        for part, supervised in example.parts:
            text.append(part[:room], style="green" if supervised else "dim")
            room = max(0, room - len(part))
        show(text)
