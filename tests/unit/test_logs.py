"""What a person sees."""

import logging
import os
import pty
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from llmtune import logs
from llmtune.logs import silence_libraries

pytestmark = pytest.mark.fast


def test_a_table_shows_brackets_as_they_are() -> None:
    code = (
        "from llmtune.logs import print_table; print_table('[bold]t', ('[c]', 'd'), [('[q_proj,v_proj]', '[/b] :x:')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for text in ("[bold]t", "[c]", "[q_proj,v_proj]", "[/b] :x:"):
        assert text in shown


def test_only_the_named_warnings_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_libraries()
        warnings.warn("`torch.jit.script_method` is deprecated. Please switch", DeprecationWarning, stacklevel=1)
        warnings.warn("another thing is deprecated", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["another thing is deprecated"]


@dataclass
class Display:
    """What IPython was asked to show: an output for each display, its pictures in turn."""

    outputs: list[list[str]] = field(default_factory=list)

    def __call__(self, data, *, raw=False, display_id=None):
        if not raw:  # rich's own, a line that was said
            data = data._repr_mimebundle_([], [])
        self.outputs.append([data["text/plain"]])
        output = self.outputs[-1]
        return SimpleNamespace(update=lambda later, raw: output.append(later["text/plain"]))


@pytest.fixture
def notebook(monkeypatch) -> Display:
    """A notebook in place of the terminal."""
    display = Display()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=SimpleNamespace(display=display)))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(logs, "_console", Console(force_jupyter=True, width=120))
    return display


def test_a_notebook_shows_one_bar_that_is_drawn_anew(notebook, monkeypatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock.now)
    before = threading.active_count()
    with logs.progress("train", 1000) as line:
        for step in range(1000):
            clock.now += 0.05
            line.advance(note=f"loss {step}")
        assert threading.active_count() == before
    (pictures,) = notebook.outputs
    assert 80 <= len(pictures) <= 120  # 50 seconds, two pictures a second
    assert "0/1000" in pictures[0]
    assert "1000/1000" in pictures[-1]
    assert "loss 999" in pictures[-1]
    assert pictures[-1].count("\n") == 1


def test_a_bar_within_a_bar_stands_in_the_same_output(notebook) -> None:
    with logs.progress("train", 2) as outer:
        outer.advance()
        with logs.progress("validate", 3) as inner:
            inner.advance(3)
        outer.advance()
    (pictures,) = notebook.outputs
    assert "2/2" in pictures[-1]
    assert "validate" not in pictures[-1]


def test_an_interrupted_bar_stays_as_far_as_it_came(notebook) -> None:
    with pytest.raises(KeyboardInterrupt), logs.progress("train", 4) as line:
        line.advance(3)
        raise KeyboardInterrupt
    assert "3/4" in notebook.outputs[0][-1]
    with logs.progress("evaluate", 1):
        pass
    assert len(notebook.outputs) == 2


def test_a_quiet_process_shows_no_bar(notebook) -> None:
    logs._console.quiet = True
    with logs.progress("train", 1) as line:
        line.advance()
    assert notebook.outputs == []


def test_without_a_terminal_or_a_notebook_a_line_stands_for_the_bar(monkeypatch, capsys) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock.now)
    with logs.progress("train", 40) as line:
        for _ in range(40):
            clock.now += 1
            line.advance()
    shown = capsys.readouterr().out.splitlines()
    assert [text.split(" ")[1] for text in shown] == ["15/40", "30/40", "40/40"]


def test_a_warning_before_logging_starts_is_shown_once() -> None:
    code = "from llmtune.logs import warn; warn('look out')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (shown.stdout + shown.stderr).count("look out") == 1


def test_the_remark_on_long_texts_alone_is_silenced(caplog) -> None:
    silence_libraries()
    source = logging.getLogger("transformers.tokenization_utils_base")
    source.propagate = True
    with caplog.at_level(logging.WARNING):
        source.warning("Token indices sequence length is longer than the specified maximum (9 > 8)")
        source.warning("another thing")
    assert "another thing" in caplog.messages
    assert not any("Token indices" in message for message in caplog.messages)


SAYS = """
import sys
from llmtune.logs import progress, say
for number in range(100):
    say(f"line {number}")
with progress("train", 2) as bar:
    bar.advance()
print("of another")
print("went on", file=sys.stderr)
"""


@pytest.mark.parametrize("gone", ["a pipe", "a terminal", "closed"])
def test_where_what_is_said_can_not_be_shown_the_work_goes_on(gone) -> None:
    near, far = pty.openpty() if gone == "a terminal" else os.pipe()
    os.close(near)
    command = [sys.executable, "-c", SAYS]
    if gone == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", SAYS]
    done = subprocess.run(command, stdout=far, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(far)
    assert (done.returncode, done.stderr) == (0, "went on\n")


def test_a_full_disk_beneath_standard_output_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", SAYS], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "No space left on device" in done.stderr
