"""Jobs and commands that want the same data prepare it once, also where they start together."""

import json
import subprocess
import sys

import pytest

from .conftest import Workplace
from .test_prepare import ALONE, command, pairs


def _file(workplace: Workplace) -> str:
    """Write 40 rows; the word that names them."""
    (workplace.folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(40)))
    return "data.path=mine.jsonl"


def num_builds(workplace: Workplace) -> tuple[int, int]:
    """How often data was prepared: folders in the cache, and runs whose log says that rows were tokenised."""
    folders = [path for path in (workplace.folder / "cache" / "prepared").iterdir() if path.is_dir()]
    logs = [path.read_text() for path in (workplace.folder / "runs").glob("*/log.txt")]
    assert logs
    return len(folders), sum("tokenising" in log for log in logs)


@pytest.mark.slow
def test_a_sweep_prepares_once_and_each_job_may_write_the_kept_rows(workplace) -> None:
    words = ["-m", "train.learning_rate=0.1,0.01,0.001", *ALONE, _file(workplace), "data.write_clean=clean.jsonl"]
    assert workplace.type(*command(workplace, *words)) == 0
    assert len(list((workplace.folder / "runs").glob("*/log.txt"))) >= 3
    assert num_builds(workplace) == (1, 1)
    assert len((workplace.folder / "clean.jsonl").read_text().splitlines()) == 40


_TOGETHER = """
import sys, time
from pathlib import Path
from llmtune.cli import run
from llmtune.data.preparing import prepared
found_or_built, build = prepared._found_or_built, prepared.build
def together(*given):
    Path(f"ready-{sys.argv[1]}").touch()
    deadline = time.monotonic() + 60
    while len(list(Path().glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return found_or_built(*given)
def slowly(*given):
    time.sleep(0.5)
    return build(*given)
prepared._found_or_built, prepared.build = together, slowly
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.slow
def test_commands_that_start_together_prepare_once(workplace) -> None:
    """Both are about to look for prepared data before either goes on."""
    words = [*ALONE, _file(workplace)]
    (workplace.folder / "together.py").write_text(_TOGETHER)
    started = [
        subprocess.Popen([sys.executable, "together.py", str(number), *command(workplace, *words)])
        for number in range(2)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    assert num_builds(workplace) == (1, 1)
    reports = [path.read_bytes() for path in (workplace.folder / "runs").glob("*/data_report.json")]
    assert len(reports) == 2 and len(set(reports)) == 1
    # control: other data are built
    assert workplace.type(*command(workplace, *words, "data.max_seq_len=24")) == 0
    assert num_builds(workplace) == (2, 2)
