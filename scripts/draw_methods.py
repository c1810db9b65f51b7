"""Draws the README's picture from runs of several methods on the same data.

    .venv/bin/python scripts/draw_methods.py runs/<lora> runs/<qlora> runs/<full> --out docs/images/methods.png

Left: validation loss by step. Middle: test loss beside the base model's. Right: training time and peak memory.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from llmtune.config.saved import load_config
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog

COLOURS = {"lora": "#2a6fbb", "qlora": "#d1742c", "full": "#3d8c54", "base": "#9a9a9a"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = {load_config(RunFolder(path).config_file).method.name: RunFolder(path) for path in arguments.runs}
    figure, (curves, losses, costs) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    draw_curves(curves, runs)
    draw_losses(losses, runs)
    draw_costs(costs, runs)
    for axes in (curves, losses, costs):
        axes.spines[["top", "right"]].set_visible(False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=130, metadata={"Software": None})
    print(f"{arguments.out}: {', '.join(runs)}")


def draw_curves(axes: Axes, runs: dict[str, RunFolder]) -> None:
    for method, run in runs.items():
        points = MetricsLog(run.metrics_file).losses("evaluate/validation_loss")
        axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[method], label=method)
    axes.set(title="validation loss (nats per token)", xlabel="step")
    axes.legend(frameon=False)


def draw_losses(axes: Axes, runs: dict[str, RunFolder]) -> None:
    found = {method: Manifest(run.manifest_file).stage("evaluate") for method, run in runs.items()}
    values = {"base": next(iter(found.values()))["base_loss"]} | {name: stage["loss"] for name, stage in found.items()}
    bars = axes.bar(list(values), list(values.values()), color=[COLOURS[name] for name in values])
    axes.bar_label(bars, fmt="%.3f")
    axes.set(title="test loss, examples never seen", ylim=(0, max(values.values()) * 1.12))


def draw_costs(axes: Axes, runs: dict[str, RunFolder]) -> None:
    for method, run in runs.items():
        trained = Manifest(run.manifest_file).stage("train")
        axes.scatter(trained["seconds"], trained["peak_memory_gib"], s=90, color=COLOURS[method])
        axes.annotate(f"  {method}", (trained["seconds"], trained["peak_memory_gib"]), va="center")
    axes.set(title="what it costs", xlabel="training time (s)", ylabel="peak memory (GiB)")
    axes.margins(x=0.35, y=0.3)


if __name__ == "__main__":
    main()
