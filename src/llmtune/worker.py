"""`python -m llmtune.worker FOLDER STAGE ...`: the stages of a run whose config stands in its folder.

A sweep starts one for each job, and a launcher one for each process of a run.
"""

import os
import sys
from pathlib import Path

from llmtune.config.saved import load_config
from llmtune.errors import LlmtuneError, explained, message_of, report
from llmtune.launch import launch
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import write_json
from llmtune.signals import INTERRUPTED

_MESSAGE_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def main() -> int:
    """Run the stages that the arguments name and return the exit status."""
    folder, stages = RunFolder(Path(sys.argv[1])), sys.argv[2:]
    try:
        return launch(folder, load_config(folder.config_file), stages)
    except LlmtuneError as error:
        return _end_with(error)
    except OSError as error:
        line = explained(error)
        if line is None:
            raise
        return _end_with(LlmtuneError(line))
    except KeyboardInterrupt:
        return INTERRUPTED


def _end_with(error: LlmtuneError) -> int:
    """Show the error, or leave it to the launcher, which shows one of what its workers left; the exit status."""
    path = os.environ.get(_MESSAGE_FILE_VARIABLE)
    if path is None:
        return report(error)
    write_json(Path(path), {"message": message_of(error), "exit_status": error.exit_status})
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
