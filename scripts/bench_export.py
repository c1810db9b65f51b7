"""Sizes, speeds and differences of a run's exports: each format written, put to the gate, and timed in its own runtime.

    python scripts/bench_export.py runs/NAME                       # every format that can hold the model
    python scripts/bench_export.py runs/NAME --formats onnx hf     # some of them

Decoding is timed one text after another: 64 tokens after a prompt of 64, in a process of its own. `hf` is timed in the
type of its files and in float32, which is what the float32 formats compute in; the ratio is over the latter.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtune.config.export import EXPORT_FORMATS
from llmtune.config.saved import load_config
from llmtune.export.format import ExportContext
from llmtune.export.gate.check import Gate
from llmtune.export.registry import make_format
from llmtune.export.writing import write_export
from llmtune.logs import print_table, say, silence_libraries
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RunContext
from llmtune.stages.export import export_context
from llmtune.tracking.null import NullTracker

_TIMED = """
import json, sys, time
from pathlib import Path
folder, ids, options = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
sys.path.insert(0, str(folder))
began = time.perf_counter()
from runtime import Runtime
runtime = Runtime(folder, **options)
loaded = time.perf_counter()
best = 0.0
for _ in range(3):
    row = runtime.start([ids], [[1] * len(ids)])[0][-1]
    started = time.perf_counter()
    for _ in range(64):
        row = runtime.step([int(row.argmax())])[0]
    best = max(best, 64 / (time.perf_counter() - started))
print(json.dumps([loaded - began, best]))
"""


def main() -> None:
    arguments = parse_arguments()
    silence_libraries()
    context = export_context(open_run(Path(arguments.run)))
    formats = arguments.formats or list(EXPORT_FORMATS)
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        rows = list(measure(context, formats, Path(work)))
    columns = ("", "MiB", "write+check s", "load s", "tokens/s", "over hf fp32", "KL mean", "same token", "loss rise")
    print_table(f"exports of {arguments.run}", columns, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--formats", nargs="+", choices=list(EXPORT_FORMATS))
    parser.add_argument("--work", help="folder for the exports, which are removed; several times the model's size")
    return parser.parse_args()


def open_run(folder: Path) -> RunContext:
    run = RunFolder(folder.resolve())
    config = load_config(run.config_file)
    return RunContext(config=config, folder=run, manifest=Manifest(run.manifest_file), tracker=NullTracker())


def measure(context: ExportContext, formats: Sequence[str], work: Path) -> Iterator[tuple[str, ...]]:
    """A row a format, and one for `hf` in float32."""
    ids = context.examples.input_ids(0).tolist()[:64]
    gate = Gate(context, work / "asked")
    baseline: float | None = None
    for name in ["hf", *(other for other in formats if other != "hf")]:
        chosen = make_format(name)
        if reason := chosen.why_not(context.subject):
            say(f"{name} {reason}")
            continue
        try:
            done = write_export(chosen, context, work / name, gate)
        except Exception as error:  # the others are measured all the same
            say(f"{name}: {error}")
            continue
        figures = {figure.name: figure.value for figure in done.report.figures}
        if name == "hf":
            load, baseline = timed(done.folder, ids, {"dtype": "float32"})
            yield ("hf in float32", "", "", f"{load:.1f}", f"{baseline:.1f}", "1.00", "", "", "")
        load, speed = timed(done.folder, ids, {})
        yield (
            name,
            f"{done.num_bytes / 2**20:,.0f}",
            f"{done.seconds:.0f}",
            f"{load:.1f}",
            f"{speed:.1f}",
            f"{speed / baseline:.2f}" if baseline else "",
            f"{figures['kl_mean']:.1e}",
            f"{figures['top1_agreement']:.1%}",
            f"{figures['loss_rise']:+.1e}",
        )
    gate.close()


def timed(folder: Path, ids: list[int], options: dict[str, str]) -> tuple[float, float]:
    """Seconds to load, imports included, and tokens per second, the best of three; NaN where it doesn't run here."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", _TIMED, str(folder), json.dumps(ids), json.dumps(options)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        say(f"{folder.name} isn't timed: {done.stderr.splitlines()[-1]}")
        return math.nan, math.nan
    load, speed = json.loads(done.stdout.splitlines()[-1])
    return load, speed


if __name__ == "__main__":
    main()
