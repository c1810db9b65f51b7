"""The errors that a user can cause; everything else that escapes is a bug of ours and shows its traceback."""

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from llmtune import distributed
from llmtune.credentials import without_credentials

_CURES = {
    errno.ENOSPC: "no space left: make room, or choose another folder",
    errno.EFBIG: "file too large for this file system, or for the limit that ulimit -f shows: choose another folder",
    errno.EDQUOT: "disk quota used up: make room, or choose another folder",
    errno.EACCES: "permission denied: change who may use it, or choose another folder",
    errno.EPERM: "operation not permitted: change who may use it, or choose another folder",
    errno.EROFS: "read-only file system: choose a folder that can be written to",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another place",
    errno.EISDIR: "this is a folder, not a file: choose another place",
    errno.EMFILE: "too many open files: raise the limit with ulimit -n",
    errno.EIO: "the disk could not be read or written: check it",
}
_MESSAGE_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
_FIRST_TELLS_SECONDS = 10.0


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
    """Examples can't be read or used. Each problem of a file reads `path:line: reason`.

    Args:
        problems: those that are listed.
        num_more: how many others there are like them.
        cure: what to do about all of them.
        num_alike: how many others the problems speak of.
    """

    def __init__(self, problems: Sequence[str] | str, num_more: int = 0, cure: str = "", num_alike: int = 0) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.num_more = num_more
        self.cure = cure
        self.num_alike = num_alike
        super().__init__(self.problems, num_more, cure, num_alike)

    def __str__(self) -> str:
        more = f"... and {self.num_more:,} more problems like these" if self.num_more else ""
        return "\n".join(filter(None, [*self.problems, more, self.cure]))


class ModelError(UserError):
    """A model or tokenizer can't be found or loaded as asked."""


class RunError(UserError):
    """A run reference leads nowhere, or the run can't do what is asked of it."""


class TrainingFault(LlmtuneError):
    """Training had to stop (a non-finite loss or gradient); the last good checkpoint is kept."""


class ExportCheckFailed(LlmtuneError):
    """An export was written, reloaded and found to differ from the trained model beyond its bound."""


class PeerFailed(LlmtuneError):
    """Another process of the run failed, is gone or hangs, so this one can't go on either.

    Args:
        message: the other's own message, or what became of it.
        exit_status: the other's.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Interrupted(LlmtuneError):
    """The person stopped the command."""

    exit_status = 130


def explained(error: OSError) -> str | None:
    """One line on an error of the system that a user can mend; None for any other, which is a bug of ours."""
    if error.errno not in _CURES:
        return None
    return f"{error.filename}: {_CURES[error.errno]}" if error.filename else _CURES[error.errno]


def as_llmtune_error(error: Exception) -> LlmtuneError | None:
    """The error as a person is told of it; None where it is a bug of ours."""
    if isinstance(error, LlmtuneError):
        return error
    line = explained(error) if isinstance(error, OSError) else None
    return None if line is None else LlmtuneError(line)


def message_of(error: LlmtuneError) -> str:
    """What is shown of the error: its one line, or how many problems there are and a line for each."""
    if not isinstance(error, ConfigError | DataError):
        return str(error)
    lines = str(error).split("\n")
    if len(lines) == 1:
        return lines[0]
    count = len(error.problems) + (error.num_more + error.num_alike if isinstance(error, DataError) else 0)
    return "\n".join([f"{count:,} problem{'s' if count > 1 else ''}", *(f"  {line}" for line in lines)])


def report(error: LlmtuneError) -> int:
    """Show the error on standard error, of a run's processes in one alone, and return the exit status.

    The first process finds the same mistake, or hears of this one's, and ends, on which its launcher ends the others.

    Args:
        error: what ends the command.
    """
    if not distributed.is_first():
        if isinstance(error, Interrupted):
            return error.exit_status
        time.sleep(_FIRST_TELLS_SECONDS)
    print(f"llmtune: {without_credentials(message_of(error))}", file=sys.stderr, flush=True)
    return error.exit_status


def report_bug() -> int:
    """Show the traceback of the error that is being handled, without secrets, and return the exit status."""
    print(without_credentials(traceback.format_exc()), end="", file=sys.stderr, flush=True)
    return 1


def leave_message(error: LlmtuneError) -> bool:
    """Leave the error where the launcher of several processes looks for it; whether there is such a place."""
    path = os.environ.get(_MESSAGE_FILE_VARIABLE)
    if path is None:
        return False
    left = {"message": message_of(error), "exit_status": error.exit_status, "follows": isinstance(error, PeerFailed)}
    Path(path).write_text(json.dumps(left), encoding="utf-8")
    return True
