"""Every file name in a run folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """One run's folder: `runs/<time>-<method>-<model>-<4 hex>/`."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> Path:
        """What each stage read, chose and wrote, JSON."""
        return self.path / "manifest.json"

    @property
    def status_file(self) -> Path:
        """Status, process and MLflow run, JSON."""
        return self.path / "status.json"

    @property
    def lock_file(self) -> Path:
        """Empty; locked by the process that is at work on the run."""
        return self.path / ".at-work.lock"

    @property
    def log_file(self) -> Path:
        """Everything that was said, with times."""
        return self.path / "log.txt"

    @property
    def output_file(self) -> Path:
        """What a sweep's job wrote to its terminal, where it ran beside others."""
        return self.path / "output.txt"

    @property
    def sweep_file(self) -> Path:
        """A sweep's stages and jobs, JSON."""
        return self.path / "sweep.json"

    @property
    def summary_file(self) -> Path:
        """What became of a sweep's jobs, JSON."""
        return self.path / "summary.json"

    @property
    def metrics_file(self) -> Path:
        """Every metric by step, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint saved after `step` weight updates."""
        return self.checkpoints / f"checkpoint-{step}"

    @property
    def best_checkpoint(self) -> Path:
        """Link to the checkpoint with the lowest validation loss."""
        return self.checkpoints / "checkpoint-best"

    @property
    def final_checkpoint(self) -> Path:
        """Link to the last checkpoint."""
        return self.checkpoints / "checkpoint-final"

    def chosen_checkpoint(self, select: str) -> Path:
        """The checkpoint that `train.select_checkpoint` means; it need not exist."""
        return self.best_checkpoint if select == "best" and self.best_checkpoint.exists() else self.final_checkpoint

    def predictions_file(self, model: str) -> Path:
        """Each test example's loss under `model` ("base" or "tuned"; on general text "general_base"), Parquet."""
        return self.path / "predictions" / f"{model}.parquet"

    @property
    def samples_file(self) -> Path:
        """Answers of the base and the tuned model to test prompts, JSON."""
        return self.path / "samples.json"

    @property
    def data_page(self) -> Path:
        """What the model learns from, as a page for a browser."""
        return self.path / "data_report.html"

    @property
    def data_report(self) -> Path:
        """The same figures, JSON."""
        return self.path / "data_report.json"

    @property
    def loss_outliers_file(self) -> Path:
        """Training examples on which the base model's loss stands out, as the run began, JSON."""
        return self.path / "loss_outliers.json"

    @property
    def plots(self) -> Path:
        """Folder of the plots, PNG."""
        return self.path / "plots"

    @property
    def exports(self) -> Path:
        """Default folder of the exports, a subfolder a format."""
        return self.path / "exports"
