"""One of a run's processes that dies, hangs or fails ends all of them, and the record says why."""

import os
import signal
import time

import pytest

from .long_runs import alive, start_long

LIMIT = "hardware.peer_timeout_seconds=5"
FAULT = """
import os
if os.environ.get("RANK") == "1":
    import time
    from llmtune.logs import silence_libraries
    silence_libraries()  # before they are imported, as a run does
    from llmtune.errors import DataError
    from llmtune.training import loop

    def at_the_third_step(parts, global_step, step, begin=loop.fitting_gradients):
        if global_step == 2:
            {what}
        return begin(parts, global_step, step)

    loop.fitting_gradients = at_the_third_step
"""


@pytest.fixture
def in_second(workplace, monkeypatch):
    """Has the second process of each run do something in its third step."""

    def plant(what: str) -> None:
        (workplace.folder / "sitecustomize.py").write_text(FAULT.format(what=what))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(workplace.folder), os.environ["PYTHONPATH"]]))

    return plant


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, "terminated"), pytest.param(signal.SIGINT, "interrupted", marks=pytest.mark.slow)],
)
def test_what_ends_the_command_ends_its_workers(workplace, number, error) -> None:
    run = start_long(workplace)
    run.wait_for("metrics.jsonl")
    started = run.started
    run.process.send_signal(number)
    assert run.end(60)[0] == 128 + number
    assert len(started) >= 3
    assert alive(started) == []
    assert run.state == ("KILLED", error)


def test_a_peer_that_dies_fails_the_run(workplace) -> None:
    run = start_long(workplace)
    run.wait_for("metrics.jsonl")
    run.workers["1"].kill()
    assert run.end(60)[0] == 128 + signal.SIGKILL
    status, error = run.state
    assert status == "FAILED"
    assert error.startswith("process 1 (number ")
    assert "was killed" in error


@pytest.mark.slow
def test_a_first_process_that_is_stopped_ends_all(workplace) -> None:
    """Two runs at once, as each waits for its launcher, which kills only half a minute after it told to stop."""
    names: list[str | None] = [None, "torchrun"]
    runs = [start_long(workplace, LIMIT, launcher=name, runs_dir=f"under-{name}") for name in names]
    started = []
    for run in runs:
        run.wait_for("metrics.jsonl")
        started += run.started
        run.workers["0"].suspend()
    ended = [run.end(120) for run in runs]
    assert alive(started) == []
    for status, errors in ended:
        assert (status, errors.count("llmtune: process 0 (number ")) == (1, 1)
        assert "hasn't been heard of for" in errors
    own, others = runs
    assert "Traceback" not in ended[0][1]
    assert own.state[0] == "FAILED"
    assert own.state[1].startswith("process 0 (number ")
    assert others.state == ("RUNNING", ""), "its first process could write nothing, and torchrun doesn't know how"
    assert workplace.type("runs", f"runs_dir={others.runs_dir}") == 0
    assert others.state == ("KILLED", "the process is gone")


@pytest.mark.slow
def test_a_process_that_lets_the_others_wait_ends_all(workplace, in_second) -> None:
    in_second("time.sleep(10)")
    run = start_long(workplace, LIMIT)
    status, errors = run.end(120)
    assert status == 1
    assert errors.count("has kept the others waiting for") == 1
    assert "raise hardware.peer_timeout_seconds" in errors
    assert run.state[0] == "FAILED"
    assert run.state[1].startswith("process 1 (number ")


@pytest.mark.parametrize(
    ("what", "status", "told", "tracebacks"),
    [
        ("raise DataError('rows.jsonl:7: no')", 2, "rows.jsonl:7: no", 0),
        pytest.param("raise KeyError('x')", 1, "process 1 failed: KeyError: 'x'", 1, marks=pytest.mark.slow),
    ],
    ids=["a mistake", "a bug"],
)
def test_an_error_in_one_process_is_the_runs(workplace, in_second, what, status, told, tracebacks) -> None:
    in_second(what)
    run = start_long(workplace)
    ended, errors = run.end(120)
    assert (ended, *run.state) == (status, "FAILED", told)
    assert (errors.count("llmtune: "), errors.count("Traceback")) == (1, tracebacks), errors
    assert errors.endswith(f"llmtune: {told}\n")


@pytest.mark.slow
@pytest.mark.parametrize(("whose", "status"), [("launcher", "FAILED"), ("command", "KILLED")])
def test_a_killed_parent_leaves_nothing_behind(workplace, whose, status) -> None:
    run = start_long(workplace)
    run.wait_for("metrics.jsonl")
    started = run.started
    (run.launcher if whose == "launcher" else run.process).kill()
    ended, errors = run.end(60)
    assert ended == (128 + signal.SIGKILL if whose == "launcher" else -signal.SIGKILL)
    if whose == "launcher":  # torch adds where it lost its store
        assert errors.count("llmtune: ") == errors.count("llmtune: SIGKILL ended what started the run's processes") == 1
    else:
        assert errors == ""
    deadline = time.monotonic() + 60
    while alive(started):
        assert time.monotonic() < deadline, alive(started)
        time.sleep(0.1)
    told = "what started the run's processes is gone" if whose == "launcher" else "terminated"
    assert run.state == (status, told)
