"""Trains an adapter on one set of examples, and a second run goes on from it on another set.

Usage: python scripts/examples/continue_from_adapter.py [--model MODEL]

Without `--model` it is the embedded model, which needs no network; on two CPU cores it takes a minute or two. The
examples go to a temporary folder, the runs to `runs/` here. The key `method.adapter` takes a run, a checkpoint, the
folder of a PEFT adapter or its Hub id; rank, alpha and targets are the adapter's own.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from llmtune import FineTuneConfig, LLMFineTuner


def main() -> None:
    parser = argparse.ArgumentParser(description="An adapter for feet, trained on for yards.")
    parser.add_argument("--model", help="a named config, a Hub id or a folder; left out: the embedded model")
    model = parser.parse_args().model
    folder = Path(tempfile.mkdtemp(prefix="llmtune-"))
    write_examples(folder / "feet.jsonl", "feet", 12, range(2, 98))
    write_examples(folder / "yards.jsonl", "yards", 36, range(2, 98))
    write_examples(folder / "yards_eval.jsonl", "yards", 36, range(98, 122))

    first = LLMFineTuner(FineTuneConfig(model_name=model, lora_r=8, num_epochs=2, max_seq_length=64))
    first.train(folder / "feet.jsonl")
    before = first.evaluate(folder / "yards_eval.jsonl")

    adapter = f"method.adapter={first.run_folder}"
    second = LLMFineTuner(
        FineTuneConfig(model_name=model, num_epochs=2, learning_rate=1e-4, max_seq_length=64, overrides=[adapter])
    )
    second.train(folder / "yards.jsonl", folder / "yards_eval.jsonl")
    after = second.evaluate()

    print(f"loss on yards: {before['base_loss']:.3f} of the base model")
    print(f"               {before['loss']:.3f} of the adapter for feet")
    print(f"               {after['loss']:.3f} of the adapter that went on with yards: {second.run_folder}")


def write_examples(file: Path, unit: str, inches: int, numbers: Iterable[int]) -> None:
    rows = ({"prompt": f"{number} {unit} in inches:", "completion": f" {number * inches} inches"} for number in numbers)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
