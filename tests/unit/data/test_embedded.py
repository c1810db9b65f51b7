"""Functions of installed packages become examples."""

import subprocess
import sys

import pytest

from llmtune.data import embedded
from llmtune.data.embedded import embedded_digest, read_embedded, source_files
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


@pytest.mark.fast
def test_completion_examples_are_signature_and_docstring_then_body(small_packages):
    found = read_embedded("completion")
    area, wait = found.records
    assert area.prompt == 'def area(self, x):\n    """Area\n    of it."""'
    assert area.completion == '\n    # by hand\n    y = """\ntext"""\n    return x'
    assert (area.source_path, area.source_line, area.group) == ("sympy/a.py", 2, "sympy.a")
    assert wait.prompt == 'async def wait(a):\n    """Wait."""'
    assert wait.completion == "\n    return await a"
    assert found.skipped == {"empty body": 1, "no docstring": 1, "docstring and code on one line": 1}
    assert found.origin["rows"] == 5
    assert found.origin["licence"] == "BSD-3-Clause"


@pytest.mark.fast
def test_text_examples_are_whole_functions_of_3_to_60_lines(small_packages):
    (small_packages / "sympy" / "a.py").write_text(SOURCE + "\ndef long():\n" + "    x = 1\n" * 60)
    found = read_embedded("text")
    assert [record.source_line for record in found.records] == [2, 10, 21]
    assert found.records[1].text == 'def empty(self):\n    """Nothing."""\n    pass'
    assert found.skipped == {"not 3 to 60 lines": 3}


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
        "import sys; from llmtune.data.embedded import read_embedded as read; a, b = read('completion'), read('text');"
        "assert not {'sympy', 'networkx'} & set(sys.modules); print(len(a.records), len(b.records))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    completions, texts = map(int, result.stdout.split())
    assert completions > 9_500
    assert texts > 14_000
