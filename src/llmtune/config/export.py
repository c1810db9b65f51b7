"""`export`: the form in which the tuned model is shipped."""

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeFloat, Text

EXPORT_FORMATS = {
    "adapter": "llmtune.export.adapter:AdapterFormat",
    "hf": "llmtune.export.hf:HuggingFaceFormat",
}
"""Every format's name and `module:class`; the module is imported when the format is asked for."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ExportConfig:
    """Formats, each written to a subfolder of its own and checked after reloading."""

    formats: tuple[str, ...] | None = None
    """Formats to write: `adapter`, `hf`. null is both, `hf` alone for full fine-tuning."""
    path: Text | None = None
    """Folder that gets a subfolder a format; null is `exports` in the run folder."""
    overwrite: bool = False
    """Whether a format's folder that isn't empty is replaced."""
    max_loss_rise: NonNegativeFloat = 0.02
    """Nats per token by which a merged QLoRA model may be worse than the trained 4-bit one on held-out text."""
    max_shard_size: str = "5GB"
    """Largest weight file of the `hf` format."""
    push_to_hub: Text | None = None
    """Repository on the Hugging Face Hub, `name` or `owner/name`, that the checked export is uploaded to: the `hf`
    format, or `adapter` where that is the only one. null uploads nothing."""
    hub_private: bool = True
    """Whether that repository is private: a new one is made so, and one that everybody sees is refused."""
