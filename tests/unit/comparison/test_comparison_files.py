"""Three files, each whole or as it was."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_comparison import methods

from llmtune.comparison import files
from llmtune.comparison.as_json import as_json
from llmtune.comparison.files import write_files
from llmtune.comparison.markdown import markdown

pytestmark = pytest.mark.fast


def test_the_files_hold_the_comparison_and_nothing_else_is_left(tmp_path: Path) -> None:
    written = write_files(methods(), tmp_path / "new" / "folder")
    assert json.loads(written.json.read_text(encoding="utf-8")) == as_json(methods())
    assert written.markdown.read_text(encoding="utf-8") == markdown(methods())
    assert "<title>Comparison: 20260101-sweep</title>" in written.page.read_text(encoding="utf-8")
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["comparison.html", "comparison.json", "comparison.md"]


def test_a_reader_goes_on_in_the_old_files(tmp_path: Path) -> None:
    written = write_files(methods(), tmp_path)
    for path in (written.json, written.markdown, written.page):
        before = path.read_text(encoding="utf-8")
        with path.open(encoding="utf-8") as old:
            write_files(replace(methods(), title="other"), tmp_path)
            assert old.read() == before != path.read_text(encoding="utf-8")
        write_files(methods(), tmp_path)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_files(methods(), tmp_path)
    before = written.page.read_text(encoding="utf-8")

    def breaks(path: Path, comparison: object) -> None:
        path.write_text("half of it")
        raise OSError("disk full")

    monkeypatch.setattr(files, "write_comparison_page", breaks)
    with pytest.raises(OSError, match="disk full"):
        write_files(replace(methods(), title="other"), tmp_path)
    assert written.page.read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.html", "comparison.json", "comparison.md"]
