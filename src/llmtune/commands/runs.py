"""`runs`: the runs with what became of them; one that is live is followed from another terminal."""

import json
from collections.abc import Sequence
from datetime import datetime

from llmtune.commands.run_entries import NOT_STARTED, RunEntry, run_entries
from llmtune.commands.run_follow import follow
from llmtune.commands.run_request import DEFAULT_LIMIT, Filter, Request, parse_request, sort_key
from llmtune.commands.run_table import entry_as_json, runs_text, shown_path
from llmtune.errors import Interrupted, RunError
from llmtune.logs import say, show
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import find_run
from llmtune.tracking.dead_runs import mark_dead_runs


def run(arguments: Sequence[str]) -> int:
    """List the runs, or follow one, and return the exit status.

    Args:
        arguments: what was typed after `runs`.

    Raises:
        ConfigError: what was typed makes no sense.
        RunError: the run to follow isn't there, or doesn't begin.
        Interrupted: following was stopped; the run goes on.
    """
    request = parse_request(arguments)
    mark_dead_runs(request.runs_dir, None, send=not request.as_json)
    if request.follow:
        try:
            return follow(_run_to_follow(request))
        except KeyboardInterrupt:
            raise Interrupted("stopped following; the run goes on") from None
    every = run_entries(request.runs_dir)
    if request.run is not None:
        folder = find_run(request.run, request.runs_dir).path.absolute()
        every = [entry for entry in every if entry.folder.path.absolute() == folder] or [RunEntry(RunFolder(folder))]
    found = _matching(every, request)
    if request.as_json:
        print(json.dumps([entry_as_json(entry) for entry in found[: request.limit]], indent=2, allow_nan=False))
        return 0
    _show(found, every, request)
    return 0


def _matching(entries: Sequence[RunEntry], request: Request) -> list[RunEntry]:
    found = [entry for entry in entries if all(condition.matches(entry) for condition in request.filters)]
    return sorted(found, key=sort_key(request.sort))


def _run_to_follow(request: Request) -> RunEntry:
    """The run that `run=` names; else of those that match the newest that runs, else the newest that began."""
    if request.run is not None:
        return RunEntry(find_run(request.run, request.runs_dir))
    every = run_entries(request.runs_dir)
    if not every:
        raise RunError(_no_run(request))
    found = _matching(every, request)
    if not found:
        raise RunError(_nothing_matches(every, request))
    running = [entry for entry in found if entry.status == "RUNNING"]
    begun = [entry for entry in found if entry.status != NOT_STARTED or entry.is_fresh]
    return [*running, *begun, *found][0]


def _show(found: Sequence[RunEntry], every: Sequence[RunEntry], request: Request) -> None:
    if not every:
        say(_no_run(request))
        return
    if not found:
        say(_nothing_matches(every, request))
    else:
        shown = found[: request.limit or DEFAULT_LIMIT]
        show(runs_text(shown, datetime.now().astimezone()))
        say(f"\n{_counted(shown, found, every)}")
        if any(entry.loss and entry.loss.kind != "test" for entry in shown):
            say("loss: on the test set; marked where it is the best in validation or the last in training")
    unread = [entry for entry in every if request.filters and not entry.config]
    if unread:
        say(f"{len(unread)} could not be filtered, since config.yaml can't be read: {unread[0].name}")


def _no_run(request: Request) -> str:
    return f"there is no run in {shown_path(request.runs_dir)}; train one, or set runs_dir="


def _counted(shown: Sequence[RunEntry], found: Sequence[RunEntry], every: Sequence[RunEntry]) -> str:
    runs = "1 run" if len(found) == 1 else f"{len(found)} runs"
    verb = "matches" if len(found) == 1 else "match"
    matching = f"{runs} of {len(every)} {verb}" if len(found) < len(every) else runs
    if len(shown) == len(found):
        return matching
    return f"{matching}; {len(found) - len(shown)} more not shown: --limit {len(found)}"


def _nothing_matches(every: Sequence[RunEntry], request: Request) -> str:
    """Which condition no run passes, with the values that there are; else that none passes all."""
    for condition in request.filters:
        if not any(condition.matches(entry) for entry in every):
            return f"no run of {len(every)} has {condition.key}={condition.value}{_values_there(condition, every)}"
    return f"no run of {len(every)} matches all of " + " ".join(
        f"{found.key}={found.value}" for found in request.filters
    )


def _values_there(condition: Filter, every: Sequence[RunEntry]) -> str:
    values = sorted({str(value) for entry in every for value in condition.found(entry) if value is not None})
    return f"; there are: {', '.join(values[:8])}" if values else ""
