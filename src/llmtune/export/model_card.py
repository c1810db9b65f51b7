"""The model card (README.md) of an export: what it is, how good it is, how to load it; no folder of this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from llmtune.export.format import CardFacts, ExportContext, ExportFormat
from llmtune.export.report import Figure, ParityReport
from llmtune.models.source import ModelSource

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ what }}

## Base model

{{ base_table }}

## Training

{{ method_table }}

## Data

{{ data_table }}

## Held-out results

{{ metrics_table }}

{% if is_measured %}
Perplexity is exp of the mean loss per supervised token; it compares only under the same tokenizer and mask.
{% endif %}
## Check of these files

Compared after loading them from disk: {{ compared }}.

{{ parity_table }}

What is allowed: {{ why }}.

## How to run
{% if note %}
{{ note }}
{% endif %}
```bash
pip install {{ packages }}
python run.py "Once upon a time"{% if has_template %}
python run.py --chat "What can you do?"{% endif %}
```

`run.py` writes with the model through `runtime.py`, which stands beside it and needs nothing of llmtune.
{%- if loading_code %}

In a program of your own, with `FOLDER` the folder of this file:

```python
{{ loading_code }}
```
{%- endif %}

## Use and limits

The model does what its training examples show, in their domain and form.
{%- if is_measured %} It was measured on held-out examples of the same kind and nowhere else.{% endif %}
It keeps the base model's faults and biases and may have lost some of its general skill; check its output before
anything rests on it. The licences of the base model and of the data apply.
"""


_UNTRAINED = "none"


def write_card(context: ExportContext, chosen: ExportFormat, report: ParityReport, folder: Path) -> None:
    """Write `README.md` with YAML metadata as the Hub reads it."""
    source, facts = context.source, context.facts
    base, revision = base_reference(source)
    metadata = ModelCardData(
        base_model=source.location if _is_hub_id(source) else None,
        license=source.licence.lower() if source.licence else None,
        library_name=chosen.library,
        pipeline_tag="text-generation",
        tags=["llmtune", *([] if context.method.name == _UNTRAINED else [context.method.name])],
    )
    origin = {
        "model": base,
        "revision": revision or "none (a folder)",
        "licence": source.licence or "see the base model",
        "sha256 of the weights": source.weights_digest,
    }
    card = ModelCard.from_template(
        metadata,
        template_str=_TEMPLATE,
        title=facts.title,
        base=base,
        what=_what(base, context.method.name, facts),
        base_table=_pairs(origin),
        method_table=_pairs({**facts.method, **_vocabulary(context)}),
        data_table=_pairs(facts.data),
        metrics_table=_metrics(facts.metrics),
        is_measured=_is_measured(facts.metrics),
        compared=report.compared,
        parity_table=_parity(report.figures),
        why=report.why,
        packages=chosen.needs(context),
        note=chosen.note,
        has_template=bool(context.tokenizer.chat_template),
        loading_code=chosen.loading_code(context),
    )
    card.save(folder / "README.md")


def base_reference(source: ModelSource) -> tuple[str, str | None]:
    """What a person loads the base model by, and its commit: the Hub id, else its short name."""
    return (source.location, source.revision) if _is_hub_id(source) else (source.name, None)


def _is_hub_id(source: ModelSource) -> bool:
    return not Path(source.location).is_absolute()


def _what(base: str, method: str, facts: CardFacts) -> str:
    if method == _UNTRAINED:
        return f"{base} as it is: nothing was trained, llmtune wrote and checked these files."
    if not facts.is_trained_here:
        return f"{base} with a `{method}` adapter that was made elsewhere; llmtune wrote and checked these files."
    return f"{base} specialised by llmtune with method `{method}`."


def _vocabulary(context: ExportContext) -> dict[str, str]:
    """What was changed about the base model's vocabulary."""
    changed = context.source.vocabulary
    if not changed.new_tokens and changed.end_token_id is None:
        return {}
    added = ", ".join(f"`{token.text}` ({token.id})" for token in changed.new_tokens)
    return {"added tokens": added or "none", "answers end with": f"`{context.tokenizer.eos_token}`"}


def _pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values; a value that is a path keeps its last part alone."""
    if not values:
        return "Not recorded."
    rows = [f"| {name} | {_shown(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _shown(value: Any) -> str:
    text = str(value)
    text = Path(text).name if isinstance(value, Path) or Path(text).is_absolute() else text
    return text.replace("|", "\\|").replace("\n", " ")


def _is_measured(metrics: Mapping[str, tuple[float | None, float | None]]) -> bool:
    return any(value is not None for pair in metrics.values() for value in pair)


def _metrics(metrics: Mapping[str, tuple[float | None, float | None]]) -> str:
    if not _is_measured(metrics):
        return "Not measured."
    rows = [f"| {name} | {_number(base)} | {_number(tuned)} |" for name, (base, tuned) in metrics.items()]
    return "\n".join(["| | base model | this model |", "|---|---:|---:|", *rows])


def _parity(figures: tuple[Figure, ...]) -> str:
    rows = [f"| {figure.meaning} | {figure.value:.3g} | {_number(figure.bound)} |" for figure in figures]
    return "\n".join(["| | measured | allowed |", "|---|---:|---:|", *rows])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
