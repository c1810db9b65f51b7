"""Trains a model by each of the three methods on the same examples and prints what each reached.

Usage: python scripts/examples/compare_methods.py [--model MODEL]

Without `--model` it is the embedded model, which needs no network; on two CPU cores it takes a few minutes. The
examples go to a temporary folder, the runs to `runs/` here. One seed only, so small differences say nothing: for a
comparison with error bars sweep over seeds, `llmtune -m +method=lora,qlora,full seed=1,2,3`.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from llmtune import FineTuneConfig, LLMFineTuner


def main() -> None:
    parser = argparse.ArgumentParser(description="The three methods side by side, on feet in inches.")
    parser.add_argument("--model", help="a named config, a Hub id or a folder; left out: the embedded model")
    model = parser.parse_args().model
    folder = Path(tempfile.mkdtemp(prefix="llmtune-"))
    write_examples(folder / "train_data.jsonl", range(2, 98))
    write_examples(folder / "eval_data.jsonl", range(98, 122))

    lines = []
    for method in ("full", "lora", "qlora"):
        tuner = LLMFineTuner(FineTuneConfig(model_name=model, method=method, num_epochs=2, max_seq_length=64))
        trained = tuner.train(folder / "train_data.jsonl", folder / "eval_data.jsonl")
        measured = tuner.evaluate()
        lines.append(
            f"{method:8}{measured['base_loss']:>10.3f}{measured['loss']:>10.3f}{measured['perplexity']:>12.2f}"
            f"{trained['num_trainable']:>16,}{trained['seconds']:>10.1f}"
        )
    print(f"{'method':8}{'base loss':>10}{'loss':>10}{'perplexity':>12}{'trainable':>16}{'seconds':>10}")
    print("\n".join(lines))


def write_examples(file: Path, feet: Iterable[int]) -> None:
    rows = ({"prompt": f"{number} feet in inches:", "completion": f" {number * 12} inches"} for number in feet)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
