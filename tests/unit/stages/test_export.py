"""The export stage goes on where it stopped, and never reads the test set."""

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtune.config.export import ExportConfig
from llmtune.errors import ExportCheckFailed, UserError
from llmtune.export import writing
from llmtune.export.format import CardFacts, ExportSubject
from llmtune.export.push import Pushed
from llmtune.export.report import Figure, ParityReport
from llmtune.export.writing import ExportResult
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages import export as stage
from llmtune.stages import shipping
from llmtune.tracking.null import NullTracker

pytestmark = pytest.mark.fast

Data = namedtuple("Data", "train validation test")


class Writer:
    """Stands for `write_export`: writes two files, keeps its rule on targets, fails where told to."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.contexts: list[Any] = []
        self.fail_at: str | None = None

    def __call__(self, chosen: Any, context: Any, target: Path, gate: Any, *, is_ours: bool) -> ExportResult:
        if not is_ours:
            writing.check_target(target, overwrite=context.settings.overwrite)
        if chosen.name == self.fail_at:
            raise ExportCheckFailed("differs")
        self.written.append(chosen.name)
        self.contexts.append(context)
        target.mkdir(parents=True, exist_ok=True)
        for file in ("parity.json", "README.md"):
            (target / file).write_text("{}")
        return ExportResult(target, ParityReport((Figure("difference", 0.25, 0.5, "made up"),), "two"), 4, 1.0)


@pytest.fixture
def writer(monkeypatch):
    chosen = Writer()
    monkeypatch.setattr(stage, "write_export", chosen)
    monkeypatch.setattr(stage, "tokenizer_digest", lambda tokenizer: tokenizer)
    monkeypatch.setattr(ExportSubject, "end_token_ids", [2])
    monkeypatch.setattr(stage, "Gate", lambda context, work: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(stage, "_facts", lambda context: CardFacts(title="tuned"))
    return chosen


def context_of(
    tmp_path: Path,
    *,
    validation: tuple = (1,),
    weights: str = "a",
    tokenizer: str = "plain",
    run: str = "run",
    **settings: Any,
) -> Any:
    folder = RunFolder(tmp_path / run)
    made = tmp_path / "checkpoint-4"
    made.mkdir(exist_ok=True)
    (made / "adapter_config.json").write_text("{}")
    (made / "adapter_model.safetensors").write_text(weights * 9)
    return SimpleNamespace(
        trained_run=RunFolder(tmp_path / "run"),
        config=SimpleNamespace(export=ExportConfig(**settings), tracking=SimpleNamespace(log_model="none")),
        folder=folder, manifest=Manifest(folder.manifest_file), tracker=NullTracker(), checkpoint=made,
        data=Data(train=(1, 2), validation=validation, test=(3,)),
        method=SimpleNamespace(name="lora"), source=SimpleNamespace(name="tiny", weights_digest="b"),
        tokenizer=tokenizer, precision=None, device=None,
    )  # fmt: skip


def test_a_failed_export_goes_on_with_the_format_that_is_missing(writer, tmp_path):
    writer.fail_at = "hf"
    with pytest.raises(ExportCheckFailed):
        stage.run(context_of(tmp_path))
    assert not context_of(tmp_path).manifest.stage("export")
    writer.fail_at = None
    stage.run(context_of(tmp_path))
    assert writer.written == ["adapter", "hf"]
    results = context_of(tmp_path).manifest.stage("export")
    assert list(results) == ["adapter", "hf"]
    for name, result in results.items():
        assert result["folder"] == str(tmp_path / "run" / "exports" / name)
        assert result["parity"]["figures"]["difference"]["value"] == 0.25


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "b"},
        {"tokenizer": "with another template"},
        {"max_shard_size": "1MB"},
        {"merge_base": "dequantized"},
        {"max_loss_rise": 0.01},
    ],
)
def test_a_format_made_from_something_else_is_written_again(writer, tmp_path, change):
    stage.run(context_of(tmp_path))
    stage.run(context_of(tmp_path, **change))
    assert writer.written == ["adapter", "hf", "adapter", "hf"]


def test_a_recorded_format_whose_folder_is_gone_is_written_again(writer, tmp_path):
    stage.run(context_of(tmp_path))
    (tmp_path / "run" / "exports" / "hf" / "README.md").unlink()
    stage.run(context_of(tmp_path))
    assert writer.written == ["adapter", "hf", "hf"]


def test_another_run_of_the_same_weights_finds_what_the_first_one_exported(writer, tmp_path):
    stage.run(context_of(tmp_path))
    stage.run(context_of(tmp_path, run="later"))
    assert writer.written == ["adapter", "hf"]
    stage.run(context_of(tmp_path, run="later", path=str(tmp_path / "elsewhere")))
    assert writer.written == ["adapter", "hf", "adapter", "hf"]


def test_an_interrupted_export_to_a_named_place_goes_on(writer, tmp_path):
    writer.fail_at = "hf"
    for _ in range(2):
        with pytest.raises(ExportCheckFailed):
            stage.run(context_of(tmp_path, path=str(tmp_path / "mine")))
    assert writer.written == ["adapter"]


def test_what_a_kill_left_in_the_run_folder_is_replaced_and_elsewhere_refused(writer, tmp_path):
    for folder in (tmp_path / "run" / "exports" / "adapter", tmp_path / "mine" / "adapter"):
        folder.mkdir(parents=True)
        (folder / "left").write_text("")
    stage.run(context_of(tmp_path, formats=("adapter",)))
    assert writer.written == ["adapter"]
    with pytest.raises(UserError, match="isn't empty"):
        stage.run(context_of(tmp_path, formats=("adapter",), path=str(tmp_path / "mine")))


@pytest.mark.parametrize(("validation", "split", "examples"), [((1,), "validation", (1,)), ((), "training", (1, 2))])
def test_the_test_set_is_never_read(writer, tmp_path, validation, split, examples):
    stage.run(context_of(tmp_path, validation=validation))
    assert {(context.split, context.examples) for context in writer.contexts} == {(split, examples)}


class Uploads:
    """Stands for `push`: notes what goes up, fails where told to."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.error: Exception | None = None

    def __call__(self, folder: Path, settings: Any, base_name: str, again: str) -> Pushed:
        assert (folder / "parity.json").exists(), "what goes up was checked"
        assert "export run=" in again
        if self.error is not None:
            raise self.error
        self.folders.append(folder.name)
        return Pushed("me/tuned", "c" * 40, "https://hub/me/tuned/commit/c", True)


@pytest.fixture
def uploads(monkeypatch):
    chosen = Uploads()
    monkeypatch.setattr(shipping, "push", chosen)
    return chosen


@pytest.mark.parametrize(("formats", "pushed"), [(None, "hf"), (("adapter",), "adapter"), (("hf",), "hf")])
def test_one_format_goes_up_and_is_recorded_with_its_commit(writer, uploads, tmp_path, capsys, formats, pushed):
    stage.run(context_of(tmp_path, formats=formats, push_to_hub="tuned"))
    results = context_of(tmp_path).manifest.stage("export")
    assert uploads.folders == [pushed]
    assert [name for name, result in results.items() if "hub" in result] == [pushed]
    assert results[pushed]["hub"] == {
        "repo": "me/tuned", "commit": "c" * 40, "url": "https://hub/me/tuned/commit/c", "private": True,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert f"the {pushed} format is uploaded to tuned" in said
    assert "uploaded to me/tuned, commit cccccccccccc (private)" in said and "https://hub/me/tuned/commit/c" in said


def test_without_push_nothing_goes_up(writer, uploads, tmp_path):
    stage.run(context_of(tmp_path))
    assert uploads.folders == []


def test_an_interrupted_upload_is_all_that_a_second_try_does(writer, uploads, tmp_path):
    uploads.error = UserError("the Hub is away")
    with pytest.raises(UserError, match="away"):
        stage.run(context_of(tmp_path, push_to_hub="tuned"))
    assert not context_of(tmp_path).manifest.stage("export")
    uploads.error = None
    stage.run(context_of(tmp_path, push_to_hub="tuned"))
    assert (writer.written, uploads.folders) == (["adapter", "hf"], ["hf"])


def account(name: str, *, measured: bool = False, num_examples: int = 2) -> dict[str, Any]:
    def source(name: str, role: str) -> dict[str, Any]:
        return {"name": name, "path": f"/d/{name}", "role": role, "rows": 9, "licence": "MIT"}

    sources = [source(name, "train"), *([source(f"test-{name}", "eval")] if measured else [])]
    return {"digest": f"digest of {name}", "sources": sources, "splits": {"train": {"num_examples": num_examples}}}


@pytest.mark.parametrize(
    ("trained", "evaluated", "expected"),
    [
        (
            account("poems", num_examples=180),
            account("other", measured=True),
            {
                "digest": "digest of poems",
                "training examples": 180,
                "source 1": "poems, 9 rows, MIT",
                "source 2": "test-other, measured on, MIT",
            },
        ),
        (
            account("poems", measured=True),
            None,
            {
                "digest": "digest of poems",
                "training examples": 2,
                "source 1": "poems, 9 rows, MIT",
                "source 2": "test-poems, measured on, MIT",
            },
        ),
        ({"digest": "of an old run"}, None, {"digest": "of an old run", "training examples": "not recorded"}),
        ({}, None, {"digest": "digest of here", "training examples": 7, "source": "here, 9 rows, MIT"}),
    ],
)
def test_the_card_describes_the_data_that_the_weights_were_trained_on(tmp_path, trained, evaluated, expected):
    trained_run, own = RunFolder(tmp_path / "trained"), Manifest(tmp_path / "own.json")
    if trained:
        Manifest(trained_run.manifest_file).record("data", trained)
    if evaluated:
        own.finish_stage("evaluate", {"loss": 1.0})
    report = evaluated or account("here", num_examples=7)
    context = SimpleNamespace(
        data=SimpleNamespace(digest=report["digest"], report=report), trained_run=trained_run, manifest=own
    )
    assert stage._trained_on(context) == expected
