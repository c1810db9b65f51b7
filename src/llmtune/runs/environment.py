"""On what a run computes: versions, machine, commit of the working folder."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

CORES_VARIABLE = "LLMTUNE_NUM_CORES"
"""Environment variable that gives a sweep's job its share of the machine's CPU cores."""
JOBS_AT_ONCE_VARIABLE = "LLMTUNE_JOBS_AT_ONCE"
"""Environment variable that gives a sweep's job the number of jobs, itself included, that share its GPU or CPU."""
BASE_EVALUATIONS_VARIABLE = "LLMTUNE_BASE_EVALUATIONS"
"""Environment variable that gives a sweep's job the folder which keeps the base model's evaluations for all of them."""
_PACKAGES = ("llmtune", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "safetensors")
_MORE_PACKAGES = ("hydra-core", "omegaconf", "mlflow", "datasets", "numpy", "sympy", "networkx")


def describe_environment() -> dict[str, Any]:
    """Versions of Python and the packages that decide a run's numbers, the machine, and the git commit."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*_PACKAGES, *_MORE_PACKAGES)},
        "system": f"{platform.system()} {platform.machine()}",
        "num_cores": usable_cores(),
        "git_commit": git_commit(),
    }


def usable_cores() -> int:
    """CPU cores that this process may use; its share, where a sweep runs jobs side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, int(os.environ.get(CORES_VARIABLE, cores)))


def jobs_at_once() -> int:
    """How many jobs of a sweep, this process's included, may compute on its GPU or CPU at once; 1 for it alone."""
    return int(os.environ.get(JOBS_AT_ONCE_VARIABLE, "1"))


def git_commit() -> str | None:
    """The commit of the working folder, with `+changes` where files differ from it; None outside a repository."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return f"{head}+changes" if _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
