"""`generate`: text from the model of a run."""

from pathlib import Path

from llmtune.config.run import RunConfig
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs


def run(config: RunConfig, folder: RunFolder | None) -> int:
    """Write what `generate` asks for and return the exit status.

    Args:
        config: the composed config; that of the run where `run=` named one.
        folder: the run that `run=` named; None takes the newest trained one.
    """
    from llmtune.stages import generate

    return generate.run(config, folder or _newest_trained(Path(config.runs_dir)))


def _newest_trained(runs_dir: Path) -> RunFolder | None:
    """The newest run that finished training; None where there is none."""
    trained = (listed.folder for listed in list_runs(runs_dir) if listed.folder.final_checkpoint.exists())
    return next(trained, None)
