import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from llmtune.errors import RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile, at_work, check_not_running, find_dead_runs, without_credentials

pytestmark = pytest.mark.fast


def _run_that_ends_without_a_word(folder):
    folder.mkdir(parents=True)
    code = "from pathlib import Path; from llmtune.runs.status import RunStatusFile\n"
    code += f"RunStatusFile(Path({str(folder / 'status.json')!r})).start('abc'); import os; os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9


def test_a_run_goes_from_running_to_its_end(tmp_path):
    file = RunStatusFile(tmp_path / "status.json")
    assert file.read() is None
    file.start("abc", "http://me:hunter2@host:5000")
    record = file.read()
    assert (record.status, record.pid, record.mlflow_run_id) == ("RUNNING", os.getpid(), "abc")
    assert record.tracking_uri == "http://host:5000"
    file.end("FAILED", "first line http://me:hunter2@host\nsecond line")
    ended = file.read()
    assert (ended.status, ended.error) == ("FAILED", "first line http://host")
    assert ended.ended_at >= ended.started_at == record.started_at
    assert "hunter2" not in (tmp_path / "status.json").read_text()


def test_a_run_that_goes_on_keeps_its_first_start(tmp_path):
    file = RunStatusFile(tmp_path / "status.json")
    file.start()
    content = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps({**content, "started_at": "2020-01-01T00:00:00+00:00"}))
    assert file.start().started_at == "2020-01-01T00:00:00+00:00"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "RUNNING"}'])
def test_a_damaged_file_reads_as_none(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert RunStatusFile(tmp_path / "status.json").read() is None


def test_only_runs_whose_process_is_gone_are_dead(tmp_path):
    _run_that_ends_without_a_word(tmp_path / "dead")
    _run_that_ends_without_a_word(tmp_path / "sweep" / "job")
    for name in ("alive", "finished"):
        (tmp_path / name).mkdir()
        RunStatusFile(tmp_path / name / "status.json").start()
    RunStatusFile(tmp_path / "finished" / "status.json").end("FINISHED")
    assert sorted(run.path.name for run in find_dead_runs(tmp_path)) == ["dead", "job"]


def test_a_reused_process_number_and_another_host_are_told_apart(tmp_path):
    record = RunStatusFile(RunFolder(tmp_path).status_file).start()
    assert not record.process_is_gone()
    assert replace(record, process_started=record.process_started - 100).process_is_gone()
    assert not replace(record, host="elsewhere", pid=2**22 + 1).process_is_gone()
    assert replace(record, pid=2**22 + 1).process_is_gone()


def test_credentials_leave_every_uri():
    assert without_credentials("see postgresql://u:p%40ss@db/x and http://t@h") == "see postgresql://db/x and http://h"
    assert without_credentials("mail a@b.c, sqlite:////tmp/x.db") == "mail a@b.c, sqlite:////tmp/x.db"


def _recorded_as_running_by(folder, code):
    start = (
        f"from pathlib import Path; from llmtune.runs.status import RunStatusFile\nRunStatusFile(Path({str(folder)!r})"
    )
    return subprocess.Popen([sys.executable, "-c", f"{start} / 'status.json').start()\n{code}"], stdin=subprocess.PIPE)


def test_a_run_that_another_process_works_on_is_not_entered(tmp_path):
    process = _recorded_as_running_by(tmp_path, "print(input())")
    deadline = time.monotonic() + 30
    while RunStatusFile(tmp_path / "status.json").read() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(RunError, match=f"still running as process {process.pid};"):
        check_not_running(RunFolder(tmp_path))
    process.communicate(b"go\n", timeout=30)
    check_not_running(RunFolder(tmp_path))


def test_a_run_may_be_entered_by_its_own_process_and_what_that_starts(tmp_path):
    check_not_running(RunFolder(tmp_path))
    RunStatusFile(tmp_path / "status.json").start()
    check_not_running(RunFolder(tmp_path))
    code = "import sys; from pathlib import Path; from llmtune.runs.layout import RunFolder\n"
    code += "from llmtune.runs.status import check_not_running; check_not_running(RunFolder(Path(sys.argv[1])))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


AT_WORK = """
import os, sys, time
from pathlib import Path
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import at_work
with at_work(RunFolder(Path(sys.argv[1]))):
    if sys.argv[2] == "with a child" and os.fork() == 0:
        time.sleep(60)
    print("at work", os.getpid(), flush=True)
    input()
"""


@pytest.fixture
def other(tmp_path, request):
    """Another process at work on the run, which has recorded nothing yet."""
    code = [sys.executable, "-c", AT_WORK, str(tmp_path), getattr(request, "param", "alone")]
    process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    assert process.stdout.readline().startswith(b"at work")
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with process:
        pass


def _enter(folder):
    with at_work(RunFolder(folder)):
        return True


def test_of_two_processes_one_gets_to_work_before_either_has_recorded_anything(tmp_path, other):
    check_not_running(RunFolder(tmp_path))  # the record alone doesn't tell
    with pytest.raises(RunError, match="another process is at work on the run; wait for its end"):
        _enter(tmp_path)
    other.communicate(b"go\n", timeout=30)
    assert _enter(tmp_path)


def test_the_process_that_is_at_work_is_named_where_it_is_recorded(tmp_path, other):
    RunStatusFile(tmp_path / "status.json").start()
    record = json.loads((tmp_path / "status.json").read_text())
    started = psutil.Process(other.pid).create_time()
    (tmp_path / "status.json").write_text(json.dumps({**record, "pid": other.pid, "process_started": started}))
    with pytest.raises(RunError, match=f"still running as process {other.pid};"):
        _enter(tmp_path)


@pytest.mark.parametrize("other", ["alone", "with a child"], indirect=True)
def test_a_killed_process_lets_the_next_one_in(tmp_path, other):
    other.kill()
    other.wait()
    assert _enter(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_ends_no_run(tmp_path, monkeypatch, capsys, number):
    def lockf(file, flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", lockf)
    assert _enter(tmp_path)
    assert "start no second command on the run meanwhile" in capsys.readouterr().out


def test_a_run_starts_anew_in_the_mlflow_run_that_it_had(tmp_path):
    file = RunStatusFile(tmp_path / "status.json")
    assert file.start_anew().mlflow_run_id is None
    file.start("abc", "http://host:5000")
    file.end("KILLED")
    record = file.start_anew()
    assert (record.status, record.mlflow_run_id, record.tracking_uri) == ("RUNNING", "abc", "http://host:5000")
