"""One of a run's processes that dies, hangs or fails ends all of them, and the record says why."""

import os
import signal
import time

import pytest

from llmtune.runs.status import RunStatusFile

from .long_runs import alive, start_long

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


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_what_ends_the_command_ends_its_workers(workplace, number, error) -> None:
    run = start_long(workplace)
    run.wait_for("metrics.jsonl")
    started = run.started
    run.process.send_signal(number)
    assert run.end(60)[0] == 128 + number
    assert len(started) >= 3
    assert alive(started) == []
    assert (run.record.status, run.record.error) == ("KILLED", error)


def test_a_peer_that_dies_fails_the_run(workplace) -> None:
    run = start_long(workplace)
    run.wait_for("metrics.jsonl")
    run.workers["1"].kill()
    assert run.end(60)[0] == 128 + signal.SIGKILL
    assert run.record.status == "FAILED"
    assert run.record.error.startswith("process 1 (number ")
    assert "was killed" in run.record.error


def test_a_process_that_is_stopped_ends_all(workplace) -> None:
    """Three runs at once, as each waits for its launcher, which kills only half a minute after it told to stop."""
    ways = {"first": (None, "0"), "second": (None, "1"), "torchrun": ("torchrun", "0")}
    wait = "hardware.peer_timeout_seconds=6"
    runs = {name: start_long(workplace, wait, launcher=way[0], runs_dir=name) for name, way in ways.items()}
    started = []
    for name, run in runs.items():
        run.wait_for("metrics.jsonl")
        started += run.started
        run.workers[ways[name][1]].suspend()
    for name, run in runs.items():
        told = f"process {ways[name][1]} (number "
        status, errors = run.end(120)
        assert status == 1
        assert errors.count(f"llmtune: {told}") == 1
        assert "hasn't been heard of for" in errors
        if name != "torchrun":
            assert "Traceback" not in errors, "torchrun shows its own"
            assert (run.record.status, run.record.error.startswith(told)) == ("FAILED", True)
    assert alive(started) == []
    assert runs["torchrun"].record.status == "RUNNING", "its first process could write nothing, and nobody for it"
    assert workplace.type("runs", "runs_dir=torchrun") == 0
    assert runs["torchrun"].record.status == "KILLED"


def test_a_process_that_lets_the_others_wait_ends_all(workplace, in_second) -> None:
    in_second("time.sleep(12)")
    run = start_long(workplace, "hardware.peer_timeout_seconds=6")
    status, errors = run.end(120)
    assert status == 1
    assert errors.count("has kept the others waiting for") == 1
    assert "raise hardware.peer_timeout_seconds" in errors
    assert run.record.status == "FAILED"
    assert run.record.error.startswith("process 1 (number ")


@pytest.mark.parametrize(
    ("what", "status", "told", "tracebacks"),
    [
        ("raise DataError('rows.jsonl:7: no')", 2, "rows.jsonl:7: no", 0),
        ("raise KeyError('x')", 1, "process 1 failed: KeyError: 'x'", 1),
    ],
    ids=["a mistake", "a bug"],
)
def test_an_error_in_one_process_is_the_runs(workplace, in_second, what, status, told, tracebacks) -> None:
    in_second(what)
    run = start_long(workplace)
    ended, errors = run.end(120)
    assert (ended, run.record.status, run.record.error) == (status, "FAILED", told)
    assert (errors.count("llmtune: "), errors.count("Traceback")) == (1, tracebacks), errors
    assert errors.endswith(f"llmtune: {told}\n")


@pytest.mark.parametrize(("whose", "status"), [("launcher", "FAILED"), ("command", "KILLED")])
def test_a_killed_parent_leaves_nothing_behind(workplace, whose, status) -> None:
    run = start_long(workplace)
    run.wait_for("metrics.jsonl")
    started = run.started
    launcher = run.workers["0"].parent()
    (launcher if whose == "launcher" else run.process).kill()
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
    record = RunStatusFile(run.folder.status_file).read()
    told = "what started the run's processes is gone" if whose == "launcher" else "terminated"
    assert (record.status, record.error) == (status, told)
