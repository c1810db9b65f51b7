"""The columns that each shape of a row is made of."""

from dataclasses import dataclass
from itertools import product

from llmtune.config.data import RowConfig
from llmtune.config.row_columns import COLUMN_KEYS, column_names, possible_shapes

_OPTIONAL = {"instruction": ("input_column", "system_column"), "messages": ("system_column", "tools_column")}


@dataclass(frozen=True, slots=True)
class Form:
    """One set of columns that makes a row an example."""

    shape: str
    columns: tuple[str, ...]
    """Those that the row must have; the last is what is learnt."""
    keys: tuple[str, ...]
    """The config's keys for them."""
    optional: tuple[str, ...]
    """Those that are read where the row has them, in the order of the shape's keys."""

    words: str
    """Its columns as a person reads them."""


def forms_of(rows: RowConfig) -> tuple[Form, ...]:
    """The forms that rows of a source may have; of one shape, the first that fits is taken."""
    return tuple(form for shape in possible_shapes(rows) for form in _forms(rows, shape))


def forms_in_words(forms: tuple[Form, ...]) -> str:
    """The columns of the forms, such as: `text` or `content`, `prompt` and `completion`, or `messages`.

    Of a column that goes by more than two names only the first is said.
    """
    by_shape: dict[str, list[Form]] = {}
    for form in reversed(forms):
        by_shape.setdefault(form.shape, []).append(form)
    said = [same[-1:] if len(same) > 2 else reversed(same) for same in by_shape.values()]
    words = [" or ".join(form.words for form in same) for same in said]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, or {words[-1]}"


def _forms(rows: RowConfig, shape: str) -> list[Form]:
    optional_keys = _OPTIONAL.get(shape, ())
    keys = tuple(key for key in COLUMN_KEYS[shape] if key not in optional_keys)
    optional = tuple(column_names(rows, key)[0] for key in optional_keys)
    names = product(*(column_names(rows, key) for key in keys))
    return [Form(shape, it, keys, optional, " and ".join(f"`{column}`" for column in it)) for it in names]


SHAPES_IN_WORDS = forms_in_words(forms_of(RowConfig()))
"""What a row may be made of, where no key says more."""
