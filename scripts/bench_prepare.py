"""Measures how fast data is prepared, beside others who do the same work; prints MB/s, tokens/s, memory and ratios.

Usage: python scripts/bench_prepare.py [--kind text|completion|chat|all] [--megabytes 100] [--rounds 3]
    [--tokenizer FOLDER] [--folder DIR] [--cores N] [--only NAME,...]

- ours: rows to tokens, labels, exact duplicates, splits and Arrow, through `prepare_data`.
- ours with checks: the same with near-duplicates, outliers and personal data looked for, as is the default.
- datasets.map: `load_dataset("json")`, a batched `map` on every core with tokens, labels and content hashes, exact
  duplicates and splits by hash. Its cache file is its Arrow; no table is copied for it.
- library: JSON, template, and the `tokenizers` library on every core, nothing else.
- TRL: the preparation of `SFTTrainer`, where trl is installed.

The rows are cut from the sources of installed packages. Each runs in a process of its own, in turn, the order turned in
each round. Its time starts when all is imported and the tokenizer loaded; its memory is what its processes hold above
that. All must give the same tokens, and but for library and TRL the same labels.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from bench_contenders import CONTENDERS, Examples

KINDS = ("text", "completion", "chat")
ASSETS = Path(__file__).parents[1] / "tests" / "assets"


def write_rows(file: Path, kind: str, num_bytes: int) -> None:
    """Write rows of a kind, each another one, until the file has its size."""
    numbers = random.Random(0)
    paths = sorted(Path(np.__file__).parents[1].rglob("*.py"))
    numbers.shuffle(paths)
    written = number = 0
    with file.open("w", encoding="utf-8") as out:
        while written < num_bytes:
            for piece in _pieces(paths, numbers):
                line = json.dumps(_row(kind, f"# {number}\n{piece}")) + "\n"
                written += out.write(line)
                number += 1
                if written >= num_bytes:
                    break


def _pieces(paths: Sequence[Path], numbers: random.Random) -> Iterator[str]:
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        at = 0
        while at < len(text):
            size = numbers.randint(200, 3000)
            if piece := text[at : at + size].replace("<|", "< |").strip():
                yield piece
            at += size


def _row(kind: str, text: str) -> dict[str, Any]:
    if kind == "text":
        return {"text": text}
    quarters = [len(text) * part // 4 for part in range(5)]
    parts = [text[start:end].strip() or "pass" for start, end in pairwise(quarters)]
    if kind == "completion":
        return {"prompt": f"{parts[0]}\n", "completion": "\n".join(parts[1:])}
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": role, "content": part} for role, part in zip(roles, parts, strict=True)]}


def digest_of(examples: Examples) -> dict[str, Any]:
    """Tokens, examples, and digests of ids and of ids with labels that the order doesn't change."""
    num_tokens = num_examples = ids_sum = labels_sum = 0
    has_labels = True
    for ids, labels in examples:
        raw = np.asarray(ids, np.int64).tobytes()
        ids_sum += int.from_bytes(hashlib.sha256(raw).digest()[:8])
        has_labels = labels is not None
        if labels is not None:
            raw += np.asarray(labels, np.int64).tobytes()
            labels_sum += int.from_bytes(hashlib.sha256(raw).digest()[:8])
        num_tokens += len(ids)
        num_examples += 1
    return {
        "num_tokens": num_tokens,
        "num_examples": num_examples,
        "ids": ids_sum % 2**64,
        "labels": labels_sum % 2**64 if has_labels else None,
    }


def contend(arguments: argparse.Namespace) -> None:
    """Run one contender when the process that started this one says so, and tell it what came out."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        contender = CONTENDERS[arguments.contender](arguments, Path(scratch))
        told = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print doesn't mix with what is told
        print("ready", file=told)
        sys.stdin.readline()
        started = time.perf_counter()
        result = contender.run()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds}), file=told)
        sys.stdin.readline()
        print(json.dumps(digest_of(contender.examples(result))), file=told)


def timed(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, peak memory in MB above what was held at the start, and digests of one contender's run."""
    options = ["--tokenizer", arguments.tokenizer, "--kind", arguments.kind, "--file", arguments.file]
    options += ["--folder", arguments.folder, "--cores", arguments.cores, "--contender", name]
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if not arguments.loud else None,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": str(name == "library").lower()},
    )
    errors: list[str] = []
    if process.stderr is not None:
        threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True).start()
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{name} didn't start:\n{''.join(errors[-30:])}")
    watch = MemoryWatch(process.pid)
    told = []
    for _ in range(2):
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
        watch.stop()
        if not line:
            raise SystemExit(f"{name} failed:\n{''.join(errors[-30:])}")
        told.append(json.loads(line))
    process.communicate()
    return {"peak_mb": watch.peak_mb, **told[0], **told[1]}


class MemoryWatch:
    """Follows the memory of a process and those that it starts, until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._start = self._held()
        self._peak = self._start
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    @property
    def peak_mb(self) -> float:
        """Most resident memory above that of the start, summed over the processes."""
        return (self._peak - self._start) / 1e6

    def stop(self) -> None:
        """Follow no longer."""
        self._is_over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._is_over.wait(0.1):
            self._peak = max(self._peak, self._held())

    def _held(self) -> int:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has just ended
                continue
        return total


def compare(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Run every contender in each round and print what they took."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            found[name].append(timed(name, arguments))
    megabytes = arguments.file.stat().st_size / 1e6
    first = found[names[0]][0]
    print(f"\n{arguments.kind}: {megabytes:.0f} MB, {first['num_examples']:,} examples, {first['num_tokens']:,} tokens")
    print(f"{'':18}{'MB/s':>8}{'from':>8}{'to':>8}{'Mtoken/s':>10}{'peak MB':>9} {names[0]} is  tokens")
    for name in names:
        speeds = [megabytes / run["seconds"] for run in found[name]]
        middle = statistics.median(speeds)
        ratios = [other["seconds"] / run["seconds"] for run, other in zip(found[names[0]], found[name], strict=True)]
        tokens = statistics.median(run["num_tokens"] / run["seconds"] / 1e6 for run in found[name])
        same = all(run["ids"] == first["ids"] and run["labels"] in (first["labels"], None) for run in found[name])
        peak = max(run["peak_mb"] for run in found[name])
        print(
            f"{name:18}{middle:8.2f}{min(speeds):8.2f}{max(speeds):8.2f}{tokens:10.3f}{peak:9.0f}"
            f"{statistics.median(ratios):{len(names[0]) + 3}.2f}x  {'the same' if same else 'OTHERS'}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, default=ASSETS / "tiny_llama")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cores", type=int, default=len(psutil.Process().cpu_affinity() or []))
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--loud", action="store_true", help="show what the contenders print")
    for name, kind in (("contender", str), ("file", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments)
        return
    names = [name for name in CONTENDERS if name != "TRL" or importlib.util.find_spec("trl")]
    if arguments.only:
        names = [name for name in names if name in arguments.only.split(",")]
    libraries = ("tokenizers", "transformers", "datasets", "trl", "fastokens")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in libraries if importlib.util.find_spec(name)]
    print(f"{arguments.cores} cores, {arguments.rounds} rounds; {', '.join(versions)}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        arguments.folder = Path(scratch)
        for kind in KINDS if arguments.kind == "all" else [arguments.kind]:
            arguments.kind, arguments.file = kind, Path(scratch) / f"{kind}.jsonl"
            write_rows(arguments.file, kind, int(arguments.megabytes * 1e6))
            compare(arguments, names)


if __name__ == "__main__":
    main()
