import pytest

from llmtune.config.export import EXPORT_FORMATS
from llmtune.errors import ConfigError
from llmtune.export.registry import default_formats, make_format

pytestmark = pytest.mark.fast


def test_every_listed_format_can_be_made_and_knows_its_name():
    assert [make_format(name).name for name in EXPORT_FORMATS] == list(EXPORT_FORMATS)


def test_an_unknown_format_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown format 'adaptor', known are adapter, hf.*; did you mean adapter\?"):
        make_format("adaptor")


def test_default_formats():
    assert default_formats(True) == ("adapter", "hf")
    assert default_formats(False) == ("hf",)
