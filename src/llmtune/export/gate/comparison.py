"""How far an export's answers are from the trained model's, as figures with their bounds."""

from collections.abc import Iterator

import numpy as np

from llmtune.errors import ExportCheckFailed
from llmtune.export.gate.answering import kl_divergence
from llmtune.export.gate.answers import Answers
from llmtune.export.report import Bounds, Figure

_CURE = "export again, and report it if it stays: the export or a library lost weights"
_TEXT_CURE = "export again, and report it if it stays: the tokenizer's files differ from those of training"
_ROUNDING_CURE = "the weights don't bear this type; choose a finer one, such as export.formats=[hf]"


def compare(trained: Answers, exported: Answers, bounds: Bounds) -> list[Figure]:
    """The differences between two models' answers.

    Raises:
        ExportCheckFailed: the export gives other shapes than the trained model.
    """
    for left, right in zip(_logits(trained), _logits(exported), strict=True):
        if left.shape != right.shape:
            raise ExportCheckFailed(f"the export gives logits of shape {right.shape}, the trained model {left.shape}")
    return [
        *_logit_figures(trained, exported, bounds),
        *_loss_figures(trained, exported, bounds),
        *_text_figures(trained, exported),
    ]


def _logits(answers: Answers) -> list[np.ndarray]:
    """All logits that were kept, each [n, V]."""
    return [*answers.logits, answers.padded, answers.long]


def _logit_figures(trained: Answers, exported: Answers, bounds: Bounds) -> Iterator[Figure]:
    pairs = [(left, right) for left, right in zip(_logits(trained), _logits(exported), strict=True) if len(left)]
    largest = max(float(np.abs(logits).max()) for logits, _ in pairs)
    difference = float(np.max([np.abs(left - right).max() for left, right in pairs])) / largest  # NaN stays NaN
    kl = np.concatenate([kl_divergence(left, right) for left, right in pairs])
    same = np.concatenate([left.argmax(-1) == right.argmax(-1) for left, right in pairs])
    parted = _parted(trained, exported, tie=largest * (bounds.logits or 0.0))
    steps = trained.greedy.shape[1]
    yield Figure("logit_difference", difference, bounds.logits, "largest logit difference / largest logit", _CURE)
    yield Figure("kl_largest", float(kl.max()), bounds.largest_kl, "largest KL divergence of a token, nats", _CURE)
    yield Figure("kl_mean", float(kl.mean()), bounds.mean_kl, "mean KL divergence of a token, nats", _ROUNDING_CURE)
    yield Figure(
        "cache_kl_mean",
        float(exported.cache_kl.mean()),
        bounds.mean_kl if bounds.mean_kl is not None else bounds.largest_kl,
        "mean KL divergence of its own steps through the cache, padded, from its own pass over the whole text, nats",
        _CURE,
    )
    yield Figure(
        "top1_agreement", float(same.mean()), None, "share of positions with the same likeliest token, more is better"
    )
    yield Figure(
        "greedy_parted",
        float(parted),
        None if bounds.logits is None else 0.0,
        f"of {len(trained.greedy)} prompts, those with other greedy tokens within {steps}, ties left out",
        _CURE,
    )
    yield Figure(
        "greedy_agreement",
        _agreement(trained, exported),
        None,
        f"share of the {steps} greedy tokens up to which the texts are the same, more is better",
    )


def _loss_figures(trained: Answers, exported: Answers, bounds: Bounds) -> Iterator[Figure]:
    if trained.loss is None or exported.loss is None:
        if bounds.loss_rise is not None:
            yield Figure("loss_missing", 1.0, 0.0, "1 where no example has a token to learn", "use other examples")
        return
    yield Figure("loss_unmerged", trained.loss, None, "loss of the unmerged model in float32, nats per token")
    yield Figure("loss_exported", exported.loss, None, "loss of the export, nats per token")
    rise = exported.loss - trained.loss
    yield Figure("loss_rise", rise, bounds.loss_rise, "rise of the loss, nats per token", _ROUNDING_CURE)


def _text_figures(trained: Answers, exported: Answers) -> Iterator[Figure]:
    left, right = trained.text, exported.text
    kinds = {
        "texts_encoded_otherwise": ("encoded", "texts that become other token ids than in training"),
        "texts_decoded_otherwise": ("decoded", "texts whose token ids become another text than in training"),
        "conversations_rendered_otherwise": ("rendered", "conversations that the chat template renders otherwise"),
    }
    for name, (key, meaning) in kinds.items():
        wrong = sum(one != other for one, other in zip(left[key], right[key], strict=True))
        yield Figure(name, float(wrong), 0.0, f"of {len(left[key])} {meaning}", _TEXT_CURE)
    ends = set(left["end_token_ids"]) ^ set(right["end_token_ids"])
    yield Figure("end_tokens_wrong", float(len(ends)), 0.0, "end tokens too many or too few", _TEXT_CURE)


def _first_difference(trained: Answers, exported: Answers) -> list[int]:
    """The step at which each greedy text parts from the trained model's; the number of steps where it doesn't."""
    differ = trained.greedy != exported.greedy
    return [int(row.argmax()) if row.any() else len(row) for row in differ]


def _parted(trained: Answers, exported: Answers, tie: float) -> int:
    """How many greedy texts part where the trained model's two likeliest tokens were further than `tie`."""
    steps = _first_difference(trained, exported)
    return sum(
        step < trained.greedy.shape[1] and float(trained.gaps[row, step]) > tie for row, step in enumerate(steps)
    )


def _agreement(trained: Answers, exported: Answers) -> float:
    return float(np.mean(_first_difference(trained, exported))) / trained.greedy.shape[1]
