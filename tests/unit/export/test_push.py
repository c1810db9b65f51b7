"""Uploads to a stand-in of the Hub by the real client."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmtune import hub_answers
from llmtune.config.export import ExportConfig
from llmtune.errors import ConfigError, ExportCheckFailed, LlmtuneError
from llmtune.export.push import check_access, push, pushed_format

sys.path.insert(0, str(Path(__file__).parents[2]))
pytest_plugins = ["hub_stand_in"]
pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:Use 'content=")]
TOKEN = "hf_neverprinted"
AGAIN = "export run=here"


@pytest.fixture
def me(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub.account(TOKEN, "me", organisations=("us",))


@pytest.fixture
def folder(tiny_llama, tmp_path):
    made = Path(shutil.copytree(tiny_llama, tmp_path / "hf"))
    (made / "README.md").write_text("---\ntags: [llmtune]\n---\n# a card\n")
    return made


@pytest.fixture
def impatient(monkeypatch):
    """What is sent is waited for as long as what is fetched."""
    monkeypatch.setattr(hub_answers, "_SLOW_FACTOR", 1)


def settings(repo: str = "tuned", **changes) -> ExportConfig:
    return ExportConfig(push_to_hub=repo, **changes)


def refusal(action, *arguments) -> str:
    with pytest.raises(LlmtuneError) as caught:
        action(*arguments)
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_without_push_nothing_is_asked(hub):
    check_access(ExportConfig())
    assert hub.requests == []


def test_access_is_refused_before_any_work(hub, monkeypatch):
    assert "export.push_to_hub=tuned: there is no token; log in with" in refusal(check_access, settings())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the token in HF_TOKEN: it is wrong or expired" in refusal(check_access, settings())
    hub.account(TOKEN, "me", role="read")
    assert "the token in HF_TOKEN may only read; make one that may write" in refusal(check_access, settings())
    hub.account(TOKEN, "me", role="fineGrained")
    assert "the token in HF_TOKEN may only read" in refusal(check_access, settings())


def test_only_ones_own_places_are_written_to(hub, me):
    check_access(settings("us/tuned"))
    assert "you may not write for them; those you may write for: me, us" in refusal(check_access, settings("them/x"))
    for wrong in ("a/b/c", "sp ace", "me/", "-x"):
        assert f"export.push_to_hub={wrong}: not a Hub id" in refusal(check_access, settings(wrong))
    assert not any("create" in request for request in hub.requests), "nothing was made"


def test_a_public_repository_is_refused_unless_asked_for(hub, me):
    hub.add("models", "me/open", {"a": b""})
    assert "me/open is there and everybody sees it; set export.hub_private=false" in refusal(
        check_access, settings("me/open")
    )
    check_access(settings("me/open", hub_private=False))
    hub.add("models", "me/closed", {"a": b""}, private=True)
    check_access(settings("me/closed"))


def test_a_hub_that_is_away_is_told_before_any_work(hub, me, monkeypatch):
    hub.fail("whoami", "hang")
    assert "the Hub gave no answer within 1 s" in refusal(check_access, settings())
    hub.close()
    assert "the Hub can't be reached" in refusal(check_access, settings())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it, or leave export.push_to_hub out" in refusal(check_access, settings())


def test_which_format_goes_up():
    assert pushed_format(["adapter", "hf"]) == "hf"
    assert pushed_format(["adapter"]) == "adapter"
    with pytest.raises(ConfigError, match=r"add one of them to export\.formats"):
        pushed_format([])
    with pytest.raises(ConfigError, match="add one of them"):
        check_access(settings(formats=("onnx",)))


def test_everything_goes_up_to_a_private_repository(hub, me, folder):
    done = push(folder, settings(), "base", AGAIN)
    repo = hub.repos["models", "me/tuned"]
    assert repo.private and done.private and done.repo == "me/tuned"
    assert done.commit == repo.refs["main"] and done.url == f"{hub.address}/me/tuned/commit/{done.commit}"
    there = {path: content for path, content in repo.commits[done.commit].items() if path != ".gitattributes"}
    assert there == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repository_keeps_its_history(hub, me, folder):
    repo = hub.add("models", "me/tuned", {"old": b"kept"}, private=True)
    before = repo.refs["main"]
    done = push(folder, settings(), "base", AGAIN)
    assert list(repo.commits) == [before, done.commit]
    assert repo.commits[done.commit]["old"] == b"kept"
    assert push(folder, settings(), "base", AGAIN).commit == done.commit, "nothing changed, no commit"


def test_public_where_asked_for(hub, me, folder):
    assert not push(folder, settings(hub_private=False), "base", AGAIN).private
    assert not hub.repos["models", "me/tuned"].private


def test_a_folder_of_this_machine_does_not_go_up(hub, me, folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder), "r": 8}))
    done = push(folder, settings(), "base", AGAIN)
    there = json.loads(hub.repos["models", "me/tuned"].commits[done.commit]["adapter_config.json"])
    assert there == {"base_model_name_or_path": "base", "r": 8}


def test_what_arrived_otherwise_fails(hub, me, folder):
    hub.fail("commit/main", "corrupt")
    with pytest.raises(ExportCheckFailed, match=r"README.md, .*model.safetensors.* on the Hub differ .*upload again"):
        push(folder, settings(), "base", AGAIN)
    hub.faults.clear()
    other = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    done = push(folder, settings(), "base", AGAIN)
    there = hub.repos["models", "me/tuned"].commits[done.commit]["model.safetensors"]
    assert hashlib.sha256(there).hexdigest() == other


@pytest.mark.parametrize(
    ("part", "how", "text"),
    [
        ("PUT /lfs", 503, f"(status 503); try again later, or upload the finished export later with: {AGAIN}"),
        ("PUT /lfs", "hang", "gave no answer within 1 s"),
        ("repos/create", 403, "the token in HF_TOKEN may not do this"),
        ("commit/main", 403, "the token in HF_TOKEN may not do this"),
        ("preupload", 429, "takes no more requests for now"),
        ("commit/main", 500, "out of order (status 500)"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("me", "impatient")
def test_an_interrupted_upload_is_told_and_goes_on(hub, folder, part, how, text):
    hub.fail(part, how)
    assert text in refusal(push, folder, settings(), "base", AGAIN)
    hub.faults.clear()
    done = push(folder, settings(), "base", AGAIN)
    assert hub.repos["models", "me/tuned"].commits[done.commit]["README.md"] == (folder / "README.md").read_bytes()
