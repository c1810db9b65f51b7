"""Completion end to end: the script that `llmtune --shell-completion install=bash` prints, in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.fast, pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")]

SOURCE = Path(__file__).parents[2] / "src"
ASK = """
set -e
eval "$(llmtune --shell-completion install=bash)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_CWORD=$2
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def shell_path(tmp_path) -> str:
    """A PATH with the console script, written as pip writes it."""
    script = tmp_path / "bin" / "llmtune"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom llmtune.cli import main\nsys.exit(main())\n", "utf-8")
    script.chmod(0o755)
    return f"{script.parent}{os.pathsep}{os.environ['PATH']}"


def completed(line: str, shell_path: str, folder: Path) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split()
    number = len(words) if line.endswith(" ") else len(words) - 1
    environment = {**os.environ, "PATH": shell_path, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", line, str(number)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("llmtune prep", ["prepare"]),
        ("llmtune method=", ["method=full", "method=lora", "method=qlora"]),
        ("llmtune train +experiment=quick", ["+experiment=quickstart"]),
        ("llmtune train --model gpt2 train.num_e", ["train.num_epochs="]),
    ],
)
def test_bash_completes_a_line(line, offered, shell_path, tmp_path) -> None:
    assert completed(line, shell_path, tmp_path) == offered


def test_the_working_folders_own_files_are_completed(shell_path, tmp_path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("# @package _global_\n# Mine.\n", encoding="utf-8")
    (tmp_path / "mine.jsonl").touch()
    assert completed("llmtune experiment=mi", shell_path, tmp_path) == ["experiment=mine"]
    assert completed("llmtune train --train-data mi", shell_path, tmp_path) == ["mine.jsonl"]


def test_completion_can_be_taken_away(shell_path, tmp_path) -> None:
    code = 'eval "$(llmtune -sc install=bash)"; eval "$(llmtune -sc uninstall=bash)"; declare -F hydra_bash_completion'
    environment = {**os.environ, "PATH": shell_path, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.stdout == ""
