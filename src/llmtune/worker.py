"""`python -m llmtune.worker FOLDER STAGE ...`: the stages of a run whose config stands in its folder.

A sweep starts one for each job, and a launcher one for each process of a run.
"""

import sys
from pathlib import Path

from llmtune import process_group
from llmtune.config.saved import load_config
from llmtune.errors import LlmtuneError, as_llmtune_error, leave_message, report, report_bug
from llmtune.launch import launch
from llmtune.runs.layout import RunFolder
from llmtune.signals import INTERRUPTED
from llmtune.sweep.lifeline import end_with_the_sweep


def main() -> int:
    """Run the stages that the arguments name and return the exit status."""
    end_with_the_sweep()
    folder, stages = RunFolder(Path(sys.argv[1])), sys.argv[2:]
    try:
        return launch(folder, load_config(folder.config_file), stages)
    except Exception as error:
        told = as_llmtune_error(error)
        return report_bug() if told is None else _end_with(told)
    except KeyboardInterrupt:
        return INTERRUPTED


def _end_with(error: LlmtuneError) -> int:
    """Show the error, or leave it to the launcher, which shows one of what its workers left; the exit status."""
    return error.exit_status if leave_message(error) else report(error)


if __name__ == "__main__":
    process_group.end(main())
