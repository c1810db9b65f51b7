"""Which keys may change where training goes on once `resume_allow` names them, and why the others never may."""

from collections.abc import Iterator

from llmtune.config.run import RunConfig
from llmtune.config.schema import keys
from llmtune.config.validate import nearest

ALLOWABLE = frozenset(
    {
        "method.dropout",
        "seed",
        "train.early_stopping_patience",
        "train.gradient_accumulation_steps",
        "train.learning_rate",
        "train.max_grad_norm",
        "train.max_steps",
        "train.micro_batch_size",
        "train.num_cycles",
        "train.num_epochs",
        "train.schedule",
        "train.validate_every_steps",
        "train.warmup_steps",
        "train.weight_decay",
    }
)
"""Keys under which a checkpoint can be gone on from, though what is trained becomes another."""
SCHEDULE_KEYS = frozenset({"seed", "train.max_steps", "train.num_epochs", "train.warmup_steps"})
"""Keys that decide how many steps there are, and how many of them warm up; the seed does by the order of the examples,
where steps are filled with tokens."""
_CHOSEN = "it was settled when the run began and is restored from its manifest"
_PLACE = "the run's place is counted in its steps"
_REASONS = {
    "data.": "the run's place is counted in steps over its own examples; for others start a new run from its weights, "
    "with method.adapter=RUN or model=CHECKPOINT",
    "hardware.num_threads": _CHOSEN,
    "method.learning_rate": "training takes train.learning_rate; name that",
    "method.": "the checkpoint's weights belong to that method and its shape",
    "model.attention": _CHOSEN,
    "model.decoder": _CHOSEN,
    "model.": "the checkpoint holds what was trained on that base model",
    "source_": "run= sets it",
    "resume_allow": "it names the keys",
    "train.activation_checkpointing": _CHOSEN,
    "train.batch_unit": _PLACE,
    "train.compile": _CHOSEN,
    "train.deterministic": _CHOSEN,
    "train.master_dtype": "the checkpoint holds weights and optimizer state of that type",
    "train.optimizer": "the checkpoint holds that optimizer's state",
    "train.packing": _CHOSEN,
    "train.precision": _CHOSEN,
    "train.tokens_per_step": _PLACE,
}
"""By the beginning of a key; the first that fits counts."""


def never_because(key: str) -> str | None:
    """Why a key can't change where training goes on, even if it is named; None where it can, or is no such key."""
    return next(
        (reason for prefix, reason in _REASONS.items() if key.startswith(prefix) and key not in ALLOWABLE), None
    )


def find_wrong_names(names: tuple[str, ...]) -> Iterator[str]:
    """A sentence for each name that is no key, or that can never change."""
    known = list(dict.fromkeys(key.name for key in keys()))
    for name in names:
        reason = never_because(name)
        if name not in known:
            yield f"resume_allow: there is no key {name}.{nearest(name, known)}"
        elif reason is not None:
            yield f"resume_allow: {name} can't change where a run goes on: {reason}."


def find_other_batch(before: RunConfig, after: RunConfig) -> Iterator[str]:
    """A sentence where a step would hold another number of examples; what fills a step with tokens can't change."""
    old, new = before.train, after.train
    if new.batch_unit == "tokens":
        return
    was, now = (train.micro_batch_size * train.gradient_accumulation_steps for train in (old, new))
    if was != now:
        yield (
            f"train.micro_batch_size={new.micro_batch_size} train.gradient_accumulation_steps="
            f"{new.gradient_accumulation_steps}: a step would hold {now} examples instead of {was}, and the run's "
            "place is counted in steps; keep their product."
        )
