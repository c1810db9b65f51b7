"""The whole config of a run."""

from dataclasses import field

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeInt, Text
from llmtune.config.compare import CompareConfig
from llmtune.config.data import DataConfig, FilesConfig
from llmtune.config.evaluate import EvaluateConfig
from llmtune.config.export import ExportConfig
from llmtune.config.generate import GenerateConfig
from llmtune.config.hardware import HardwareConfig
from llmtune.config.method import LoraConfig, MethodConfig
from llmtune.config.model import ModelConfig
from llmtune.config.sweep import SweepConfig
from llmtune.config.tracking import TrackingConfig
from llmtune.config.train import TrainConfig


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RunConfig:
    """One resolved config: one run folder, one MLflow run."""

    model: ModelConfig
    """The base model."""
    method: MethodConfig = field(default_factory=LoraConfig)
    """How it is specialised."""
    data: DataConfig = field(default_factory=FilesConfig)
    """The examples."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """On what it computes."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the weights are updated."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is measured."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """In which form it is shipped."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """How text is sampled."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """What counts as good enough, and what time costs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where it is recorded."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How the jobs of a multirun are run."""
    seed: NonNegativeInt = 1
    """Seed of adapters' initial values, dropout and the order of the examples."""
    runs_dir: Text = "runs"
    """Folder that gets a folder a run."""
    cache_dir: Text | None = None
    """Folder for prepared data and converted weights; null is LLMTUNE_CACHE, else ~/.cache/llmtune."""
    resume_allow: tuple[str, ...] = ()
    """Keys that may differ from the run's, though they change what is trained, where `train run=RUN` goes on; recorded
    in its manifest. For one command: the run's own config keeps none."""
    source_run: Text | None = None
    """Run folder whose trained weights this run evaluates or exports; set by `run=`, null for a run that trains."""
    source_weights: Text | None = None
    """Folder of the weights that this run evaluates or exports: a checkpoint of `source_run`, or an adapter made
    elsewhere; set by `run=`. null takes the run's own, as `train.select_checkpoint` says."""

    @property
    def is_trained_elsewhere(self) -> bool:
        """Whether this run takes weights as they are, and trains nothing."""
        return self.source_run is not None or self.source_weights is not None or self.method.name == "none"


RUN_CONFIG = TypeAdapter(RunConfig)
"""Validates JSON into a `RunConfig` and dumps it again."""
