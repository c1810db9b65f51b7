"""Models of the Hub, by the real client from a stand-in of its interface."""

import errno
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmtune.errors import ModelError
from llmtune.models.hub import snapshot
from llmtune.models.source import MODEL_FILES

sys.path.insert(0, str(Path(__file__).parents[2]))
pytest_plugins = ["hub_stand_in"]
pytestmark = pytest.mark.fast
TOKEN = "hf_neverprinted"


@pytest.fixture
def tiny(hub, tiny_llama):
    return hub.add("models", "them/tiny", tiny_llama)


def get(revision: str | None = None) -> Path:
    asked = "model.id=them/tiny" + (f" model.revision={revision}" if revision else "")
    return snapshot("them/tiny", revision=revision, patterns=MODEL_FILES, asked=asked)


def refusal(revision: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        get(revision)
    assert caught.value.exit_status == 2
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_branch_and_a_tag_lead_to_their_commit(hub, tiny, tiny_llama):
    first = tiny.refs["main"]
    tiny.refs["v1"] = first
    second = tiny.commit({"generation_config.json": b"{}"})
    assert get().name == get("main").name == second
    assert get("v1").name == first
    assert (get("v1") / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()


def test_what_is_cached_needs_no_hub(hub, tiny, monkeypatch):
    commit = get().name
    asked = len(hub.requests)
    assert get(commit).name == commit and len(hub.requests) == asked
    hub.close()
    assert get().name == get("main").name == commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get().name == get(commit).name == commit
    assert "HF_HUB_OFFLINE is set; unset it" in refusal("v2")


def test_who_may_not_read_is_told_why(hub, tiny, monkeypatch):
    tiny.gated = True
    page = f"{hub.address}/them/tiny"
    assert f"needs an account with access: ask for it on {page}, then log in with `hf auth login`" in refusal()
    hub.account(TOKEN, "me")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert f"your account has no access to this model yet; ask for it on {page}" in refusal()
    hub.accounts[TOKEN].has_access = ("them/tiny",)
    assert get().name == tiny.refs["main"]


def test_a_private_model_looks_like_none(hub, tiny, monkeypatch):
    tiny.private = True
    assert "no such model, or it is private; check the id, or log in with `hf auth login` or set HF_TOKEN" in refusal()
    hub.account(TOKEN, "me")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "or it is private; check the id, or use a token that may read it" in refusal()


def test_a_token_that_the_hub_does_not_take_is_said_as_such(hub, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the Hub doesn't take the token in HF_TOKEN: it is wrong or expired" in refusal()
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "no-token").write_text(TOKEN)
    assert "the Hub doesn't take the token of `hf auth login`: it is wrong or expired" in refusal()


def test_wrong_names_are_told(hub, tiny):
    assert refusal("v9") == (
        "model.id=them/tiny model.revision=v9: the model has no such branch, tag or commit; "
        "leave the revision out for the newest"
    )
    hub.repos.clear()
    assert "the Hub has no such model" in refusal()


@pytest.mark.parametrize(
    ("part", "how", "text"),
    [
        ("/api/", 429, r"takes no more requests for now (rate limit); wait some minutes, or log in"),
        ("/api/", 500, "the Hub is out of order (status 500); try again later, or give a folder"),
        ("/api/", 503, "the Hub is out of order (status 503)"),
        ("/api/", 418, "the Hub refused with status 418; see http"),
        ("/api/", "hang", "the Hub gave no answer within 1 s; try again, set HF_HUB_ETAG_TIMEOUT"),
        ("HEAD /them/tiny/resolve", "hang", "the Hub gave no answer within 1 s"),
        ("GET /them/tiny/resolve", "drop", "the Hub broke off the connection; type the command again"),
    ],
)
def test_a_hub_that_does_not_deliver(hub, tiny, monkeypatch, part, how, text):
    hub.fail(part, how)
    assert text in refusal()
    hub.faults.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the Hub cache" in refusal(), "what came of it isn't taken for the model"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert get().name == tiny.refs["main"]


def test_no_connection(hub, tiny):
    hub.close()
    assert "not in the Hub cache, and the Hub can't be reached; check the network" in refusal()


def test_a_download_that_breaks_off_goes_on(hub, tiny, tiny_llama):
    hub.fail("GET /them/tiny/resolve", "drop", times=2)
    assert (get() / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()


def test_damaged_weights_are_found_and_downloaded_again(hub, tiny, tiny_llama):
    hub.fail("model.safetensors", "corrupt", times=2)
    assert "model.safetensors is damaged (its sha256 isn't the Hub's) and was removed" in refusal()
    assert (get() / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()


def test_a_full_disk_is_named_and_leaves_nothing_to_trust(hub, tiny, tmp_path, monkeypatch):
    from huggingface_hub import file_download

    def full(url, file, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", full)
        assert refusal() == (
            "model.id=them/tiny: no space left: make room, or choose another folder; HF_HOME=FOLDER moves the Hub's "
            "cache"
        )
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the Hub cache" in refusal()
