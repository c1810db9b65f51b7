from pathlib import Path

import pytest

from llmtune.export.model_card import base_reference
from llmtune.models.source import ModelSource

pytestmark = pytest.mark.fast


def source(location: str, revision: str | None) -> ModelSource:
    return ModelSource(location=location, folder=Path("/x"), revision=revision, weights_digest="d", name="short")


def test_a_hub_model_is_named_by_id_and_commit():
    assert base_reference(source("owner/name", "c" * 40)) == ("owner/name", "c" * 40)


def test_a_folder_is_named_by_its_short_name():
    assert base_reference(source("/home/someone/model", None)) == ("short", None)
