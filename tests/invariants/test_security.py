"""Nothing downloaded or named in a config is run, nothing pickled is touched, nothing is written elsewhere."""

import ast
import json
import os
import pickletools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmtune.config.model import ModelConfig
from llmtune.errors import ModelError
from llmtune.models.source import locate_model
from llmtune.runs.lookup import new_run_folder, new_sweep_folder
from llmtune.tracking import ui

ROOT = Path(__file__).parent.parent.parent
ASSETS = ROOT / "tests" / "assets"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNSAFE = {
    "torch.save",
    "torch.load",
    "torch.jit.load",
    "torch.export.load",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "pickle.dumps",
    "joblib.load",
    "joblib.dump",
    "dill.load",
    "dill.dump",
    "shelve.open",
    "pandas.read_pickle",
    "pd.read_pickle",
    "marshal.loads",
    "yaml.unsafe_load",
    "yaml.full_load",
    "hydra.utils.instantiate",
    "instantiate",
    "eval",
    "exec",
    "os.system",
}
ALLOWED = {"torchscript.py": {"torch.jit.load"}, "torch_export.py": {"torch.export.load"}}
"""By file of `export/shipped`: these run in the process that checks our own export, and by whoever got it from us."""
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
WHOLE_RUN = [
    "hardware.num_threads=1",
    "hardware=cpu",
    "data.max_seq_len=64",
    "data.num_examples=32",
    "train.num_epochs=1",
    "evaluate.sample_max_new_tokens=4",
    "evaluate.num_general_examples=0",
    f"model={ASSETS / 'tiny_llama'}",
    f"data.path={ASSETS / 'examples.jsonl'}",
]
WATCHED = """
import json, sys
away, written = [], []
def watch(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        local = isinstance(address, (str, bytes)) or str(address[0]).startswith("127.") or address[0] in ("::1",)
        if not local:
            away.append(str(address))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if arguments[0] not in (None, "localhost", "127.0.0.1", "::1", b"localhost"):
            away.append(str(arguments[0]))
    elif event == "socket.sendto":
        away.append(str(arguments[1]))
sys.addaudithook(watch)
"""


def unsafe_calls(source: str) -> list[str]:
    """Calls that load or save a pickle, or run what data names, in a module's source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if name in UNSAFE or name.endswith(".load_state_dict_from_url") or name.endswith("read_pickle"):
                found.append(name)
            found += [key for key in ("allow_pickle", "shell") if key in keywords and not _is_false(keywords[key])]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [module] if module in UNSAFE_MODULES else sorted(names & UNSAFE)
    return found


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


@pytest.mark.fast
def test_no_source_file_loads_or_saves_a_pickle_or_runs_what_data_names():
    files = sorted((ROOT / "src").rglob("*.py"))
    assert len(files) > 100
    found = {file: calls for file in files if (calls := set(unsafe_calls(file.read_text(encoding="utf-8"))))}
    shipped = ROOT / "src" / "llmtune" / "export" / "shipped"
    assert found == {shipped / name: calls for name, calls in ALLOWED.items()}


@pytest.mark.fast
@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "import torch\ntorch.save({}, 'x')",
        "import torch\ntorch.export.load('x')",
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from hydra.utils import instantiate",
        "import hydra\nhydra.utils.instantiate(config)",
        "from torch import load",
        "import subprocess\nsubprocess.run('x', shell=True)",
    ],
)
def test_control_each_unsafe_call_is_seen(source):
    assert unsafe_calls(source)


def is_pickle(content: bytes) -> bool:
    """Whether a file's content is a pickle, or a zip archive that holds one, as torch.save writes it."""
    if content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content.rstrip()[-1:] == b".":
        try:
            return sum(1 for _ in pickletools.genops(content)) > 1
        except ValueError:
            return False
    return content[:2] == b"PK" and b"data.pkl" in content


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Path, list[str]]:
    """A jail in which all four stages ran in a process of their own, and the connections that it sought."""
    jail = tmp_path_factory.mktemp("jail")
    for name in ("work", "home", "elsewhere", "temporary"):
        (jail / name).mkdir()
    code = WATCHED + (
        "import os; from llmtune.cli import run\n"
        f"status = run({[*WHOLE_RUN, f'cache_dir={jail}/cache', f'export.path={jail}/named']!r})\n"
        "print('AWAY', json.dumps(away)); sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=jail / "work",
        env=_environment(jail),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("AWAY "))
    return jail, json.loads(line.removeprefix("AWAY "))


def _environment(jail: Path) -> dict[str, str]:
    """As a person has it who set nothing: only the place of the home folder differs."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    places = {"HOME": str(jail / "home"), "TMPDIR": str(jail / "temporary"), "PYTHONPATH": str(ROOT / "src")}
    return {**kept, **places, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def test_all_four_stages_seek_no_connection_beyond_this_machine(whole_run):
    _, away = whole_run
    assert away == []


@pytest.mark.fast
def test_control_a_connection_is_seen():
    code = WATCHED + (
        "import socket\nprobe = socket.socket(); probe.settimeout(0.1)\n"
        "try: probe.connect(('192.0.2.1', 9))\nexcept OSError: pass\nprint(json.dumps(away))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "192.0.2.1" in done.stdout


@pytest.mark.slow
def test_no_process_of_a_sweep_seeks_a_connection_beyond_this_machine(tmp_path):
    for name in ("work", "home", "elsewhere", "temporary", "hook", "seen"):
        (tmp_path / name).mkdir()
    # Python imports it at the start of every process that inherits the path
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        f"import os\nseen = open({str(tmp_path / 'seen')!r} + f'/{{os.getpid()}}', 'a', buffering=1)\n"
        + WATCHED.replace("away, written = [], []", "class away: append = lambda text: seen.write(text + '\\n')")
    )
    environment = _environment(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "hook"), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "llmtune", "-m", "seed=1,2", *WHOLE_RUN, f"cache_dir={tmp_path}/cache"]
    done = subprocess.run(
        command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = list((tmp_path / "seen").iterdir())
    assert len(seen) >= 3, "the sweep and its two jobs"
    assert [file.read_text() for file in seen if file.stat().st_size] == []

    # control: the hook sees one
    probe = "import socket\nwith socket.socket() as s:\n    s.settimeout(0.1)\n    s.connect_ex(('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True, timeout=60)
    assert [file for file in (tmp_path / "seen").iterdir() if "192.0.2.1" in file.read_text()]


def test_a_whole_run_writes_only_to_its_folder_the_cache_the_store_and_the_path_that_was_named(whole_run):
    jail, _ = whole_run
    files = {str(file.relative_to(jail)) for file in jail.rglob("*") if file.is_file()}
    store = r"work/mlflow\.db|work/\.mlflow\.db\.lock|work/mlartifacts/"
    allowed = re.compile(rf"work/runs/[^/]+/|{store}|cache/|named/")
    assert {file for file in files if not allowed.match(file)} == set()
    assert sum(file.startswith("work/runs/") for file in files) > 10
    assert {file.split("/")[1] for file in files if file.startswith("named/")} == {"adapter", "hf"}


def test_a_whole_run_leaves_no_pickle(whole_run):
    jail, _ = whole_run
    files = [file for file in jail.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 20
    assert [str(file) for file in files if is_pickle(file.read_bytes())] == []
    endings = {file.suffix for file in files}
    assert not endings & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"}


@pytest.mark.fast
def test_control_a_pickle_is_seen(tmp_path):
    import pickle

    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "x")
    assert is_pickle((tmp_path / "x").read_bytes())
    assert all(is_pickle(pickle.dumps({"a": [1, "b"]}, protocol)) for protocol in (2, 3, 4, 5))
    assert not is_pickle((ASSETS / "tiny_llama" / "model.safetensors").read_bytes())


def _model_with(tmp_path, **changes) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "tiny_llama", folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path)!r}, 'EVIL').touch()\n")
    return folder


@pytest.mark.parametrize("changes", [{"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, {"custom_code": True}])
def test_a_model_that_brings_code_is_refused_and_nothing_of_it_runs(tmp_path, changes):
    folder = _model_with(tmp_path, **changes)
    with pytest.raises(ModelError, match="needs Python code of its own"):
        locate_model(ModelConfig(name="x", source="folder", path=str(folder)), tmp_path)
    assert not (tmp_path / "EVIL").exists()


def test_control_the_same_model_without_code_is_taken(tmp_path):
    folder = _model_with(tmp_path, auto_map=None)
    assert locate_model(ModelConfig(name="x", source="folder", path=str(folder)), tmp_path).folder == folder.resolve()


@pytest.mark.fast
def test_mlflow_starts_without_telemetry_pickles_jobs_or_an_address_that_others_reach(monkeypatch):
    started = {}

    def popen(command, **settings):
        started.update(command=command, **settings)

    monkeypatch.setattr(ui.subprocess, "Popen", popen)
    for name in ui._QUIET:
        monkeypatch.setenv(name, "whatever the person has")
    ui._start("sqlite:////x.db", 5000)
    command, environment = started["command"], started["env"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "shell" not in started
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_our_own_process_has_mlflow_without_telemetry_and_pickles(tmp_path):
    code = (
        "from llmtune.tracking import client\n"
        "from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION as pickles\n"
        "from mlflow.telemetry.client import get_telemetry_client; print(pickles.get(), get_telemetry_client())"
    )
    command = [sys.executable, "-c", code]
    environment = {**_environment(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert done.stdout.split() == ["False", "None"]


NASTY = ["../../escaped", "/etc/escaped", "..", ".", "a/../../escaped", "~/escaped", "a\\..\\b", "a\nb", "x\x00y", ""]


@pytest.mark.fast
@pytest.mark.parametrize("name", NASTY)
def test_no_name_of_a_model_or_method_leads_out_of_the_runs_folder(tmp_path, name):
    from datetime import datetime

    runs = tmp_path / "jail" / "runs"
    for method, model in ((name, "m"), ("lora", name)):
        made = new_run_folder(runs, method, model, datetime(2026, 1, 2)).path
        assert made.parent == runs
        assert made.resolve().parent == runs.resolve()
    assert new_sweep_folder(runs, datetime(2026, 1, 2)).path.parent == runs
    assert [entry.name for entry in tmp_path.iterdir()] == ["jail"]
    assert [entry.name for entry in (tmp_path / "jail").iterdir()] == ["runs"]


def test_names_with_dots_and_slashes_leave_every_other_folder_as_it_is(tmp_path, monkeypatch):
    from llmtune.cli import run

    work = tmp_path / "a" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    names = ["model.name=../../../escaped", "tracking.experiment=../../escaped"]
    prepare = ["prepare", *WHOLE_RUN, "tracking.system_metrics=false", f"cache_dir={work}/cache"]
    assert run([*prepare, *names]) == 0
    assert run([*prepare, "tracking.backend=none", "model.name=/escaped"]) == 0
    for typed in ("method=../../escaped", "experiment=../../escaped", "hardware=/etc/passwd"):
        assert run([*prepare, typed]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["work"]
    assert not Path("/escaped").exists()
    assert {entry.name for entry in work.iterdir()} <= {"runs", "cache", "mlflow.db", ".mlflow.db.lock", "mlartifacts"}
    assert all(folder.name.startswith("20") for folder in (work / "runs").iterdir())
