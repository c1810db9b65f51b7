"""Functions of installed packages become examples."""

import subprocess
import sys

import pytest

from llmtune.config.data import EmbeddedConfig
from llmtune.data.reading import embedded
from llmtune.data.reading.blocks import NoRow
from llmtune.data.reading.embedded import embedded_blocks, embedded_digest, source_files
from llmtune.data.reading.sources import open_sources
from llmtune.data.records import Record
from llmtune.errors import DataError

SOURCE = '''\
class Shape:
    def area(self, x):
        """Area
        of it."""
        # by hand
        y = """
text"""
        return x

    def empty(self):
        """Nothing."""
        pass

    def bare(self):
        return 1


def short(): """On one line."""; return 3


async def wait(a):
    """Wait."""

    return await a
'''


@pytest.fixture
def small_packages(tmp_path, monkeypatch):
    for name in ("sympy", "networkx"):
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "tests" / "b.py").write_text(SOURCE)
        (tmp_path / name / "test_c.py").write_text(SOURCE)
    (tmp_path / "sympy" / "a.py").write_text(SOURCE)
    monkeypatch.setattr(embedded, "package_folder", lambda package: tmp_path / package)
    return tmp_path


def entries(form, kind):
    return [entry for block in embedded_blocks(form) for entry in block.entries() if isinstance(entry, kind)]


@pytest.mark.fast
def test_completion_examples_are_signature_and_docstring_then_body(small_packages):
    area, wait = entries("completion", Record)
    assert area.prompt == 'def area(self, x):\n    """Area\n    of it."""'
    assert area.completion == '\n    # by hand\n    y = """\ntext"""\n    return x'
    assert (area.source_path, area.source_line, area.group) == ("sympy/a.py", 2, "sympy.a")
    assert wait.prompt == 'async def wait(a):\n    """Wait."""'
    assert wait.completion == "\n    return await a"
    assert entries("completion", NoRow) == [
        NoRow(10, "empty body", is_mistake=False),
        NoRow(14, "no docstring", is_mistake=False),
        NoRow(18, "docstring and code on one line", is_mistake=False),
    ]


@pytest.mark.fast
def test_text_examples_are_whole_functions_of_3_to_60_lines(small_packages):
    (small_packages / "sympy" / "a.py").write_text(SOURCE + "\ndef long():\n" + "    x = 1\n" * 60)
    found = entries("text", Record)
    assert [record.source_line for record in found] == [2, 10, 21]
    assert found[1].text == 'def empty(self):\n    """Nothing."""\n    pass'
    assert {(entry.reason, entry.is_mistake) for entry in entries("text", NoRow)} == {("not 3 to 60 lines", False)}
    assert len(entries("text", NoRow)) == 3


@pytest.mark.fast
def test_a_file_is_a_block_and_the_packages_are_parsed_once(small_packages, monkeypatch, tmp_path):
    (small_packages / "networkx" / "b.py").write_text(SOURCE)
    (source,) = open_sources(EmbeddedConfig(), tmp_path)
    parsed = []
    monkeypatch.setattr(
        embedded.ast, "parse", lambda source, parse=embedded.ast.parse: parsed.append(1) or parse(source)
    )
    assert [block.path for _ in range(2) for block in source.blocks()] == ["sympy/a.py", "networkx/b.py"] * 2
    assert len(parsed) == 2
    assert (source.origin["kind"], source.origin["licence"]) == ("embedded", "BSD-3-Clause")
    (text,) = open_sources(EmbeddedConfig(form="text"), tmp_path)
    assert text.digest != source.digest
    (small_packages / "sympy" / "a.py").write_text(SOURCE + "\n")
    assert open_sources(EmbeddedConfig(), tmp_path)[0].digest != source.digest


@pytest.mark.fast
def test_the_digest_follows_the_sources(small_packages):
    before = embedded_digest()
    assert embedded_digest() == before
    (small_packages / "sympy" / "a.py").write_text(SOURCE + "\n")
    assert embedded_digest() != before


@pytest.mark.fast
def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install sympy"):
        source_files("sympy")


def test_the_installed_packages_hold_10000_functions_and_are_not_imported():
    code = (
        "import sys; from llmtune.data.records import Record\n"
        "from llmtune.data.reading.embedded import embedded_blocks\n"
        "for form in ('completion', 'text'):\n"
        "    print(sum(isinstance(row, Record) for block in embedded_blocks(form) for row in block.rows))\n"
        "assert not {'sympy', 'networkx'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    completions, texts = map(int, result.stdout.split())
    assert completions > 9_500
    assert texts > 14_000
