import json
import os
import re
from datetime import datetime
from pathlib import Path

import pytest

from llmtune.errors import ConfigError, RunError
from llmtune.runs.lookup import find_run, is_sweep_folder, list_runs, new_run_folder, new_sweep_folder, runs_of_sweep
from llmtune.runs.status import RunStatusFile

pytestmark = pytest.mark.fast
NOW = datetime(2026, 3, 4, 5, 6, 7)


def _run(runs_dir, number):
    folder = new_run_folder(runs_dir, "lora", f"model{number}", NOW)
    RunStatusFile(folder.status_file).start(f"{number:032x}")
    return folder


def test_names_of_new_folders(tmp_path):
    run = new_run_folder(tmp_path / "runs", "lora", "Qwen/Qwen3 0.6B/", NOW)
    assert re.fullmatch(r"20260304-050607-lora-Qwen3-0.6B-[0-9a-f]{4}", run.path.name)
    assert run.path.is_dir()
    sweep = new_sweep_folder(tmp_path / "runs", NOW)
    assert is_sweep_folder(sweep.path)
    assert not is_sweep_folder(run.path)


@pytest.mark.parametrize("model", ["../../etc", "/", "..", "a\nb"])
def test_no_model_name_leads_out_of_the_folder(tmp_path, model):
    run = new_run_folder(tmp_path, "lora", model, NOW)
    assert run.path.parent == tmp_path


def test_a_name_that_is_taken_is_drawn_again(tmp_path, monkeypatch):
    drawn = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr("llmtune.runs.lookup.secrets.token_hex", lambda _: next(drawn))
    assert new_run_folder(tmp_path, "lora", "m", NOW).path.name.endswith("aaaa")
    assert new_run_folder(tmp_path, "lora", "m", NOW).path.name.endswith("bbbb")


def test_a_run_is_found_by_all_that_names_it(tmp_path, monkeypatch):
    older, newer = _run(tmp_path / "runs", 1), _run(tmp_path / "runs", 2)
    older.checkpoint(10).mkdir(parents=True)
    older.best_checkpoint.symlink_to("checkpoint-10")
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(older.path)
    references = [older.path, relative, older.path.name, f"{1:032x}"]
    for reference in references:
        assert find_run(str(reference), tmp_path / "runs") == older, reference
    assert find_run("latest", tmp_path / "runs") == newer


def test_runs_of_a_sweep_are_listed_and_the_sweep_is_not(tmp_path):
    sweep = new_sweep_folder(tmp_path, NOW)
    RunStatusFile(sweep.status_file).start()
    job = _run(sweep.path, 3)
    assert [listed.folder for listed in list_runs(tmp_path)] == [job]
    with pytest.raises(RunError, match=r"is a sweep; finish it with -m run=.*, or name one of its runs"):
        find_run(str(sweep.path), tmp_path)


@pytest.mark.parametrize("place", ["", "moved-sweep"])
def test_runs_of_an_older_sweep_are_found_where_all_was_moved(tmp_path, place):
    """It has a summary alone; its runs lie beside it or, of yet older ones, in it; one that lies nowhere is as told."""
    sweep = new_sweep_folder(tmp_path, NOW)
    here = _run(sweep.path if place else tmp_path, 1)
    old = [f"/before/{sweep.path.name}/{here.path.name}", "/before/gone"]
    sweep.summary_file.write_text(json.dumps([{"folder": path} for path in old]))
    assert [str(path) for path in runs_of_sweep(sweep.path)] == [str(here.path), "/before/gone"]


@pytest.mark.parametrize(
    "make", [lambda place: new_run_folder(place, "lora", "m", NOW), lambda place: new_sweep_folder(place, NOW)]
)
def test_a_place_where_no_folder_can_be_made_is_named_with_its_key(tmp_path, make):
    with pytest.raises(ConfigError, match=r"runs_dir=/proc/nope/deep: the folder can't be made \(No such file"):
        make(Path("/proc/nope/deep"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):  # which has a line of its own
        make(tmp_path / "file" / "runs")


def test_an_unknown_run_lists_the_newest(tmp_path):
    with pytest.raises(RunError, match=r"run=latest: there is no run in .*; train one"):
        find_run("latest", tmp_path)
    folders = [_run(tmp_path, number) for number in range(7)]
    (tmp_path / "empty").mkdir()
    for reference in ("nowhere", "f" * 32, str(tmp_path / "empty")):
        with pytest.raises(RunError) as caught:
            find_run(reference, tmp_path)
        assert str(folders[6].path) in str(caught.value)
        assert str(folders[0].path) not in str(caught.value)
