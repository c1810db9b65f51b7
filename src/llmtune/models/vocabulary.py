"""Tokens that a run adds to its model: their rows of the embeddings and of the output head, and where texts end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from llmtune.errors import ModelError

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class NewToken:
    """A token that the model's own tokenizer lacks."""

    text: str
    id: int


@dataclass(frozen=True)
class Vocabulary:
    """What a run changes about its model's vocabulary."""

    new_tokens: tuple[NewToken, ...] = ()
    """By id."""
    end_token_id: int | None = None
    """Token that ends an answer, where the run names one; None leaves the model's own."""

    @property
    def new_ids(self) -> list[int]:
        """The new tokens' ids, in order."""
        return [token.id for token in self.new_tokens]

    @property
    def num_rows(self) -> int:
        """Rows that embeddings need at least for the new tokens; 0 without any."""
        return max(self.new_ids, default=-1) + 1


def adapt_model(model: PreTrainedModel, vocabulary: Vocabulary, *, has_rows: bool = False) -> None:
    """Give a model rows for the new tokens, each the mean of the rows before them, and its end token.

    Embeddings and head grow only where an id doesn't fit: many models have spare rows. No random state is moved.

    Args:
        model: as it was loaded, quantised or not.
        vocabulary: what the run changes.
        has_rows: whether the weights are trained ones, whose rows for the new tokens stay as they are.

    Raises:
        ModelError: the model has no embeddings that can be resized, or too few rows for its own tokens.
    """
    if vocabulary.new_tokens and not has_rows:
        _add_rows(model, vocabulary)
    if vocabulary.end_token_id is not None:
        _set_end(model, vocabulary.end_token_id)


def own_num_rows(model: PreTrainedModel) -> int:
    """Rows of a model's embeddings."""
    return int(_weight(model.get_input_embeddings()).shape[0])


def _add_rows(model: PreTrainedModel, vocabulary: Vocabulary) -> None:
    first, rows = vocabulary.new_ids[0], own_num_rows(model)
    if first > rows:
        raise ModelError(
            f"data.add_tokens: the tokenizer has {first:,} tokens and the model {rows:,} rows of embeddings, so they "
            "don't belong together; use a tokenizer of this model"
        )
    if vocabulary.num_rows > rows:
        with torch.random.fork_rng():  # rows are drawn at random, and overwritten below
            model.resize_token_embeddings(vocabulary.num_rows, mean_resizing=False)
    ids = torch.tensor(vocabulary.new_ids)
    with torch.no_grad():
        for weight in _matrices(model):
            weight[ids.to(weight.device)] = _mean_of_rows(weight, first)


def _matrices(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """What has a row a token: embeddings, an output head that isn't tied to them, and its bias."""
    embeddings, head = _weight(model.get_input_embeddings()), model.get_output_embeddings()
    yield embeddings
    if head is None:
        return
    if _weight(head) is not embeddings:
        yield _weight(head)
    bias = getattr(head, "bias", None)
    if isinstance(bias, torch.Tensor):
        yield bias


def _weight(module: Any) -> torch.Tensor:
    return module.weight


def _mean_of_rows(weight: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Mean of the first rows in the matrix's type, summed in float64 so that neither threads nor device matter."""
    total = torch.zeros(weight.shape[1:], dtype=torch.float64, device=weight.device)
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        total += weight[start : min(start + _ROWS_AT_ONCE, num_rows)].double().sum(0)
    return (total / num_rows).to(weight.dtype)


def _set_end(model: PreTrainedModel, token_id: int) -> None:
    """Make a token the first that ends a text, in what the model saves too; those that ended one still do."""
    model.config.eos_token_id = token_id
    settings = model.generation_config
    if settings is not None:
        own = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        ends = list(dict.fromkeys(end for end in [token_id, *own] if end is not None))
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]
