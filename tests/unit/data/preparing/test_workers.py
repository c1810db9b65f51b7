"""Results come in order, processes end with us, and their ends are told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llmtune.data.preparing.workers import Workers
from llmtune.errors import DataError, LlmtuneError, message_of

pytestmark = pytest.mark.fast
HERE = Path(__file__).parent


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> type:
    """The work, importable here and in the processes."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    import work

    return work.Square


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_come_in_the_tasks_order(square, num_workers):
    with Workers(num_workers) as workers:
        for seconds in (0.0, 0.01):  # a second round teaches other work
            found = list(workers.map(square(seconds), range(20)))
            assert [value for value, _ in found] == [number**2 for number in range(20)]
            pids = {pid for _, pid in found}
            assert pids == {os.getpid()} if num_workers == 0 else os.getpid() not in pids
    assert not any(psutil.pid_exists(pid) for pid in pids - {os.getpid()})


def test_tasks_are_drawn_as_they_are_needed(square):
    drawn = []
    with Workers(2) as workers:
        results = workers.map(square(), (drawn.append(number) or number for number in range(100)))
        next(results)
        assert len(drawn) <= 6
        results.close()


def test_an_error_of_the_work_is_raised_here_as_it_was(square):
    with Workers(2) as workers, pytest.raises(DataError) as caught:
        list(workers.map(square(fails_at=7), range(30)))
    assert message_of(caught.value).splitlines() == [
        "7 problems",
        "  a.jsonl:3: no",
        "  a.jsonl:4: no",
        "  ... and 5 more problems like these",
        "  mend them",
    ]


def test_a_killed_process_is_told(square):
    with Workers(2) as workers, pytest.raises(LlmtuneError, match=r"ended by SIGKILL \(short of memory\?\); try data"):
        list(workers.map(square(dies_at=3), range(30)))


def test_processes_end_with_the_one_that_started_them(square):
    script = (
        "import os, signal, work\n"
        "from llmtune.data.preparing.workers import Workers\n"
        "workers = Workers(2)\n"
        "print(*{pid for _, pid in workers.map(work.Square(0.05), range(8))}, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_script_without_a_main_guard_is_not_run_again(square, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import work\nfrom llmtune.data.preparing.workers import Workers\n"
        "with Workers(2) as workers:\n    print(sum(value for value, _ in workers.map(work.Square(), range(4))))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "14\n"


def notes_of(work, monkeypatch, how, kind):
    with Workers(1) as workers, pytest.raises(kind) as caught:
        list(workers.map(work.Fails(how), range(2)))
    return str(caught.value), "".join(getattr(caught.value, "__notes__", []))


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("bug", KeyError, "'lost'"),
        ("awkward", RuntimeError, "Awkward: this and that"),
        ("panic", RuntimeError, "Panic: index out of bounds"),
        ("local", RuntimeError, "Local: from nowhere"),
    ],
)
def test_a_bug_arrives_with_its_traceback(square, monkeypatch, how, kind, said):
    work = sys.modules["work"]
    message, notes = notes_of(work, monkeypatch, how, kind)
    assert message == said
    assert "in a process that prepares the data:\nTraceback" in notes
    assert "work.py" in notes and "__call__" in notes


def test_what_cannot_be_sent_back_is_told(square, monkeypatch):
    message, notes = notes_of(sys.modules["work"], monkeypatch, "result", Exception)
    assert "pickle" in message and "Traceback" in notes


def test_an_error_for_a_user_shows_no_traceback(square):
    with Workers(1) as workers, pytest.raises(DataError) as caught:
        list(workers.map(square(fails_at=0), range(1)))
    assert not getattr(caught.value, "__notes__", [])


def test_nothing_is_imported_from_the_working_folder(square, tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("")
    (tmp_path / "numpy.py").write_text("raise SystemExit('not that one')")
    monkeypatch.chdir(tmp_path)
    with Workers(1) as workers:
        for name in ("jinja2", "numpy"):
            (found,) = workers.map(sys.modules["work"].Imports(name), range(1))
            assert Path(found).parent.name == name


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.5])
def test_ctrl_c_ends_all_without_a_traceback_of_theirs(square, seconds):
    script = (
        "import work\n"
        "from llmtune.data.preparing.workers import Workers\n"
        "try:\n"
        "    with Workers(3) as workers:\n"
        "        print(*(process._process.pid for process in workers._processes), flush=True)\n"
        "        for _ in workers.map(work.Square(0.05), range(10**9)):\n"
        "            pass\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        pids = [int(pid) for pid in started.stdout.readline().split()]
        time.sleep(seconds)
        os.killpg(started.pid, signal.SIGINT)
        said, errors = started.communicate(timeout=60)
    assert (said, errors) == ("interrupted\n", "")
    assert len(pids) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids)
