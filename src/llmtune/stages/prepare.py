"""`prepare`: rows to token files, split into training, validation and test set, and a report on what is in them."""

from collections.abc import Iterator
from typing import Any

from llmtune import distributed
from llmtune.data.deciding.splits import check_not_empty
from llmtune.data.encoding.example import IGNORED
from llmtune.data.plan import StepPlan
from llmtune.data.preparing.clean import check_clean_target, write_clean
from llmtune.data.preparing.prepared import PreparedData
from llmtune.data.token_table import TokenTable
from llmtune.logs import say, warn
from llmtune.models.digest import describe_weights
from llmtune.runs.manifest import Manifest, write_json
from llmtune.stages.context import RunContext
from llmtune.stages.data_advice import PackingFill, num_found
from llmtune.stages.data_page import DataPage
from llmtune.stages.data_report import show_report
from llmtune.stages.division import plan_settings
from llmtune.stages.known_examples import test_files
from llmtune.stages.shown_examples import ShownExample
from llmtune.stages.token_pieces import decoded, pieces_of

_NUM_SHOWN = 4
_MOST_LOOKED_AT = 500
"""Examples among which those of different files are looked for."""
_MOST_STEPS = 2000
"""Steps that are planned to see how full their micro-batches are."""


def run(context: RunContext) -> None:
    """Prepare the data, or find it prepared; show and record what the model will learn from.

    Raises:
        DataError: the examples can't be used, or the test file left none to train on or to validate with.
    """
    say(f"model: {context.source.name} ({context.source.origin})")
    config = context.config
    trains = not config.is_trained_elsewhere
    if trains:
        check_clean_target(config.data)  # before anything is written
    data = context.data
    num_examples = {name: split["num_examples"] for name, split in data.report["splits"].items()}
    check_not_empty(num_examples, config.data, training=trains)
    _ = context.general  # where it can't be read, that is said before training
    if not distributed.is_first():
        return
    shown = _shown_examples(context, data) if config.tracking.log_text else []
    fill = _packing_fill(context, data) if trains and config.train.packing else None
    show_report(data.report, shown, fill, config.data.max_seq_len)
    DataPage(data.report, shown, fill, config.data.max_seq_len).write(context.folder.data_page)
    write_json(context.folder.data_report, data.report | {"digest": data.digest})
    context.tracker.log_artifact(context.folder.data_page)
    context.tracker.log_artifact(context.folder.data_report)
    say(f"what the model will learn from: {context.folder.data_page}")
    if not trains:
        _warn_of_known(context)
    elif (clean := write_clean(config.data, data)) is not None:
        say(f"data.write_clean: {clean[1]:,} rows in {clean[0]}")
    _record(context, data)


def _warn_of_known(context: RunContext) -> None:
    """Say which test examples the weights may have been trained on, where they weren't left out of that training."""
    num_shared = num_found(context.data.report["overlap"])
    trained_on = Manifest(context.trained_run.manifest_file).section("data").get("sources", ())
    if num_shared and test_files(trained_on) != test_files(context.data.report["sources"]):
        warn(
            f"{num_shared:,} examples of the data that the run took its training examples from also stand in "
            "data.eval_path: the model may know them, and their loss says less"
        )


def _record(context: RunContext, data: PreparedData) -> None:
    context.manifest.record("model", context.describe_model())
    if context.config.source_weights is not None:
        context.manifest.record("weights", describe_weights(context.checkpoint))
    splits = data.report["splits"]
    digests = {
        "digest": data.digest,
        "split_digests": {name: split["tokens_sha256"] for name, split in splits.items()},
        "content_digests": {name: split["content_sha256"] for name, split in splits.items()},
    }
    context.manifest.record("data", {**_without_lists(data.report), **digests})
    for name in ("train", "validation", "test"):
        rows = len(data.split(name))
        if rows:
            role = "eval" if name == "test" else "train"
            sources = data.report["sources"]
            mine = [source for source in sources if source["role"] == role] or sources
            places = ", ".join(str(source.get("path") or source.get("id") or source["name"]) for source in mine)
            context.tracker.log_dataset(f"{context.config.data.source}-{name}", data.digest, places, name, rows)
    context.manifest.finish_stage("prepare", {"digest": data.digest, "folder": str(data.folder)})


def _without_lists(content: Any) -> Any:
    """The report's figures; places of single rows stand in the page and in its JSON."""
    if isinstance(content, dict):
        return {key: _without_lists(value) for key, value in content.items() if key != "listed"}
    return content


def _shown_examples(context: RunContext, data: PreparedData) -> list[ShownExample]:
    """Training examples of different files as far as there are several, and one of the test set."""
    table, split = (data.train, "train") if len(data.train) else (data.test, "test")
    first_of: dict[str, int] = {}
    for index in range(min(_MOST_LOOKED_AT, len(table))):
        first_of.setdefault(table.source(index).rpartition(":")[0], index)
    chosen = list(dict.fromkeys([*first_of.values(), *range(len(table))[:_NUM_SHOWN]]))[: _NUM_SHOWN - 1]
    shown = [_shown(context, table, split, index) for index in chosen]
    if split == "train" and len(data.test):
        shown.append(_shown(context, data.test, "test", 0))
    return shown


def _shown(context: RunContext, table: TokenTable, split: str, index: int) -> ShownExample:
    tokenizer = context.tokenizer
    ids = table.input_ids(index).tolist()
    learnt = (table.labels(index) != IGNORED).tolist()
    special = (decoded(tokenizer, [token]) for token in set(ids) & set(tokenizer.all_special_ids))
    pieces = tuple(pieces_of(tokenizer, ids, learnt))
    return ShownExample(source=table.source(index), split=split, pieces=pieces, special=frozenset(special))


def _packing_fill(context: RunContext, data: PreparedData) -> PackingFill:
    """How full the micro-batches of the first epoch are, if examples are packed as planned."""
    settings = plan_settings(context, packed=True)
    plan = StepPlan(data.train.num_tokens, data.train.num_supervised_tokens, settings)
    num_steps = min(plan.steps_per_epoch, _MOST_STEPS)
    lengths = [
        int(data.train.num_tokens[list(indices)].sum())
        for indices in _micro_batches(plan, num_steps, settings.num_processes)
    ]
    return PackingFill(lengths, settings.micro_batch_tokens, num_steps, settings.tokens_per_step is not None)


def _micro_batches(plan: StepPlan, num_steps: int, num_processes: int) -> Iterator[tuple[int, ...]]:
    for step in range(num_steps):
        for rank in range(num_processes):
            yield from plan.step(step, rank).micro_batches
