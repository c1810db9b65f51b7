import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from llmtune.config.export import ExportConfig
from llmtune.errors import ExportCheckFailed, UserError
from llmtune.export import writing
from llmtune.export.format import ExportFormat
from llmtune.export.report import Figure, ParityReport
from llmtune.export.writing import ExportResult, write_export

pytestmark = pytest.mark.fast


class NoteFormat(ExportFormat):
    """Writes one line."""

    name = "note"
    runtime = "hf"
    packages = "nothing"

    def __init__(self) -> None:
        self.difference = 0.0
        self.size = 10
        self.seen_target: bool | None = None

    def num_bytes(self, context: Any) -> int:
        return self.size

    def write(self, context: Any, folder: Path) -> None:
        assert list(folder.iterdir()) == [], "drafts of a former try are gone"
        (folder / "note.txt").write_text("new")


class NoteGate:
    """Finds the difference that the test chooses."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def check(self, chosen: NoteFormat, folder: Path) -> ParityReport:
        chosen.seen_target = (self.target / "note.txt").exists()
        return ParityReport((Figure("difference", chosen.difference, 0.5, "made up", "try again"),), "two notes")


def written(note: NoteFormat, context: Any, target: Path) -> ExportResult:
    return write_export(note, context, target, NoteGate(target))


@pytest.fixture
def note(monkeypatch):
    monkeypatch.setattr(writing, "write_card", lambda context, chosen, report, folder: None)
    return NoteFormat()


def context_for(target: Path, overwrite: bool = False) -> Any:
    return SimpleNamespace(settings=ExportConfig(overwrite=overwrite), target=target, examples=[1])


def test_the_target_appears_only_after_the_check(note, tmp_path):
    target = tmp_path / "deep" / "note"
    result = written(note, context_for(target), target)
    assert note.seen_target is False
    scripts = ["run.py", "runtime.py", "transformers_model.py"]
    assert sorted(file.name for file in target.iterdir()) == ["note.txt", "parity.json", *scripts]
    assert [folder.name for folder in target.parent.iterdir()] == ["note"]
    assert result.num_bytes == sum(file.stat().st_size for file in target.iterdir())


@pytest.mark.parametrize("difference", [0.6, float("nan")])
def test_a_failed_check_names_figure_bound_and_cure_and_leaves_nothing(note, tmp_path, difference):
    note.difference = difference
    with pytest.raises(
        ExportCheckFailed, match=rf"two notes.*\n.*made up\) is {difference}, allowed is 0.5; try again"
    ):
        written(note, context_for(tmp_path / "note"), tmp_path / "note")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_at_the_bound_passes(note, tmp_path):
    note.difference = 0.5
    assert written(note, context_for(tmp_path / "note"), tmp_path / "note").report.figures[0].passed


def test_the_draft_of_a_killed_export_is_cleared(note, tmp_path):
    (tmp_path / ".note.draft").mkdir()
    (tmp_path / ".note.draft" / "half").write_text("")
    written(note, context_for(tmp_path / "note"), tmp_path / "note")
    assert [folder.name for folder in tmp_path.iterdir()] == ["note"]


def test_an_export_whose_replacement_was_cut_off_comes_back(note, tmp_path):
    target = tmp_path / "note"
    (tmp_path / ".note.old").mkdir()
    (tmp_path / ".note.old" / "note.txt").write_text("old")
    (tmp_path / ".note.old" / "parity.json").write_text("{}")
    with pytest.raises(UserError, match="isn't empty"):
        written(note, context_for(target), target)
    assert (target / "note.txt").read_text() == "old"
    written(note, context_for(target, overwrite=True), target)
    assert (target / "note.txt").read_text() == "new"
    assert [folder.name for folder in tmp_path.iterdir()] == ["note"]


def test_a_target_that_is_a_file_is_refused(note, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="is a file, and an export is a folder"):
        written(note, context_for(tmp_path / "note", overwrite=True), tmp_path / "note")


def test_a_full_disk_is_found_before_any_work(note, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**30))
    note.size = 3 * 2**30
    with pytest.raises(UserError, match=r"takes about 3\.00 GiB and .* has 1\.00 GiB free"):
        written(note, context_for(tmp_path / "a" / "note"), tmp_path / "a" / "note")
    assert list(tmp_path.iterdir()) == []


def test_no_examples_to_compare_on_is_refused(note, tmp_path):
    context = context_for(tmp_path / "note")
    context.examples = []
    with pytest.raises(UserError, match="no example to compare"):
        written(note, context, tmp_path / "note")


def test_a_signal_between_the_renames_waits_and_a_failed_rename_brings_the_old_export_back(note, tmp_path, monkeypatch):
    target = tmp_path / "note"
    written(note, context_for(target), target)
    rename = Path.rename

    def fail(self, to):
        if self.name == ".note.draft":
            raise OSError("no space left")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    (target / "note.txt").write_text("old")
    with pytest.raises(OSError, match="no space left"):
        written(note, context_for(target, overwrite=True), target)
    assert (target / "note.txt").read_text() == "old"
    assert [folder.name for folder in tmp_path.iterdir()] == ["note"]


def test_two_commands_do_not_write_one_export(note, tmp_path):
    target = tmp_path / "note"
    with FileLock(tmp_path / ".note.lock"), pytest.raises(UserError, match="another command is writing"):
        written(note, context_for(target), target)
    assert not target.exists()


def test_what_is_no_export_is_never_replaced(note, tmp_path):
    (tmp_path / "note").mkdir()
    (tmp_path / "note" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"holds files and is no export \(it has no parity.json\)"):
        written(note, context_for(tmp_path / "note", overwrite=True), tmp_path / "note")
    assert (tmp_path / "note" / "mine.txt").read_text() == "kept"
