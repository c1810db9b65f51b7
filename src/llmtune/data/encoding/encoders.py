"""Which engine turns texts into ids."""

from llmtune.data.encoding.description import TokenizerDescription
from llmtune.data.encoding.engine import TextEncoder
from llmtune.data.encoding.fast_engine import choose_encoder
from llmtune.data.encoding.library_engine import LibraryEncoder, SlowEncoder


def make_encoder(description: TokenizerDescription, *, splits_special: bool | None = None) -> TextEncoder:
    """The encoder of a tokenizer: the fast engine where it gives the same ids, else the library.

    Args:
        description: the tokenizer.
        splits_special: whether special tokens that stand in a text are taken apart as text; None does as the
            tokenizer does.
    """
    splits = description.splits_special if splits_special is None else splits_special
    if description.backend is None:
        return SlowEncoder(description.tokenizer, splits_special=splits)
    if not description.may_be_fast:
        return LibraryEncoder(description.backend, splits_special=splits)
    return choose_encoder(description.backend, splits_special=splits)
