"""Runs each export of a folder in an environment of its own, with what its model card names and nothing of llmtune.

    python scripts/try_exports.py runs/NAME/exports --prompt "def fibonacci("

Each environment is made with `python -m venv` and pip. The texts of the float32 formats have to be the same. Formats
of torch alone are asked by token ids first, before their tokenizer's package is there.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtune.config.export import EXPORT_FORMATS
from llmtune.export.registry import make_format
from llmtune.logs import print_table

_EQUAL = ("hf", "onnx", "torchscript", "torch_export")
_TORCH_ALONE = ("torchscript", "torch_export")


def main() -> None:
    arguments = parse_arguments()
    folder = Path(arguments.exports).resolve()
    names = [name for name in arguments.formats or EXPORT_FORMATS if (folder / name).is_dir()]
    rows = list(run_all(folder, names, arguments))
    print_table(f"exports of {folder}", ("", "installed", "text"), rows)
    texts = {name: text for name, _, text in rows if name in _EQUAL}
    if len(set(texts.values())) > 1:
        sys.exit(f"the texts of {', '.join(texts)} differ")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", help="folder with a folder a format")
    parser.add_argument("--formats", nargs="+", choices=list(EXPORT_FORMATS))
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip installs for torch")
    return parser.parse_args()


def run_all(folder: Path, names: Sequence[str], arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """A row a format: what was installed, and what it wrote."""
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            venv.create(place, with_pip=True)
            python = Path(place) / "bin" / "python"
            packages = make_format(name).packages.replace("torch", arguments.torch, 1).split()
            if name in _TORCH_ALONE:
                install(python, packages[:1])
                written(python, folder / name, ["--ids", "1,2,3", "--max-new-tokens", "4"])
            install(python, packages)
            text = written(python, folder / name, [arguments.prompt, "--max-new-tokens", str(arguments.tokens)])
            yield name, " ".join(packages), text


def install(python: Path, packages: Sequence[str]) -> None:
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *packages], check=True)


def written(python: Path, folder: Path, arguments: Sequence[str]) -> str:
    """What `run.py` writes; nothing of this environment is seen by it."""
    command = [python, folder / "run.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PATH": ""}, check=False)
    if done.returncode:
        sys.exit(f"{folder}: {done.stderr[-2000:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
