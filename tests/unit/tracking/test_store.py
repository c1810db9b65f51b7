import subprocess
import sys
from pathlib import Path

import pytest

from llmtune.errors import ConfigError
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.store import open_existing_store, open_store, resolve_tracking_uri, store_answers


@pytest.fixture(autouse=True)
def no_uri_from_outside(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.fast
def test_where_the_store_is(monkeypatch, tmp_path):
    assert resolve_tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_tracking_uri("sqlite:///sub/x.db", tmp_path) == f"sqlite:///{tmp_path}/sub/x.db"
    assert resolve_tracking_uri("sqlite:////abs/x.db", tmp_path) == "sqlite:////abs/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_tracking_uri(None, tmp_path) == "http://host:5000"
    assert resolve_tracking_uri("sqlite:////abs/x.db", tmp_path) == "sqlite:////abs/x.db"


@pytest.mark.fast
@pytest.mark.parametrize("uri", ["mlruns", "/tmp/mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_refused(uri, tmp_path):
    with pytest.raises(ConfigError, match=r"tracking\.uri=.* is a folder, which MLflow no longer writes to; set sql"):
        resolve_tracking_uri(uri, tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("s3://b/x", "=s3://b/x: s3 is no kind of MLflow store"),
        ("http://h:notaport", "=http://h:notaport: port could not be cast"),
        ("http://me:canary@h:99999", "=http://h:99999: port out of range"),
        ("http://[::1", r"=http://\[::1: invalid ipv6 url"),
        ("http://", "=http://: it names no host"),
        ("sqlite:///", "=sqlite:///: it names no file"),
        ("sqlite:///?timeout=1", r"=sqlite:///\?timeout=1: it names no file"),
        ("sqlite://x.db", "=sqlite://x.db: a SQLite store has three slashes"),
        ("sqlite:///.", r"=sqlite:///\.: is a folder; name a file in it, such as sqlite:///\./mlflow\.db"),
        ("http://me:canary/x@h", ": has an @ behind its host"),
        ("http://canary/x@h", ": has an @ behind its host"),
    ],
)
def test_what_can_never_be_a_store_is_refused_whoever_names_it(uri, problem, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=rf"^tracking\.uri{problem}") as caught:
        resolve_tracking_uri(uri, tmp_path)
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=rf"^MLFLOW_TRACKING_URI{problem}"):
        resolve_tracking_uri(None, tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize(
    "uri", ["databricks", "databricks://profile", "postgresql+psycopg2://u:p@h/db", "mysql://h:1/db", "https://h/x"]
)
def test_a_store_of_another_kind_stays_as_it_is(uri, tmp_path):
    assert resolve_tracking_uri(uri, tmp_path) == uri


@pytest.mark.fast
def test_nothing_listens():
    assert not store_answers("http://127.0.0.1:9")
    assert store_answers("sqlite:////x.db")
    assert open_existing_store("http://127.0.0.1:9") is None


@pytest.mark.fast
def test_a_server_behind_a_proxy_is_left_to_the_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert store_answers("http://me:pw@mlflow.example.org:9")
    assert not store_answers("http://me:pw@127.0.0.1:9")


def test_a_store_that_is_gone_is_not_made_again(tmp_path):
    assert open_existing_store(f"sqlite:///{tmp_path}/gone.db") is None
    assert list(tmp_path.iterdir()) == []


def test_artifacts_stand_beside_the_store_wherever_the_process_is(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    uri = f"sqlite:///{tmp_path}/with space/mlflow.db"
    store = open_store(uri, "tries", Path.cwd())
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (tmp_path / "with space" / "mlartifacts").as_uri()
    assert open_store(uri, "tries", Path.cwd()).experiment_id == store.experiment_id
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_deleted_experiment_is_refused_with_its_cure(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store = open_store(uri, "tries", tmp_path)
    MlflowClient(uri).delete_experiment(store.experiment_id)
    with pytest.raises(ConfigError, match=r"tracking\.experiment=tries was deleted .*mlflow experiments restore"):
        open_store(uri, "tries", tmp_path)


def test_processes_that_meet_a_fresh_store_all_get_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from llmtune.tracking.store import open_store\n"
        f"print(open_store('sqlite:///{tmp_path}/mlflow.db', 'tries', Path('.')).experiment_id)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert answers == [b"1"] * 3


def test_the_client_comes_without_telemetry_and_without_noise(tmp_path):
    code = (
        "from pathlib import Path; from llmtune.tracking.store import open_store\n"
        f"open_store('sqlite:///{tmp_path}/mlflow.db', 'tries', Path('.'))\n"
        "from mlflow.telemetry.client import get_telemetry_client; print(get_telemetry_client())"
    )
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(Path("src").absolute()), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("None\n", "")
