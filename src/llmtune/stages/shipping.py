"""Where finished exports go on request: up to the Hub, into MLflow's model registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune.config.export import REGISTERED_FORMAT
from llmtune.errors import LlmtuneError
from llmtune.export.format import CardFacts
from llmtune.export.model_card import base_reference
from llmtune.export.push import push, pushed_format
from llmtune.export.registered_model import RegistrationFacts, check_register, register
from llmtune.logs import say
from llmtune.stages.context import RunContext
from llmtune.tracking.mlflow import MlflowTracker


def check_registration(context: RunContext) -> None:
    """Refuse, before anything is trained, a registration that can't work.

    Raises:
        ConfigError: with every reason that is found.
    """
    tracker = context.tracker
    uri = tracker.uri if isinstance(tracker, MlflowTracker) else None
    check_register(context.config.export.register, uri)


def shipped(context: RunContext, facts: CardFacts, results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results of the formats, with where the one that was uploaded or registered is now."""
    told = {name: dict(result) for name, result in results.items()}
    if context.config.export.push_to_hub is not None:
        name = pushed_format(list(told))
        told[name]["hub"] = _push(context, name, Path(told[name]["folder"]))
    if context.config.export.register is not None:
        result = told[REGISTERED_FORMAT]
        result["registered"] = _register(context, facts, context.config.export.register, Path(result["folder"]))
    return told


def _again(context: RunContext) -> str:
    return f"python -m llmtune export run={context.folder.path}"


def _push(context: RunContext, name: str, folder: Path) -> dict[str, Any]:
    """Upload one format's folder, and say where it is."""
    say(f"export.push_to_hub: the {name} format is uploaded to {context.config.export.push_to_hub}")
    pushed = push(folder, context.config.export, context.source.name, _again(context))
    seen = "private" if pushed.private else "everybody sees it"
    say(f"uploaded to {pushed.repo}, commit {pushed.commit[:12]} ({seen}): {pushed.url}")
    return pushed.as_json()


def _register(context: RunContext, facts: CardFacts, name: str, folder: Path) -> dict[str, Any]:
    """Register one format's folder as a version of `name`, and say how it is loaded."""
    tracker = context.tracker
    if not isinstance(tracker, MlflowTracker) or tracker.run_id is None:
        raise LlmtuneError(
            f"export.register={name}: the MLflow store is away; the export is finished and stays in {folder}. To "
            f"register it later: {_again(context)}"
        )
    done = register(
        folder,
        RegistrationFacts(
            name=name,
            tracking_uri=tracker.uri,
            run_id=tracker.run_id,
            title=facts.title,
            method=context.config.method.name,
            base_model=base_reference(context.source)[0],
            base_sha256=context.source.weights_digest,
            data_digest=facts.data.get("digest"),
            metrics=facts.metrics,
            again=_again(context),
        ),
    )
    what = "registered" if done.is_new else "registered earlier"
    say(f'{what}: {name} version {done.version}; mlflow.pyfunc.load_model("{done.uri}")')
    return done.as_json()
