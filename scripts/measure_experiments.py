"""Runs experiments one after another and prints the line with figures that stands at the head of each one's file.

Usage: python scripts/measure_experiments.py [--only A,B] [--device-words "One H100"] [--folder DIR] [KEY=VALUE ...]

Each is typed as a person would, `python -m llmtune +experiment=NAME`, in a working folder of its own; those that read a
file get the ones that `scripts/examples/make_example_files.py` writes. What is given as KEY=VALUE goes to all of them.
Nothing needs the network once the embedded model stands in the cache. Time is the whole command's, start and export
included; memory is the highest of any training; `before` is the base model's loss.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
UNMEASURED = ("debug",)
"""What runs in the checkout on random weights."""
FILES = {
    "domain_text": ("data.path=science_text.jsonl", "data.eval_path=science_eval.jsonl"),
    "code_generation": ("data.path=python_code.jsonl",),
    "creative_writing": ("data.path=package_prose.jsonl",),
}
"""The files of examples that stand in for a person's own."""
LINE_LENGTH = 120


@dataclass(frozen=True)
class Job:
    """What one training came to."""

    name: str
    """The values that tell it from the sweep's others; empty for a single run."""
    peak_memory_gib: float
    base_loss: float | None
    loss: float


def header(device: str, seconds: float, jobs: Sequence[Job]) -> str:
    """The line of figures, as the head of the experiment's file has it; broken where it is too long.

    Args:
        device: what it was measured on, in words.
        seconds: wall time of the whole command.
        jobs: the run, or the jobs of the sweep.
    """
    memory = max(job.peak_memory_gib for job in jobs)
    line = f"{device}: {_duration(seconds)}, peak memory {memory:.1f} GiB, {_losses(jobs)}."
    return textwrap.fill(line, LINE_LENGTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def read_jobs(runs: Path) -> list[Job]:
    """The trainings that a folder of runs records, a sweep's in their order.

    Args:
        runs: the folder, in which one run or one sweep was made.

    Raises:
        ValueError: there is no run or more than one, or one that has no figures.
    """
    summaries = list(runs.glob("*-sweep-*/summary.json"))
    if summaries:
        (summary,) = summaries
        return [_job(_values(entry["differences"]), entry, entry) for entry in json.loads(summary.read_text())]
    (manifest,) = runs.glob("*/manifest.json")
    stages = json.loads(manifest.read_text())["stages"]
    return [_job("", stages.get("train", {}), stages.get("evaluate", {}))]


def measure(name: str, folder: Path, overrides: Sequence[str]) -> tuple[float, list[Job]]:
    """Run an experiment in `folder`, its output going to the standard error.

    Returns:
        Seconds of wall time, and what came out.

    Raises:
        ValueError: it failed, or left no figures.
    """
    runs = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    words = [f"+experiment={name}", *FILES.get(name, ()), f"runs_dir={runs}", *overrides]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "llmtune", *words],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise ValueError(f"ended with exit status {done.returncode}; its records: {runs}")
    return seconds, read_jobs(runs)


def main(arguments: Sequence[str]) -> int:
    """Measure what is asked for; 1 where one of them failed."""
    known = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))
    options = _options(arguments, known)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="llmtune-measured-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"working folder: {folder}", file=sys.stderr)
    if any(name in FILES for name in options.only):
        _write_example_files(folder)
    failed = False
    for name in options.only:
        try:
            seconds, jobs = measure(name, folder, options.overrides)
        except ValueError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        where = options.device_words + _data_words(name, options.overrides)
        print(f"experiments/{name}.yaml\n{header(where, seconds, jobs)}", flush=True)
    return int(failed)


def _options(arguments: Sequence[str], known: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    measured = [name for name in known if name not in UNMEASURED]
    parser.add_argument("--only", default=",".join(measured), help="names of experiments, with commas between")
    parser.add_argument(
        "--device-words", default=f"{os.cpu_count()} CPU cores", help="what it runs on, as you'd say it"
    )
    parser.add_argument("--folder", help="working folder; left out, a new one for temporary files")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what every experiment gets on top")
    options = parser.parse_intermixed_args(arguments)
    options.only = options.only.split(",")
    for name in options.only:
        if name not in known:
            parser.error(f"--only {name}: there is no such experiment; known: {', '.join(known)}")
    return options


def _write_example_files(folder: Path) -> None:
    script = ROOT / "scripts" / "examples" / "make_example_files.py"
    subprocess.run([sys.executable, str(script), str(folder)], env=_environment(), stdout=sys.stderr, check=True)


def _environment() -> dict[str, str]:
    """This process's, with this checkout's llmtune before any other."""
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _job(name: str, train: Mapping[str, Any], evaluate: Mapping[str, Any]) -> Job:
    if train.get("peak_memory_gib") is None or evaluate.get("loss") is None:
        raise ValueError(f"{name or 'the run'} recorded no memory or no test loss")
    return Job(name, train["peak_memory_gib"], evaluate.get("base_loss"), evaluate["loss"])


def _values(differences: Mapping[str, Any]) -> str:
    return " ".join(str(value) for value in differences.values())


def _data_words(name: str, overrides: Sequence[str]) -> str:
    """What it was measured on, where the experiment's name doesn't tell and nobody chose it."""
    if name == "quickstart" or any(override.startswith("data") for override in overrides):
        return ""
    return f", on {FILES[name][0].partition('=')[2]}" if name in FILES else ", on the quick start's data"


def _losses(jobs: Sequence[Job]) -> str:
    bases = {f"{job.base_loss:.3f}" for job in jobs if job.base_loss is not None}
    before = f"{bases.pop()} before and " if len(bases) == 1 else ""
    if len(jobs) == 1:
        return f"test loss {before}{jobs[0].loss:.3f} after"
    return f"test loss {before}{', '.join(f'{job.loss:.3f} ({job.name})' for job in jobs)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
