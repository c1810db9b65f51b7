"""The errors that a user can cause; everything else that escapes is a bug of ours and shows its traceback."""

from collections.abc import Sequence


class LlmtuneError(Exception):
    """Something that ends the command with a message of its own and no traceback."""

    exit_status = 1


class UserError(LlmtuneError):
    """A mistake in what the user typed or supplied; the command ends with exit status 2."""

    exit_status = 2


class ConfigError(UserError):
    """The config can't work. Carries every problem that was found, one line each.

    Args:
        problems: one sentence a problem: the key, the value received, what is allowed, what to set.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """A file of examples can't be read. Each problem reads `path:line: reason`."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ModelError(UserError):
    """A model or tokenizer can't be found or loaded as asked."""


class RunError(UserError):
    """A run reference leads nowhere, or the run can't do what is asked of it."""


class TrainingFault(LlmtuneError):
    """Training had to stop (a non-finite loss or gradient); the last good checkpoint is kept."""


class ExportCheckFailed(LlmtuneError):
    """An export was written, reloaded and found to differ from the trained model beyond its bound."""
