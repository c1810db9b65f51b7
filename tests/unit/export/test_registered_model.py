"""A checked export becomes a version in MLflow's registry, which answers without llmtune."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec as real_find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.config.checks import check_combinations
from llmtune.config.export import ExportConfig
from llmtune.config.model import ModelConfig
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError, ExportCheckFailed, LlmtuneError, UserError
from llmtune.export import registered_model
from llmtune.export.companions import write_scripts
from llmtune.export.registered_model import (
    RegistrationFacts,
    check_register,
    folder_digest,
    folder_sums,
    register,
    write_model,
)
from llmtune.tracking.client import MlflowClient, MlflowException
from llmtune.tracking.model_registry import ModelRegistry, version_link
from llmtune.tracking.store import open_store

AGAIN = "python -m llmtune export run=RUN"
CARD = "---\nlibrary_name: transformers\n---\n\n# tiny, tuned\n\nText of the card.\n"
FIGURES = {"max_relative_logit_difference": {"value": 2e-7, "bound": 1e-4, "passed": True}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one experiment, and a folder of tests' names in it."""
    folder = tmp_path_factory.mktemp("store")
    return open_store(f"sqlite:///{folder}/mlflow.db", "llmtune", folder), folder


@pytest.fixture
def exported(tmp_path, tiny_llama) -> Path:
    folder = tmp_path / "runs" / "one" / "exports" / "hf"
    shutil.copytree(tiny_llama, folder)
    write_scripts("hf", folder)
    (folder / "README.md").write_text(CARD)
    (folder / "parity.json").write_text(json.dumps({"figures": FIGURES}))
    return folder


@pytest.fixture
def facts(store, request) -> RegistrationFacts:
    """Of a run of its own, under a name of the test's own."""
    opened, folder = store
    run = opened.client.create_run(opened.experiment_id, run_name=request.node.name)
    return RegistrationFacts(
        name=re.sub(r"\W", "-", request.node.name),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        run_id=run.info.run_id,
        title="tiny.llama-lora",
        method="lora",
        base_model="HuggingFaceTB/SmolLM2-135M",
        base_sha256="ab" * 32,
        data_digest="cd" * 32,
        metrics={"loss": (3.0, 2.5), "perplexity": (None, 12.2)},
        again=AGAIN,
    )


def files_of(client: MlflowClient, model_id: str) -> Path:
    return Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))


def logged_models(client: MlflowClient, facts: RegistrationFacts):
    experiment = client.get_run(facts.run_id).info.experiment_id
    return client.search_logged_models([experiment], f"source_run_id = '{facts.run_id}'")


def test_a_version_says_what_it_is_and_belongs_to_its_run(store, exported, facts):
    client = store[0].client
    client.log_metric(facts.run_id, "evaluate/loss", 2.5, step=0)
    made = register(exported, facts)
    assert (made.version, made.is_new, made.is_proven) == (1, True, True)
    assert made.uri == f"models:/{facts.name}@proven" and made.as_json()["uri"] == made.uri

    version = client.get_model_version_by_alias(facts.name, "proven")
    assert int(version.version) == 1
    assert version.run_id == facts.run_id
    assert version.description == "# tiny, tuned\n\nText of the card.\n"
    told = {"method": "lora", "base_model": facts.base_model, "base_sha256": "ab" * 32, "data_digest": "cd" * 32}
    assert version.tags.items() >= {**told, "check": "passed", "export_sha256": made.digest}.items()
    assert version.tags.keys() - told.keys() == {"check", "export_sha256", "llmtune_version", "model_id"}

    (model,) = logged_models(client, facts)
    assert (model.model_id, model.name, str(model.status)) == (made.model_id, "tiny_llama-lora", "READY")
    assert model.params.items() >= told.items()
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": facts.name, "version": 1}]
    assert {one.key: one.value for one in model.metrics} == {
        "evaluate/loss": 2.5,
        "evaluate/base_loss": 3.0,
        "evaluate/perplexity": 12.2,
        "export/hf_max_relative_logit_difference": 2e-7,
    }
    run = client.get_run(facts.run_id)
    assert [one.model_id for one in run.outputs.model_outputs] == [made.model_id]
    assert len(client.get_metric_history(facts.run_id, "evaluate/loss")) == 1  # tied, not logged a second time


def test_the_files_are_the_exports_and_nothing_is_pickled_or_of_this_machine(
    store, exported, facts, tmp_path, monkeypatch
):
    (tmp_path / "uv.lock").write_text("version = 1\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "private"\nversion = "1"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_API_KEY", "s3cret-0123456789")
    base = str(tmp_path / "weights")
    with (exported / "README.md").open("a") as card:
        card.write("from http://me:s3cret-0123456789@host/data\n")
    facts = replace(facts, base_model=base, data_digest="http://me:pass-word@host/data")
    made = register(exported, facts)
    files = files_of(store[0].client, made.model_id)
    names = {path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()}
    own = {f"artifacts/model/{name}" for name in folder_sums(exported)}
    described = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "SHA256SUMS", "mlflow_text.py"}
    assert names == own | described | {"input_example.json", "serving_input_example.json"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=files, check=True)
    assert (files / "SHA256SUMS").read_text().count("\n") == len(own)
    for path in files.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not content.startswith(b"\x80") and b"cloudpickle" not in content, path
        assert (
            str(tmp_path).encode() not in content
            and str(Path(registered_model.__file__).parent).encode() not in content
        )
    version = store[0].client.get_model_version(facts.name, "1")
    assert version.tags["base_model"] == "weights" and version.tags["data_digest"] == "http://host/data"
    assert "s3cret" not in version.description and "me:" not in version.description
    requirements = (files / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements
    assert not any("+" in line or "llmtune" in line for line in requirements)


def test_the_model_is_staged_as_links(exported, tmp_path):
    (exported / "model.safetensors").write_bytes(b"\0" * 2**22)
    staged = tmp_path / "staged"
    write_model(exported, staged, folder_sums(exported), model_id="m-1", run_id="r")
    assert sum(path.lstat().st_size for path in staged.rglob("*") if path.is_file()) < 2**15
    assert (staged / "artifacts/model/model.safetensors").stat().st_size == 2**22


def test_the_same_files_are_registered_once_and_other_files_are_the_next_version(store, exported, facts):
    client = store[0].client
    first = register(exported, facts)
    again = register(exported, facts)
    assert again == replace(first, is_new=False)
    assert len(client.search_model_versions(f"name = '{facts.name}'")) == len(logged_models(client, facts)) == 1
    (exported / "config.json").write_text((exported / "config.json").read_text() + "\n")
    second = register(exported, facts)
    assert (second.version, second.is_proven) == (2, True) and second.digest != first.digest
    assert client.get_registered_model(facts.name).aliases == {"proven": 2}
    client.set_registered_model_alias(facts.name, "proven", "1")  # a person goes back
    kept = register(exported, facts)
    assert (kept.version, kept.is_new, kept.is_proven) == (2, False, False) and kept.uri == f"models:/{facts.name}/2"
    assert client.get_registered_model(facts.name).aliases == {"proven": 1}


def test_a_versions_description_is_cut_where_stores_would_refuse_it(store, exported, facts):
    (exported / "README.md").write_text("# long\n" + "word " * 2000)
    register(exported, facts)
    description = store[0].client.get_model_version(facts.name, "1").description
    assert len(description) == 5000 and description.endswith("the rest is in README.md beside the files.")


def test_what_a_killed_try_left_is_gone_on_with(store, exported, facts, monkeypatch):
    client = store[0].client
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "_log_metrics", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            register(exported, facts)
    assert [str(model.status) for model in logged_models(client, facts)] == ["PENDING"]
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "_move_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            register(exported, facts)
    assert client.get_registered_model(facts.name).aliases == {}
    found = register(exported, facts)
    assert (found.version, found.is_new, found.is_proven) == (1, False, True)
    (model,) = logged_models(client, facts)
    assert str(model.status) == "READY" and len(model.metrics) == 4


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "no record of a check"),
        ({"figures": {}}, "has not passed its check"),
        ({"figures": {"loss": {"value": 1.0, "bound": 0.1, "passed": False}}}, "has not passed its check"),
        ({"figures": [1]}, "no record of a check"),
    ],
)
def test_what_has_not_passed_its_check_is_not_registered(store, exported, facts, record, message):
    (exported / "parity.json").unlink()
    if record is not None:
        (exported / "parity.json").write_text(json.dumps(record))
    with pytest.raises(ExportCheckFailed, match=message):
        register(exported, facts)
    assert not logged_models(store[0].client, facts)


def test_a_store_that_is_away_leaves_the_export_and_says_what_to_type(exported, facts):
    away = replace(facts, tracking_uri="http://me:pass-word@127.0.0.1:9")
    before = folder_digest(folder_sums(exported))
    with pytest.raises(LlmtuneError) as caught:
        register(exported, away)
    assert f"To register it later: {AGAIN}" in str(caught.value) and str(exported) in str(caught.value)
    assert "nothing listens at http://127.0.0.1:9" in str(caught.value) and "pass-word" not in str(caught.value)
    assert folder_digest(folder_sums(exported)) == before
    check_register(away.name, away.tracking_uri)  # it may be back when training has ended


def test_a_full_disk_is_told_before_the_copy(store, exported, facts, monkeypatch):
    usage = shutil.disk_usage(exported)
    monkeypatch.setattr(registered_model.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(UserError, match=rf"has 0\.00 GiB free; make room there; then: {re.escape(AGAIN)}"):
        register(exported, facts)


def problems_of(name: str, **export) -> list[str]:
    config = RunConfig(
        model=ModelConfig(name="tiny", source="folder", path="tiny"), export=ExportConfig(register=name, **export)
    )
    return [problem for problem in check_combinations(config) if problem.startswith("export.register")]


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "a'b", "", " a", "a ", "-a", "a?b", "a\nb", "x" * 201])
def test_a_name_that_cant_be_is_refused_with_the_config(name):
    assert problems_of(name)[0].startswith(f"export.register={name}: no name for a model in MLflow")


@pytest.mark.parametrize("name", ["a", "qwen2.5-lora", "tiny stories", "Märchen_1", "0815"])
def test_a_name_that_passes_the_check_is_taken_by_mlflow(store, name):
    assert problems_of(name, formats=("hf", "onnx")) == []
    check_register(name, f"sqlite:///{store[1]}/mlflow.db")
    assert store[0].client.create_registered_model(name).name == name
    check_register(name, f"sqlite:///{store[1]}/mlflow.db")


def test_another_format_is_refused_with_the_config():
    assert problems_of("a", formats=("adapter",)) == [
        "export.register: registers the hf format; add hf to export.formats."
    ]


def test_every_reason_why_a_machine_cant_is_told_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://elsewhere")
    monkeypatch.setattr(registered_model, "find_spec", lambda name: None if name == "pandas" else real_find_spec(name))
    with pytest.raises(ConfigError) as caught:
        check_register("a", "databricks")
    told = str(caught.value)
    assert len(caught.value.problems) == 3 and "Databricks" in told
    assert "MLFLOW_REGISTRY_URI" in told and "pip install 'mlflow>=3.10,<4'" in told
    check_register(None, "databricks")


def test_a_prompts_name_is_refused(store):
    store[0].client.register_prompt("a-prompt", "Tell me about {{it}}.")
    with pytest.raises(ConfigError, match="is the name of a prompt"):
        check_register("a-prompt", f"sqlite:///{store[1]}/mlflow.db")


def test_a_server_without_a_registry_is_refused_before_training():
    class Old(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match="has no registry for models of MLflow 3"):
            check_register("a", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_busy_store_is_asked_again_and_any_other_refusal_is_not(store, monkeypatch):
    monkeypatch.setattr("llmtune.tracking.model_registry.time.sleep", lambda _: None)
    registry = ModelRegistry(f"sqlite:///{store[1]}/mlflow.db")
    answers = iter([MlflowException("database is locked"), MlflowException("Giving up after 3 attempts."), "done"])

    def call() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert registry._patiently(call) == "done"
    answers = iter([MlflowException("no such name"), "done"])
    with pytest.raises(MlflowException, match="no such name"):
        registry._patiently(call)


def test_a_versions_page():
    link = version_link("http://127.0.0.1:5000", "tiny stories", 3)
    assert link == "http://127.0.0.1:5000/#/models/tiny%20stories/versions/3"


_REGISTER = """
import sys, time
from pathlib import Path
from llmtune.export.registered_model import RegistrationFacts, register
import mlflow.pyfunc
folder, name, uri, run_id = sys.argv[1:]
facts = RegistrationFacts(name=name, tracking_uri=uri, run_id=run_id, title="t", method="lora", base_model="b",
    base_sha256="a", again="x")
print("ready", flush=True)
sys.stdin.readline()
print(register(Path(folder), facts).version)
"""


@pytest.mark.slow
def test_two_processes_that_register_at_once_both_have_a_version(store, exported, facts, tmp_path):
    client = store[0].client
    other = shutil.copytree(exported, tmp_path / "other")
    (other / "README.md").write_text("# other")
    runs = [facts.run_id, client.create_run(store[0].experiment_id, run_name="other").info.run_id]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _REGISTER, str(folder), facts.name, facts.tracking_uri, run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder, run in zip((exported, other), runs, strict=True)
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert sorted(process.communicate(timeout=120)[0].strip() for process in started) == ["1", "2"]
    finally:
        for process in started:
            process.kill()
    versions = client.search_model_versions(f"name = '{facts.name}'")
    assert {version.run_id for version in versions} == set(runs)
    assert client.get_registered_model(facts.name).aliases == {"proven": 2}


_LOAD = """
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "llmtune":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Hidden())
import mlflow

model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(["Once upon a time"], params={"max_new_tokens": 10}) == [sys.argv[2]])
assert not any(name.startswith("llmtune") for name in sys.modules)
"""


@pytest.mark.slow
def test_the_registered_model_answers_in_a_process_without_llmtune(exported, facts, tmp_path):
    made = register(exported, facts)
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    written = model.generate(ids, do_sample=False, max_new_tokens=10)[0, ids.shape[1] :]
    expected = tokenizer.decode(written, skip_special_tokens=True)
    shutil.rmtree(exported)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": facts.tracking_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _LOAD, made.uri, expected],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr
