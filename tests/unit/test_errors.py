"""What a person reads of an error."""

import errno

import pytest

from llmtune import cli, worker
from llmtune.errors import ConfigError, LlmtuneError, RunError, explained, report

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "is a file"),
        (errno.EISDIR, "is a folder"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_its_cure(number, words) -> None:
    line = explained(OSError(number, "text", "/data/x"))
    assert line is not None
    assert line.startswith("/data/x: ")
    assert words in line
    assert "\n" not in line


def test_an_error_without_a_cure_stays_a_bug() -> None:
    assert explained(FileNotFoundError(errno.ENOENT, "text", "/data/x")) is None
    assert explained(FileExistsError(errno.EEXIST, "text", "/data/x")) is None
    assert explained(OSError("no number")) is None


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (LlmtuneError("disk"), 1, "llmtune: disk\n"),
        (RunError("gone"), 2, "llmtune: gone\n"),
        (ConfigError(["a", "b"]), 2, "llmtune: 2 problems\n  a\n  b\n"),
    ],
)
def test_an_error_is_reported_by_the_first_process_alone(capsys, monkeypatch, error, status, shown) -> None:
    assert report(error) == status
    assert capsys.readouterr().err == shown
    waited = []

    def end_by_launcher(seconds: float) -> None:
        waited.append(seconds)
        raise SystemExit(143)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("llmtune.errors.time.sleep", end_by_launcher)
    with pytest.raises(SystemExit):
        report(error)
    assert waited == [10.0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["the command", "a worker"])
def test_the_traceback_of_a_bug_shows_no_secret(monkeypatch, capsys, command) -> None:
    def broken(*given: object) -> None:
        raise ValueError("http://me:hunter2@host and s3cret-value")

    monkeypatch.setenv("SOME_PASSWORD", "s3cret-value")
    monkeypatch.setattr("llmtune.cli._answer", broken)
    monkeypatch.setattr("llmtune.worker.load_config", broken)
    monkeypatch.setattr("sys.argv", ["worker", "folder", "train"])
    assert (cli.run([]) if command == "the command" else worker.main()) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "ValueError: http://host and ***" in told
    assert "hunter2" not in told
