"""`python -m llmtune.worker FOLDER STAGE ...`: the stages of a run whose config stands in its folder.

A sweep starts one for each job, and a launcher one for each process of a run.
"""

import sys
from pathlib import Path

from llmtune.config.saved import load_config
from llmtune.errors import LlmtuneError
from llmtune.launch import launch
from llmtune.runs.layout import RunFolder


def main() -> int:
    """Run the stages that the arguments name and return the exit status."""
    folder, stages = RunFolder(Path(sys.argv[1])), sys.argv[2:]
    try:
        return launch(folder, load_config(folder.config_file), stages)
    except LlmtuneError as error:
        print(f"llmtune: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
