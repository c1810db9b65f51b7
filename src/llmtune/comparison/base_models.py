"""The untrained models behind the runs, each measured once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.comparison.aligning import same_examples
from llmtune.comparison.reading import UNTRAINED
from llmtune.comparison.results import ExampleLosses, RunResult
from llmtune.comparison.rows import Settings, as_text, values_of


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """An untrained model under one tokenizer."""

    name: str
    """`base model`, with the model's name where there are several."""
    values: Mapping[str, Any]
    """What tells it from the others, key to value."""
    run: RunResult
    """The first run that measured it."""
    measured: tuple[ExampleLosses, ...]
    """Its losses on the test set, one a run."""


class BaseModels:
    """The untrained models of a comparison.

    Args:
        settings: the runs by setting.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = [key for key in settings.axes if key.startswith("model.")]
        runs = [*(run for setting in settings.trained for run in setting.runs), *settings.untrained]
        self._runs_of: dict[str, list[RunResult]] = {}
        for run in runs:
            self._runs_of.setdefault(self._identity(run), []).append(run)
        self._tokenizers_of_several_texts = several_general_texts(runs)
        found = {key: [run for run in runs if _base_of(run)] for key, runs in self._runs_of.items()}
        firsts = {key: runs[0] for key, runs in found.items() if runs}
        names = self._names(firsts)
        self.all = tuple(
            BaseModel(
                name=names[key],
                values=values_of(run, self._keys),
                run=run,
                measured=tuple(losses for one in found[key] if (losses := _base_of(one)) is not None),
            )
            for key, run in firsts.items()
        )

    def losses_for(self, run: RunResult) -> ExampleLosses | None:
        """The base model's losses on what a run measured: its own, or those of another run of the same base."""
        alike = self._runs_of.get(self._identity(run), [])
        found = (_base_of(one) for one in [run, *alike])
        return next((losses for losses in found if losses and same_examples(losses, run.tuned)), None)

    def general_losses_for(self, run: RunResult) -> ExampleLosses | None:
        """The same on the general text; None where runs of one tokenizer measured several of them."""
        if run.digests.get("tokenizer") in self._tokenizers_of_several_texts:
            return None
        alike = self._runs_of.get(self._identity(run), [])
        found, tuned = (one.general_base for one in [run, *alike]), run.general_tuned
        return next((losses for losses in found if losses and tuned and same_examples(losses, tuned)), None)

    def _identity(self, run: RunResult) -> str:
        return as_text([values_of(run, self._keys), run.digests.get("tokenizer")])

    def _names(self, firsts: Mapping[str, RunResult]) -> dict[str, str]:
        """`base model` where there is one; else the model beside it, and the tokenizer where that isn't enough."""
        if len(firsts) == 1:
            return dict.fromkeys(firsts, "base model")
        models = {key: " ".join(map(str, values_of(run, self._keys).values())) for key, run in firsts.items()}
        shown = list(models.values())
        tokenizers = {key: f"tokenizer {run.digests.get('tokenizer', 'unknown')[:8]}" for key, run in firsts.items()}
        return {
            key: f"base model ({model if shown.count(model) == 1 else f'{model} {tokenizers[key]}'.strip()})"
            for key, model in models.items()
        }


def several_general_texts(runs: Sequence[RunResult]) -> dict[str | None, list[list[RunResult]]]:
    """Tokenizers under which the runs measured several general texts, each with its runs by text.

    The digest is of the text's tokens, so it tells texts apart under one tokenizer alone.
    """
    found: dict[str | None, dict[str, list[RunResult]]] = {}
    for run in runs:
        if "general" in run.digests and (run.general_tuned or run.general_base):
            of_tokenizer = found.setdefault(run.digests.get("tokenizer"), {})
            of_tokenizer.setdefault(run.digests["general"], []).append(run)
    return {tokenizer: list(by_text.values()) for tokenizer, by_text in found.items() if len(by_text) > 1}


def _base_of(run: RunResult) -> ExampleLosses | None:
    losses = run.tuned if run.method == UNTRAINED else run.base
    return losses if losses is not None and same_examples(losses, run.tuned) else None
