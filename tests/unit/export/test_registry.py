import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtune.config.export import EXPORT_FORMATS, ExportConfig
from llmtune.errors import ConfigError, ExportCheckFailed, UserError
from llmtune.export import registry
from llmtune.export.registry import default_formats, export_format, make_format
from llmtune.export.report import Figure, ParityReport

pytestmark = pytest.mark.fast


class NoteFormat:
    """Writes one line; its check finds the difference that the test chooses."""

    name = "note"

    def __init__(self) -> None:
        self.difference = 0.0
        self.size = 10
        self.seen_target: bool | None = None

    def check_supported(self, context: Any) -> None:
        pass

    def num_bytes(self, context: Any) -> int:
        return self.size

    def write(self, context: Any, folder: Path) -> None:
        assert list(folder.iterdir()) == [], "drafts of a former try are gone"
        (folder / "note.txt").write_text("new")

    def check(self, context: Any, folder: Path) -> ParityReport:
        self.seen_target = (context.target / "note.txt").exists()
        return ParityReport((Figure("difference", self.difference, 0.5, "made up", "try again"),), "two notes")

    def loading_code(self, context: Any) -> str:
        return "open('FOLDER/note.txt')"


@pytest.fixture
def note(monkeypatch):
    chosen = NoteFormat()
    monkeypatch.setattr(registry, "make_format", lambda name: chosen)
    monkeypatch.setattr(registry, "write_card", lambda context, report, code, folder: None)
    return chosen


def context_for(target: Path, overwrite: bool = False) -> Any:
    return SimpleNamespace(settings=ExportConfig(overwrite=overwrite), target=target, examples=[1])


def test_every_listed_format_can_be_made_and_knows_its_name():
    assert [make_format(name).name for name in EXPORT_FORMATS] == ["adapter", "hf"]


def test_an_unknown_format_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown format 'adaptor', known are adapter, hf; did you mean adapter\?"):
        make_format("adaptor")


def test_default_formats():
    assert default_formats(True) == ("adapter", "hf")
    assert default_formats(False) == ("hf",)


def test_the_target_appears_only_after_the_check(note, tmp_path):
    target = tmp_path / "deep" / "note"
    result = export_format("note", context_for(target), target)
    assert note.seen_target is False
    assert sorted(file.name for file in target.iterdir()) == ["note.txt", "parity.json"]
    assert [folder.name for folder in target.parent.iterdir()] == ["note"]
    assert result.num_bytes == sum(file.stat().st_size for file in target.iterdir())


@pytest.mark.parametrize("difference", [0.6, float("nan")])
def test_a_failed_check_names_figure_bound_and_cure_and_leaves_nothing(note, tmp_path, difference):
    note.difference = difference
    with pytest.raises(
        ExportCheckFailed, match=rf"two notes.*\n.*made up\) is {difference}, allowed is 0.5; try again"
    ):
        export_format("note", context_for(tmp_path / "note"), tmp_path / "note")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_at_the_bound_passes(note, tmp_path):
    note.difference = 0.5
    assert export_format("note", context_for(tmp_path / "note"), tmp_path / "note").report.figures[0].passed


def test_the_draft_of_a_killed_export_is_cleared(note, tmp_path):
    (tmp_path / ".note.draft").mkdir()
    (tmp_path / ".note.draft" / "half").write_text("")
    export_format("note", context_for(tmp_path / "note"), tmp_path / "note")
    assert [folder.name for folder in tmp_path.iterdir()] == ["note"]


def test_an_export_whose_replacement_was_cut_off_comes_back(note, tmp_path):
    target = tmp_path / "note"
    (tmp_path / ".note.old").mkdir()
    (tmp_path / ".note.old" / "note.txt").write_text("old")
    with pytest.raises(UserError, match="isn't empty"):
        export_format("note", context_for(target), target)
    assert (target / "note.txt").read_text() == "old"
    export_format("note", context_for(target, overwrite=True), target)
    assert (target / "note.txt").read_text() == "new"
    assert [folder.name for folder in tmp_path.iterdir()] == ["note"]


def test_a_target_that_is_a_file_is_refused(note, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="is a file, and an export is a folder"):
        export_format("note", context_for(tmp_path / "note", overwrite=True), tmp_path / "note")


def test_a_full_disk_is_found_before_any_work(note, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**30))
    note.size = 3 * 2**30
    with pytest.raises(UserError, match=r"takes about 3\.00 GiB and .* has 1\.00 GiB free"):
        export_format("note", context_for(tmp_path / "a" / "note"), tmp_path / "a" / "note")
    assert list(tmp_path.iterdir()) == []


def test_no_examples_to_compare_on_is_refused(note, tmp_path):
    context = context_for(tmp_path / "note")
    context.examples = []
    with pytest.raises(UserError, match="no example to compare"):
        export_format("note", context, tmp_path / "note")
