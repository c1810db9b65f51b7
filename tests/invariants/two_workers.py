"""A script run as two processes of one group."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 150


def run_two(script: Path, model_folder: Path, results: Path, *more: Path) -> list[Any]:
    """Run `script MODEL_FOLDER RESULTS ...` as ranks 0 and 1; what each left in `rank<N>.json`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(script), str(model_folder), str(results), *map(str, more)]
    workers = [
        subprocess.Popen(command, env={**environment, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=_TIMEOUT_SECONDS)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    return [json.loads((results / f"rank{rank}.json").read_text()) for rank in (0, 1)]
