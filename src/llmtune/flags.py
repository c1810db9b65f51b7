"""Flags that stand for keys, for those who know them from other tools."""

from collections.abc import Mapping

FLAGS: Mapping[str, str] = {
    "--model": "model",
    "--method": "method",
    "--train-data": "data.path",
    "--eval-data": "data.eval_path",
    "--epochs": "train.num_epochs",
    "--batch-size": "train.micro_batch_size",
    "--learning-rate": "train.learning_rate",
    "--warmup-steps": "train.warmup_steps",
    "--weight-decay": "train.weight_decay",
    "--gradient-accumulation": "train.gradient_accumulation_steps",
    "--max-seq-length": "data.max_seq_len",
    "--lora-r": "method.rank",
    "--lora-alpha": "method.alpha",
    "--lora-dropout": "method.dropout",
    "--model-path": "run",
    "--prompt": "generate.prompt",
    "--max-length": "generate.max_new_tokens",
    "--temperature": "generate.temperature",
    "--num-samples": "generate.num_samples",
    "--output-path": "export.path",
    "--format": "export.formats",
}
"""Each flag and the group, the key or the `run` that it stands for."""


def as_override(flag: str, value: str) -> str:
    """The override that a flag with its value stands for.

    Args:
        flag: one of `FLAGS`.
        value: what was typed after it; of `--format` a name, or several joined by commas.
    """
    if flag == "--format" and not value.startswith("["):
        value = f"[{value}]"
    return f"{FLAGS[flag]}={value}"
