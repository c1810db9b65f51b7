"""The configuration reference tells every group, option and key, and the page in docs is the newest."""

from pathlib import Path

import pytest

from llmtune.config.reference import reference_page
from llmtune.config.resources import project_options
from llmtune.config.schema import groups, keys
from llmtune.flags import FLAGS

pytestmark = pytest.mark.fast

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_in_docs_is_what_make_reference_writes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    newest = PAGE.read_text(encoding="utf-8") == reference_page(FLAGS)
    assert newest, "docs/configuration.md isn't what the schemas say now: run `make reference`"


def test_every_group_option_key_and_flag_is_there() -> None:
    page = reference_page(FLAGS)
    assert [name for name in groups() if f"\n## {name}\n" not in page] == []
    assert [key.name for key in keys() if f"| `{key.name}` | " not in page] == []
    options = [f"| `{option}`" for group in groups() for option in project_options(group) if option != "default"]
    assert len(options) > 30
    assert [option for option in options if option not in page] == []
    assert [flag for flag, key in FLAGS.items() if f"| `{flag}` | `{key}` |" not in page] == []


def test_a_row_tells_type_default_shapes_and_meaning() -> None:
    page = reference_page({})
    assert "| `train.num_epochs` | int >= 1 | `3` | Passes over the training split. |" in page
    assert "| `method.rank` | int >= 1 | `16` | Only for lora and qlora. Rank of the update" in page
    assert "| `method.learning_rate` | number > 0 | 2e-5 (full), 2e-4 (lora, qlora) | Peak learning rate" in page


def test_the_working_folders_files_are_left_out(tmp_path, monkeypatch) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("# Mine.\nname: lora\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "`mine`" not in reference_page({})


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    rows = [line for line in reference_page(FLAGS).splitlines() if line.startswith("|")]
    counts = [line.replace("\\|", "").count("|") for line in rows]
    width = 0
    for row, count, following in zip(rows, counts, [*rows[1:], ""], strict=True):
        width = count if following.startswith("|--") else width
        assert count == width, row
