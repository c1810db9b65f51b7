"""A config can't name what is run, a model can't bring code, no link leads out of a run."""

import json
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from llmtune.cli import run
from llmtune.config.model import ModelConfig
from llmtune.config.resources import resource_dir
from llmtune.errors import ModelError
from llmtune.models.source import locate_model
from llmtune.runs.lookup import list_runs

ASSETS = Path(__file__).parent.parent / "assets"
SHOW = ["--cfg", "job", f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}"]
WORK = [
    "hardware.num_threads=1",
    "hardware=cpu",
    "data.num_examples=32",
    "train.num_epochs=1",
    "tracking.system_metrics=false",
    "cache_dir=cache",
    *SHOW[2:],
]
CALL = "{_target_: pathlib.Path.mkdir, self: {_target_: pathlib.PosixPath, _args_: [EVIL]}}"
HANDLERS = "{version: 1, handlers: {h: {class: logging.FileHandler, filename: EVIL}}}"
FILES = {
    "at the top": "_target_: pathlib.Path.mkdir",
    "in a section": f"train:\n  x: {CALL}",
    "in a list": f"export:\n  formats: [{CALL}]",
    "in a list in a list": f"export:\n  formats: [[{CALL}]]",
    "Hydra callbacks": f"hydra:\n  callbacks:\n    x: {CALL}",
    "Hydra's launcher": "hydra:\n  launcher: {_target_: os.getcwd}",
    "Hydra's sweeper": "hydra:\n  sweeper: {_target_: os.getcwd}",
    "a sweeper's params": f"hydra:\n  sweeper:\n    params: {{x: {CALL}}}",
    "Hydra's log": f"hydra:\n  job_logging: {HANDLERS}",
    "Hydra's own log": f"hydra:\n  hydra_logging: {HANDLERS}",
    "Hydra's folder": "hydra:\n  run: {dir: EVIL}",
    "Hydra's subfolder": "hydra:\n  output_subdir: EVIL",
    "the environment": "hydra:\n  job: {env_set: {EVIL: x}}",
    "a copied variable": "hydra:\n  job: {env_copy: [EVIL]}",
    "the working folder": "hydra:\n  job: {chdir: true}",
}
TYPED = [
    "_target_=os.getcwd",
    "train._target_=os.getcwd",
    "+train.x={_target_:os.getcwd}",
    "export.formats=[{_target_:os.getcwd}]",
    f"+hydra.callbacks.x={CALL.replace(': ', ':')}",
    "hydra.launcher._target_=os.getcwd",
    "hydra/launcher=basic",
    "hydra.sweeper._target_=os.getcwd",
    "hydra.run.dir=EVIL",
    "hydra.job.env_copy=[EVIL]",
    "hydra.job.env_copy=[PATH]",
]
SEARCH_PATH = "hydra:\n  searchpath: [pkg://evil]\n"


@pytest.fixture
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    (folder / "experiments").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.mark.fast
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_that_names_what_is_run_or_where_hydra_writes_is_refused(work, capsys, content, sweep):
    (work / "experiments" / "evil.yaml").write_text(f"# @package _global_\n{content}\n")
    assert run([*SHOW, *sweep, "experiment=evil"]) == 2
    assert "take it out" in capsys.readouterr().err
    assert not (work / "EVIL").exists()
    assert "EVIL" not in os.environ


@pytest.mark.fast
@pytest.mark.parametrize("typed", TYPED)
def test_an_override_that_does_is_refused(work, capsys, typed):
    assert run([*SHOW, typed]) == 2
    assert "take it out" in capsys.readouterr().err
    assert not (work / "EVIL").exists()


@pytest.mark.fast
def test_a_group_option_and_a_saved_config_that_do_are_refused(work, capsys):
    (work / "conf" / "train").mkdir(parents=True)
    (work / "conf" / "train" / "evil.yaml").write_text(f"x: {CALL}\n")
    assert run([*SHOW, "train=evil"]) == 2
    assert "train.x._target_: a config can't name a class or function to run" in capsys.readouterr().err
    assert run(SHOW) == 0
    saved = work / "saved.yaml"
    saved.write_text(capsys.readouterr().out + f"evil: {CALL}\n")
    assert run(["--config-name", str(saved), "--cfg", "job"]) == 2
    assert "evil._target_: a config can't name a class or function to run" in capsys.readouterr().err
    assert not (work / "EVIL").exists()


@pytest.mark.fast
def test_control_without_the_guard_hydra_runs_what_a_file_names(work, monkeypatch):
    monkeypatch.setattr("llmtune.config.compose.guarded", nullcontext)
    (work / "experiments" / "evil.yaml").write_text(f"# @package _global_\n{FILES['Hydra callbacks']}\n")
    with pytest.warns(UserWarning, match="Callback"):
        run([*SHOW, "experiment=evil"])
    assert (work / "EVIL").exists()


@pytest.fixture
def package(work, monkeypatch):
    """A package in the working folder that leaves a mark once it is imported."""
    (work / "evil").mkdir()
    (work / "evil" / "__init__.py").write_text("from pathlib import Path\nPath('EVIL').mkdir()\n")
    monkeypatch.syspath_prepend(work)
    yield
    sys.modules.pop("evil", None)


def _with_search_path(config: Path) -> None:
    """Put a primary config into the working folder that is ours but for where configs are read from."""
    config.parent.mkdir(exist_ok=True)
    config.write_text((resource_dir("conf") / "config.yaml").read_text().replace("hydra:\n", SEARCH_PATH))


@pytest.mark.fast
@pytest.mark.usefixtures("package")
def test_a_file_that_names_packages_to_read_configs_from_is_refused_before_one_is_imported(work, capsys):
    assert run(SHOW) == 0
    (work / "saved.yaml").write_text(capsys.readouterr().out + SEARCH_PATH)
    (work / "experiments" / "evil.yaml").write_text(f"# @package _global_\n{SEARCH_PATH}")
    assert run([*SHOW, "experiment=evil"]) == 2
    assert "hydra.searchpath" in capsys.readouterr().err
    assert run(["--config-name", "saved.yaml", "--cfg", "job"]) == 2
    assert capsys.readouterr().err == "llmtune: hydra: a saved config can't hold it; take it out of the file.\n"
    for options in ([], ["-m", "seed=1,2"]):
        _with_search_path(work / "conf" / "config.yaml")
        assert run([*SHOW, *options]) == 2
        assert "hydra.searchpath: a file can't say where configs are read from" in capsys.readouterr().err
    assert not (work / "EVIL").exists()


@pytest.mark.usefixtures("package")
def test_a_run_folder_whose_config_does_is_refused(work, capsys):
    assert run(["train", *WORK, "tracking.backend=none"]) == 0
    folder = list_runs(Path("runs"))[0].folder
    for key, content in {"hydra": SEARCH_PATH, "defaults": "defaults: [evil]\n"}.items():
        saved = folder.config_file.read_text()
        folder.config_file.write_text(saved + content)
        capsys.readouterr()
        for command in (["train"], ["generate", "generate.prompt=x"]):
            assert run([*command, f"run={folder.path}"]) == 2
            assert f"{key}: a saved config can't hold it; take it out" in capsys.readouterr().err
        folder.config_file.write_text(saved)
    assert not (work / "EVIL").exists()


@pytest.mark.fast
@pytest.mark.usefixtures("package")
def test_control_without_the_guard_hydra_imports_what_a_file_names(work, monkeypatch):
    monkeypatch.setattr("llmtune.config.compose.guarded", nullcontext)
    _with_search_path(work / "conf" / "config.yaml")
    run(SHOW)
    assert (work / "EVIL").exists()


@pytest.mark.fast
def test_hydras_own_help_is_shown_and_guarded_too(work, capsys):
    with pytest.raises(SystemExit) as ended:
        run(["--hydra-help"])
    assert ended.value.code == 0
    assert "Hydra's help" in capsys.readouterr().out
    logging = work / "conf" / "hydra" / "hydra_logging" / "none.yaml"
    logging.parent.mkdir(parents=True)
    logging.write_text(HANDLERS)
    assert run(["--hydra-help"]) == 2
    assert "hydra.hydra_logging: names what is written and how" in capsys.readouterr().err
    assert not (work / "EVIL").exists()


@pytest.mark.fast
@pytest.mark.parametrize("depth", ["top", "nested"])
@pytest.mark.parametrize("key", ["auto_map", "custom_code", "_attn_implementation_internal"])
def test_a_model_whose_config_asks_for_code_at_any_depth_is_refused(tmp_path, key, depth):
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "tiny_llama", folder)
    content = json.loads((folder / "config.json").read_text())
    asks = {key: "owner/kernel"}
    (folder / "config.json").write_text(json.dumps({**content, **(asks if depth == "top" else {"text_config": asks})}))
    with pytest.raises(ModelError, match=rf"needs Python code of its own \({key} in config\.json\)"):
        locate_model(ModelConfig(name="x", source="folder", path=str(folder)), tmp_path)


def test_a_link_in_a_run_folder_leads_no_export_out_of_it(work, capsys):
    assert run(["train", *WORK, "tracking.backend=none"]) == 0
    folder = list_runs(Path("runs"))[0].folder.path
    precious = work / "elsewhere" / "hf" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    (folder / "exports").symlink_to(work / "elsewhere")
    assert run(["export", f"run={folder}"]) == 2
    assert "is a link that leads out of the run folder" in capsys.readouterr().err
    assert precious.read_text() == "mine"
    (folder / "exports").unlink()
    (work / "linked-run").symlink_to(folder)
    assert run(["export", "run=linked-run"]) == 0
    assert (folder / "exports" / "hf" / "model.safetensors").exists()
