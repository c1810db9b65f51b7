"""What every config dataclass shares: strict types, and the marks that say how a value is typed."""

from typing import Annotated, Final

from pydantic import ConfigDict, Field

STRICT: Final = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class VerbatimMark:
    """Marks a key whose value is taken as typed, whatever characters it holds."""


Text = Annotated[str, VerbatimMark()]
"""A string that the command line takes verbatim after the first `=` (prompts, paths, run references)."""

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
