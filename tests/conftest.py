"""Fixtures that every test may use: tiny models, small files of examples; no network, one CPU thread."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file, also for the folders below

# A shell starts background commands with Ctrl-C ignored, nohup with a hang-up, and what they start inherits it; the
# tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ASSETS = Path(__file__).parent / "assets"


@pytest.fixture(autouse=True, scope="session")
def memory_is_given_back() -> Iterator[None]:
    """Fails where the tests of a worker left more behind than two workers of a small machine have room for."""
    yield
    assert psutil.Process().memory_info().rss < 6 * 2**30, "a test keeps what it made"


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the test assets, built by `scripts/make_test_assets.py`."""
    return ASSETS


@pytest.fixture(scope="session")
def tiny_llama(assets: Path) -> Path:
    """A random Llama: 2 layers, grouped-query attention, tied head, pad = eos, a chat template."""
    return assets / "tiny_llama"


@pytest.fixture(scope="session")
def tiny_gpt2(assets: Path) -> Path:
    """A random GPT-2: 2 layers, learned positions, dropout, a pad token of its own, no chat template."""
    return assets / "tiny_gpt2"


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def tiny_model(request: pytest.FixtureRequest, assets: Path) -> Path:
    """Each of the two tiny models in turn."""
    return assets / request.param


@pytest.fixture(scope="session")
def examples_file(assets: Path) -> Path:
    """200 short prompt/completion rows that a tiny model can learn."""
    return assets / "examples.jsonl"


@pytest.fixture(scope="session")
def text_file(assets: Path) -> Path:
    """60 rows of plain text, the column named `text` and `content` in turn."""
    return assets / "text.jsonl"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """The file of an MLflow store without a run, to copy: making one takes longer than training a tiny model."""
    from llmtune.tracking.client import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file
