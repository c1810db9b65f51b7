"""Paths of a config: absolute, and refused by key where nothing can be written there."""

import errno
import os
from typing import Any

import pytest

from llmtune.config.paths import cache_folder, usable_cache_folder, with_absolute_paths, writing
from llmtune.config.run import RunConfig
from llmtune.config.validate import to_run_config
from llmtune.errors import ConfigError

pytestmark = pytest.mark.fast

MODEL = {"name": "tiny", "source": "folder", "path": "models/tiny"}


def config_of(data: dict[str, Any] | None = None, **more: Any) -> RunConfig:
    found = {"source": "files", "path": "a.jsonl"} if data is None else data
    return to_run_config({"model": MODEL, "data": found, **more})


def problems_of(config: RunConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        with_absolute_paths(config)
    return caught.value.problems


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "file.jsonl").write_text("")
    return tmp_path


def test_paths_are_taken_from_the_working_folder(here):
    sources = [{"path": "a.jsonl"}, {"id": "a/b"}]
    config = with_absolute_paths(config_of({"source": "mixture", "sources": sources}, cache_dir="~/c"))
    assert [source.path for source in config.data.sources] == [f"{here}/a.jsonl", None]
    assert (config.model.path, config.cache_dir) == (f"{here}/models/tiny", f"{here}/home/c")


def test_a_user_that_is_not_there_is_named_with_the_key(here, monkeypatch):
    path, cure = "~nobody-of-this-name/x", "there is no such user; write the path without ~."
    assert problems_of(config_of({"source": "files", "path": path})) == [f"data.path={path}: {cure}"]
    mixture = {"source": "mixture", "sources": [{"path": "a"}, {"path": path}]}
    assert problems_of(config_of(mixture)) == [f"data.sources[1].path={path}: {cure}"]
    assert problems_of(config_of(runs_dir=path)) == [f"runs_dir={path}: {cure}"]
    monkeypatch.setenv("LLMTUNE_CACHE", path)
    with pytest.raises(ConfigError, match="there is no such user"):
        cache_folder(None)


def test_a_file_that_is_in_the_way_is_named_with_each_key(here):
    data = {"source": "files", "path": "a.jsonl", "write_clean": "file.jsonl/x.jsonl"}
    assert problems_of(config_of(data, cache_dir="file.jsonl", runs_dir="file.jsonl/runs")) == [
        f"{key}: {here}/file.jsonl is a file, not a folder; choose another place."
        for key in (
            f"runs_dir={here}/file.jsonl/runs",
            f"cache_dir={here}/file.jsonl",
            f"data.write_clean={here}/file.jsonl/x.jsonl",
        )
    ]
    assert problems_of(config_of({**data, "write_clean": "."})) == [
        f"data.write_clean={here}: is a folder; name a file."
    ]
    with_absolute_paths(config_of({**data, "write_clean": "file.jsonl"}, cache_dir="new/c"))


def test_a_cache_is_made_or_refused_by_key(here, monkeypatch):
    assert usable_cache_folder(str(here / "new" / "c")).is_dir()
    assert list((here / "new" / "c").iterdir()) == []
    with pytest.raises(ConfigError) as caught:
        usable_cache_folder(str(here / "file.jsonl"))
    assert str(caught.value).startswith(f"cache_dir={here}/file.jsonl: can't be written to: ")

    def refuse(**where: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", f"{where['dir']}/tmp1")

    monkeypatch.setattr("llmtune.config.paths.tempfile.TemporaryFile", refuse)
    with pytest.raises(
        ConfigError, match=r"^cache_dir=.*: can't be written to: read-only file system: choose a folder"
    ):
        usable_cache_folder(str(here / "new"))


@pytest.mark.parametrize(
    ("number", "file", "words"),
    [
        (errno.ENOSPC, None, "no space left: make room"),
        (errno.ENOENT, "P/.out.jsonl.7", "no such file or directory: choose another place"),
        (errno.EEXIST, "P", "file exists: choose another place"),
    ],
)
def test_a_refusal_of_the_system_names_the_key_of_the_place(here, number, file, words):
    place = here / "out" / "out.jsonl"
    named = file and file.replace("P", str(place.parent))
    with pytest.raises(ConfigError) as caught, writing("data.write_clean", place):
        raise OSError(number, os.strerror(number), named)
    assert str(caught.value).startswith(f"data.write_clean={place}: can't be written to: {words}")


def test_a_refusal_elsewhere_stays_what_it_is(here):
    for place in (here / "cache", here / "out" / "x.jsonl"):
        with pytest.raises(PermissionError), writing("cache_dir", place):
            raise PermissionError(errno.EACCES, "denied", str(here / "out" / "rows.jsonl"))
