"""The errors that a user can cause; everything else that escapes is a bug of ours and shows its traceback."""

import errno
import sys
from collections.abc import Sequence

from llmtune import distributed

_CURES = {
    errno.ENOSPC: "no space left: make room, or choose another folder",
    errno.EDQUOT: "disk quota used up: make room, or choose another folder",
    errno.EACCES: "permission denied: change who may use it, or choose another folder",
    errno.EPERM: "operation not permitted: change who may use it, or choose another folder",
    errno.EROFS: "read-only file system: choose a folder that can be written to",
    errno.EMFILE: "too many open files: raise the limit with ulimit -n",
    errno.EIO: "the disk could not be read or written: check it",
}


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


class Interrupted(LlmtuneError):
    """The person stopped the command."""

    exit_status = 130


def explained(error: OSError) -> str | None:
    """One line on an error of the system that a user can mend; None for any other, which is a bug of ours."""
    if error.errno not in _CURES:
        return None
    return f"{error.filename}: {_CURES[error.errno]}" if error.filename else _CURES[error.errno]


def message_of(error: LlmtuneError) -> str:
    """What is shown of the error: its one line, or how many problems there are and a line for each."""
    problems = error.problems if isinstance(error, ConfigError | DataError) else [str(error)]
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems", *(f"  {problem}" for problem in problems)])


def report(error: LlmtuneError) -> int:
    """Show the error on standard error, from the run's first process only, and return the exit status.

    Args:
        error: what ends the command.
    """
    if distributed.is_first():
        print(f"llmtune: {message_of(error)}", file=sys.stderr, flush=True)
    return error.exit_status
