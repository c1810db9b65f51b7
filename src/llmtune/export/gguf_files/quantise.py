"""llama.cpp's own quantiser, in its Python package or as a program."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from llmtune.errors import ExportCheckFailed

_PROGRAM = "llama-quantize"
_LAST_LINES = 3
_IN_PYTHON = """
import sys
import llama_cpp

llama_cpp.llama_backend_init()
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3])
settings.nthread = int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), settings))
"""
"""In a process of its own: a fault in C ends only that one."""


def has_llama_cpp() -> bool:
    """Whether llama.cpp's Python package is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def why_not() -> str | None:
    """Why nothing can be quantised here; None where it can."""
    if has_llama_cpp() or shutil.which(_PROGRAM):
        return None
    return f"needs llama.cpp's quantiser; `pip install llama-cpp-python`, or put its {_PROGRAM} on the PATH"


def quantise(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF file with coarser weights.

    Args:
        source: file with F16 or F32 weights.
        target: the new file.
        kind: llama.cpp's name of the mixture, such as `Q4_K_M`.

    Raises:
        ExportCheckFailed: the quantiser failed.
    """
    threads = str(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if has_llama_cpp():
        command = [sys.executable, "-P", "-c", _IN_PYTHON, str(source), str(target), kind, threads]
    else:
        command = [_PROGRAM, str(source), str(target), kind, threads]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not target.exists():
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise ExportCheckFailed(f"llama.cpp's quantiser ended with status {done.returncode}: {said}")
