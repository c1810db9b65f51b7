"""Export formats by name."""

import difflib
from collections.abc import Sequence
from importlib import import_module

from llmtune.config.export import EXPORT_FORMATS
from llmtune.errors import ConfigError
from llmtune.export.format import ExportFormat, ExportSubject


def make_format(name: str) -> ExportFormat:
    """The format of a name.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in EXPORT_FORMATS:
        near = difflib.get_close_matches(name, EXPORT_FORMATS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"export.formats: unknown format {name!r}, known are {', '.join(EXPORT_FORMATS)}{hint}")
    module, _, class_name = EXPORT_FORMATS[name].partition(":")
    return getattr(import_module(module), class_name)()


def default_formats(has_adapter: bool) -> tuple[str, ...]:
    """What `export.formats=null` means: adapter and merged model, or the model alone where all weights trained."""
    return ("adapter", "hf") if has_adapter else ("hf",)


def check_formats(names: Sequence[str], subject: ExportSubject) -> None:
    """Refuse formats that can't hold a model, all of them at once, before any weight is read.

    Raises:
        ConfigError: names each format with its reason.
    """
    reasons = ((name, make_format(name).why_not(subject)) for name in names)
    problems = [f"export.formats: {name} {reason}." for name, reason in reasons if reason is not None]
    if problems:
        raise ConfigError(problems)
