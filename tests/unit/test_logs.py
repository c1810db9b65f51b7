"""What a person sees."""

import subprocess
import sys
import warnings

import pytest

from llmtune.logs import silence_libraries

pytestmark = pytest.mark.fast


def test_a_table_shows_brackets_as_they_are() -> None:
    code = (
        "from llmtune.logs import print_table; print_table('[bold]t', ('[c]', 'd'), [('[q_proj,v_proj]', '[/b] :x:')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for text in ("[bold]t", "[c]", "[q_proj,v_proj]", "[/b] :x:"):
        assert text in shown


def test_only_the_named_warnings_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_libraries()
        warnings.warn("`torch.jit.script_method` is deprecated. Please switch", DeprecationWarning, stacklevel=1)
        warnings.warn("another thing is deprecated", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["another thing is deprecated"]
