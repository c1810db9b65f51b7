"""Digests are remembered for files that stand as they stood, and for no others."""

import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from llmtune.data.reading import digests
from llmtune.data.reading.digests import stamped_digest
from llmtune.errors import DataError
from llmtune.runs.file_digest import sha256_of

pytestmark = pytest.mark.fast


@pytest.fixture
def reads(monkeypatch):
    """Files that were hashed."""
    found = []
    monkeypatch.setattr(digests, "sha256_of", lambda file: found.append(file) or sha256_of(file))
    return found


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A file that was written three seconds ago, as its clock and this process's see it."""
    file = tmp_path / "a.jsonl"
    file.write_text("one")
    monkeypatch.setattr(digests.time, "time_ns", lambda: file.stat().st_ctime_ns + 3 * 10**9)
    return file


def digest_of(file, cache):
    return stamped_digest(file, cache)[1]


def entry_of(cache):
    (entry,) = (cache / "digests").glob("*.json")
    return entry


def test_an_unchanged_file_is_read_once(old, tmp_path, reads):
    expected = hashlib.sha256(b"one").hexdigest()
    assert [digest_of(old, tmp_path / "c") for _ in range(3)] == [expected] * 3
    assert reads == [old]
    assert list((tmp_path / "c" / "digests").iterdir()) == [entry_of(tmp_path / "c")], "nothing half-written is left"


@pytest.mark.parametrize("change", ["content", "size", "replaced", "mtime"])
def test_a_changed_file_is_read_again(old, tmp_path, reads, change):
    digest_of(old, tmp_path / "c")
    times = old.stat().st_atime_ns, old.stat().st_mtime_ns
    if change == "replaced":
        (tmp_path / "b").write_text("two")
        (tmp_path / "b").replace(old)
    elif change != "mtime":
        old.write_text({"content": "two", "size": "three"}[change])
    os.utime(old, ns=times if change != "mtime" else (0, 0))  # the time of its content is set back: only ctime tells
    assert digest_of(old, tmp_path / "c") == hashlib.sha256(old.read_bytes()).hexdigest()
    assert len(reads) == 2


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path, reads):
    file = tmp_path / "a.jsonl"
    file.write_text("one")
    assert [digest_of(file, tmp_path / "c") for _ in range(2)] == [sha256_of(file)] * 2
    assert len(reads) == 2
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"[" * 100_000,
        lambda content: b"[1]",
        lambda content: b"\xff\xfe",
        lambda content: content.replace(hashlib.sha256(b"one").hexdigest().encode(), b"0" * 64),
        lambda content: json.dumps({**json.loads(content), "path": "/other"}).encode(),
    ],
)
def test_a_damaged_memory_is_not_believed(old, tmp_path, reads, damage):
    digest_of(old, tmp_path / "c")
    entry = entry_of(tmp_path / "c")
    entry.write_bytes(damage(entry.read_bytes()))
    assert [digest_of(old, tmp_path / "c") for _ in range(2)] == [hashlib.sha256(b"one").hexdigest()] * 2
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_to_costs_only_time(old, tmp_path, reads):
    (tmp_path / "c").write_text("no folder")
    assert [digest_of(old, tmp_path / "c") for _ in range(2)] == [hashlib.sha256(b"one").hexdigest()] * 2


def test_a_file_that_changes_while_it_is_hashed_is_refused(old, tmp_path, monkeypatch):
    def read_and_grow(file):
        with file.open("a") as stream:
            stream.write("more")
        return "0" * 64

    monkeypatch.setattr(digests, "sha256_of", read_and_grow)
    with pytest.raises(DataError, match=r"a\.jsonl: the file changed while it was read; type the command again"):
        digest_of(old, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_name_that_is_no_text_is_a_name(tmp_path, reads):
    file = tmp_path / os.fsdecode(b"a\xff.jsonl")
    file.write_text("one")
    assert digest_of(file, tmp_path / "c") == hashlib.sha256(b"one").hexdigest()


def test_several_processes_remember_the_same(old, tmp_path):
    code = (
        "import sys; from pathlib import Path; from llmtune.data.reading.digests import stamped_digest\n"
        "for _ in range(50): assert stamped_digest(Path(sys.argv[1]), Path(sys.argv[2]))[1] == sys.argv[3]"
    )
    words = [sys.executable, "-c", code, str(old), str(tmp_path / "c"), hashlib.sha256(b"one").hexdigest()]
    time.sleep(max(0.0, old.stat().st_ctime + 2.1 - time.time()))
    processes = [subprocess.Popen(words) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert entry_of(tmp_path / "c")
