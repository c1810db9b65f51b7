"""Trains the same work through llmtune and through others, in turn; prints speed, memory, start-up, losses and ratios.

Usage: python scripts/bench_train.py [--preset cpu|gpu [--cells NAME,...]] [--model smollm2|llama-1b|FOLDER]
    [--data embedded|rows|mix] [--method lora|qlora|full] [--tokens N] [--contenders NAME,...] [--steps N] [--json FILE]

- ours: llmtune's own `train` with the others' settings: no dropout, and bf16 weights in full fine-tuning.
- ours-defaults: with its own: dropout 0.1, fp32 weights in full fine-tuning. ours-fp32: computing in fp32.
- trainer: transformers' Trainer with PEFT as people call it: fp32, padded. trainer-bf16: computing in bf16.
- trainer-packed: in bf16, examples end to end. trainer-packed-lean: on bf16 weights. trainer-packed-fp32.
- trl, trl-packed: TRL's SFTTrainer, padded and packed. unsloth, unsloth-packed. Each where it is installed.

All get the same tokens and labels, as llmtune prepares them, in the same order: `embedded` is the quick start's data,
8 examples a step; `rows` has 2,048 tokens an example, `mix` a median of 180. Adapters have rank 16 and stand on all
linear layers; QLoRA's base is NF4, quantised twice; the optimizer is fused AdamW.

Each is a process of its own that trains some steps to warm up and waits. Then they train in turn, the same number of
steps each, so that what slows the machine slows all. Speed counts real tokens, padding left out, and is the median of
the turns; memory is a GPU's allocated, or the process's resident. `of peak` is what the tokens need over the matrix
products that the device was measured to do in bf16. `start` is from the process's start until the first step is done;
`compile` is a part of it and of the warm-up. All losses on the first step's examples must agree, else the exit status
is 1. Where memory can't hold all of them at once, set `--resident 2`, as the CPU's preset does: pairs of ours and one
other.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bench_train_contenders import CONTENDERS, environment, search_path, why_not
from bench_train_figures import HEAD, Row, disagreements, figures_of, flops_per_token, groups, line_of, ratios
from bench_train_turns import Contender, ContenderError, Wire
from bench_train_work import Work, make, read_examples

OURS = "ours"
_MAKE = "make"
_MAKING_LIMIT_SECONDS = 1800.0
_DEFAULTS: dict[str, Any] = {
    "model": "smollm2",
    "data": "embedded",
    "method": "lora",
    "tokens": None,
    "steps": 10,
    "warmup": 3,
    "repeats": 3,
    "checkpointing": False,
    "learning_rate": 1e-4,
}
_ON_CPU = ("ours", "trainer", "trainer-bf16", "trainer-packed")
_ON_GPU = {
    "rows": ("ours", "trainer-bf16", "trl-packed", "unsloth"),
    "mix": ("ours", "trainer-bf16", "trl-packed", "unsloth-packed"),
}
_RESIDENT = {"cpu": 2}
"""By preset, how many contenders are alive at once; all, where it isn't said."""
_TOKENS = {"llama-1b": 16384, "llama-8b": 8192, "llama-135m": 32768}


def _gpu_cell(model: str, method: str, data: str, *, checkpointing: bool = False) -> tuple[str, dict[str, Any]]:
    name = f"{model.removeprefix('llama-')}-{method}-{data}" + ("-checkpointing" if checkpointing else "")
    cell = {"model": model, "method": method, "data": data, "tokens": _TOKENS[model], "checkpointing": checkpointing}
    return name, cell | {"contenders": _ON_GPU[data], "steps": 10 if model == "llama-8b" else 20, "warmup": 5}


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "embedded-lora": {"method": "lora", "contenders": _ON_CPU},
        "embedded-qlora": {"method": "qlora", "contenders": _ON_CPU},
        "embedded-full": {"method": "full", "contenders": (*_ON_CPU, "trainer-packed-lean")},
    },
    "gpu": dict(
        [
            *(_gpu_cell("llama-1b", method, data) for method in ("lora", "qlora", "full") for data in _ON_GPU),
            *(_gpu_cell("llama-8b", method, data) for method in ("lora", "qlora") for data in _ON_GPU),
            *(_gpu_cell("llama-135m", "full", data) for data in _ON_GPU),
            _gpu_cell("llama-135m", "lora", "mix"),
            _gpu_cell("llama-1b", "lora", "rows", checkpointing=True),
            _gpu_cell("llama-8b", "lora", "rows", checkpointing=True),
            _gpu_cell("llama-8b", "qlora", "rows", checkpointing=True),
        ]
    ),
}
"""By preset and name, what differs from the defaults."""


def contend(name: str, work: Work) -> None:
    """Be a contender, told what to do by the process that started this one."""
    wire = Wire()
    try:
        if name == _MAKE:
            wire.tell("made", **make(work))
        else:
            CONTENDERS[name].run(work, wire)
    except BaseException as error:
        wire.tell("error", error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:600])
        raise


def started(name: str, work: Work, arguments: argparse.Namespace) -> Contender:
    """A contender's process."""
    entry = CONTENDERS.get(name)
    path = search_path(entry, arguments.unsloth_site, arguments.extra_path) if entry else []
    command = [sys.executable, str(Path(__file__).resolve()), "--contender", name, "--work", json.dumps(asdict(work))]
    return Contender(name, command, environment(path, work.folder), Path(work.folder))


def taking_part(names: Sequence[str], arguments: argparse.Namespace, *, on_gpu: bool) -> list[str]:
    """The contenders that can; of the others it says why not."""
    able = []
    for name in names:
        entry = CONTENDERS[name]
        reason = why_not(entry, search_path(entry, arguments.unsloth_site, arguments.extra_path), on_gpu=on_gpu)
        if reason is None:
            able.append(name)
        else:
            print(f"{name}: {reason}; left out", flush=True)
    return able


def compete(work: Work, names: Sequence[str], arguments: argparse.Namespace) -> list[Row]:
    """Let them train in turn."""
    rows = {name: Row(name) for name in names}
    for group in groups(names, arguments.resident, OURS):
        with contextlib.ExitStack() as stack:
            _compete_at_once([rows[name] for name in group], work, arguments, stack)
    return list(rows.values())


def _compete_at_once(
    rows: Sequence[Row], work: Work, arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> None:
    """Let those train in turn that are alive at once; `stack` ends them."""
    alive: dict[str, Contender] = {}

    def start(name: str) -> None:
        alive[name] = started(name, work, arguments)
        stack.callback(alive[name].end)

    if arguments.start_together:
        for row in rows:
            start(row.name)
    for row in rows:
        if row.name not in alive:
            start(row.name)
        _warm_up(row, alive, arguments.limit)
    _take_turns({row.name: row for row in rows}, alive, work.repeats, arguments.limit)


def _warm_up(row: Row, alive: dict[str, Contender], limit_seconds: float) -> None:
    contender = alive[row.name]
    try:
        contender.hear("imported", limit_seconds)
        contender.order("build")
        told = contender.hear("ready", limit_seconds)
        row.ready = row.ready or told
    except ContenderError as error:
        row.error = str(error)
        del alive[row.name]


def _take_turns(rows: dict[str, Row], alive: dict[str, Contender], repeats: int, limit_seconds: float) -> None:
    before = {name: len(rows[name].turns) for name in alive}
    for _ in range(repeats):
        for name, contender in list(alive.items()):
            contender.order("go")
            try:
                rows[name].turns.append(contender.hear("turn", limit_seconds))
            except ContenderError as error:
                rows[name].error = str(error)
                del alive[name]
    if OURS in before:
        ours = rows[OURS].rates[before[OURS] :]
        for name, at in before.items():
            rows[name].ratios += ratios(ours, rows[name].rates[at:])


def run_cell(cell: str, arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one piece of work through all contenders and print what came out; the same as plain values."""
    names = settings.pop("contenders")
    asked = Work(**settings, folder=str(arguments.folder))
    maker = started(_MAKE, asked, arguments)
    try:
        made = maker.hear("made", _MAKING_LIMIT_SECONDS)
    finally:
        maker.end()
    work = Work(**made["work"])
    lengths = read_examples(work).lengths
    flops = flops_per_token(made["shape"], work.method, lengths)
    size = f"{work.tokens:,} tokens" if work.tokens else "8 examples"
    print(
        f"\n{cell}: {asked.model}, {work.method}, {work.data}, {size} a step, {work.steps} steps a turn"
        f"{', activations computed again' if work.checkpointing else ''}; {len(lengths):,} examples, "
        f"{lengths.mean():.0f} tokens on average; {flops / 1e9:.2f} GFLOP a token; {made['device']}: "
        f"{made['peak'] / 1e12:.2f} TFLOP/s in bf16",
        flush=True,
    )
    rows = compete(work, taking_part(names, arguments, on_gpu=made["on_gpu"]), arguments)
    figures = [figures_of(row, flops, made["peak"]) for row in rows]
    problems = disagreements(rows)
    print("\n".join([HEAD, *map(line_of, figures), *problems]), flush=True)
    facts = {"flops_per_token": flops, "device": made["device"], "peak": made["peak"], "versions": made["versions"]}
    return {"cell": cell, "work": asdict(work), **facts, "contenders": figures, "disagreements": problems}


def cells_of(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Settings by cell: the preset's, and over them what was typed."""
    typed = {name: getattr(arguments, name) for name in _DEFAULTS if getattr(arguments, name) is not None}
    if arguments.contenders:
        typed["contenders"] = tuple(arguments.contenders.split(","))
    if arguments.preset is None:
        return {"as typed": {**_DEFAULTS, "contenders": _ON_CPU, **typed}}
    cells = PRESETS[arguments.preset]
    chosen = arguments.cells.split(",") if arguments.cells else list(cells)
    return {name: {**_DEFAULTS, **cells[name], **typed} for name in chosen}


def _check(arguments: argparse.Namespace, cells: dict[str, dict[str, Any]]) -> None:
    unknown = {name for settings in cells.values() for name in settings["contenders"]} - set(CONTENDERS)
    if unknown:
        raise SystemExit(f"--contenders: {', '.join(sorted(unknown))}: known are {', '.join(CONTENDERS)}")
    if any((settings["data"] == "embedded") == bool(settings["tokens"]) for settings in cells.values()):
        raise SystemExit("--tokens: goes with --data rows and mix, which need it; embedded has 8 examples a step")
    if arguments.resident is not None and arguments.resident < 1:
        raise SystemExit(f"--resident {arguments.resident}: at least 1")


def _folder(typed: str) -> str:
    return str(Path(typed).absolute())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--cells", help="of the preset, with commas between them")
    kinds = {field.name: field.type for field in fields(Work)}
    for name in _DEFAULTS:
        if name == "checkpointing":
            parser.add_argument("--checkpointing", action="store_true", default=None)
            continue
        kind = {int: int, float: float, int | None: int}.get(kinds[name], str)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--contenders", help=f"with commas between them: {', '.join(CONTENDERS)}")
    parser.add_argument(
        "--resident", type=int, help="contenders that stay alive at once; if left out 2 on a CPU's preset, else all"
    )
    parser.add_argument("--limit", type=float, default=900.0, help="seconds until a contender is ready, and a turn's")
    parser.add_argument("--start-together", action="store_true", help="import at once what each contender needs")
    parser.add_argument("--folder", type=Path, help="keeps models and data; else they go when all is done")
    parser.add_argument("--json", type=Path, help="gets all figures")
    parser.add_argument("--unsloth-site", type=_folder, help="folder that Unsloth and its own TRL are installed in")
    parser.add_argument(
        "--extra-path", type=_folder, action="append", default=[], help="folder on TRL's and Unsloth's path"
    )
    for name in ("contender", "work"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.contender:
        contend(arguments.contender, Work(**json.loads(arguments.work)))
        return 0
    if arguments.preset and arguments.cells:
        unknown = set(arguments.cells.split(",")) - set(PRESETS[arguments.preset])
        if unknown:
            raise SystemExit(f"--cells: {', '.join(sorted(unknown))}: known are {', '.join(PRESETS[arguments.preset])}")
    if arguments.resident is None:
        arguments.resident = _RESIDENT.get(arguments.preset)
    cells = cells_of(arguments)
    _check(arguments, cells)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends the contenders as well
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        arguments.folder = (arguments.folder or Path(scratch)).absolute()
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for cell, settings in cells.items():
            try:
                results.append(run_cell(cell, arguments, settings))
            except ContenderError as error:
                print(f"{cell}: can't be made: {error}", flush=True)
                results.append({"cell": cell, "disagreements": [], "error": str(error)})
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return int(any(result["disagreements"] or "error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
