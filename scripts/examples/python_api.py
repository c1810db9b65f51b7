"""Trains, measures, saves and asks a model, all from Python.

Usage: python scripts/examples/python_api.py [--model MODEL]

Without `--model` it is the embedded model, which needs no network; on two CPU cores it takes a minute or two. The
examples and the saved adapter go to a temporary folder, the runs to `runs/` here, and MLflow's record to `mlflow.db`.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from llmtune import FineTuneConfig, LLMFineTuner


def main() -> None:
    parser = argparse.ArgumentParser(description="llmtune from Python, on feet in inches.")
    parser.add_argument("--model", help="a named config, a Hub id or a folder; left out: the embedded model")
    model = parser.parse_args().model
    folder = Path(tempfile.mkdtemp(prefix="llmtune-"))
    write_examples(folder / "train_data.jsonl", range(2, 98))
    write_examples(folder / "eval_data.jsonl", range(98, 122))

    config = FineTuneConfig(
        model_name=model,
        method="lora",  # lora, qlora, full
        num_epochs=3,
        batch_size=4,
        learning_rate=2e-4,
        lora_r=16,
        lora_alpha=32,
        max_seq_length=64,
    )
    tuner = LLMFineTuner(config)
    trained = tuner.train(folder / "train_data.jsonl", folder / "eval_data.jsonl")
    measured = tuner.evaluate()
    saved = tuner.save_model(folder / "my_model")
    text = tuner.generate("7 feet in inches:", max_length=8, temperature=0)

    print(f"trained {trained['steps']} steps, final loss {trained['final_loss']:.3f}")
    print(f"test loss {measured['base_loss']:.3f} before, {measured['loss']:.3f} after")
    print(f"it writes: {text!r}")
    print(f"saved: {saved}")


def write_examples(file: Path, feet: Iterable[int]) -> None:
    rows = ({"prompt": f"{number} feet in inches:", "completion": f" {number * 12} inches"} for number in feet)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
