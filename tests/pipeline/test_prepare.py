"""`prepare` as a person types it: what it shows, writes and records, what it keeps to itself, and what it refuses."""

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from llmtune.runs.status import RunStatusFile

from .conftest import ASSETS, SHORT, Workplace

QUICK = ["method=lora", "hardware=cpu", "evaluate.num_samples=0", "export.max_loss_rise=10", "train.max_steps=2"]
ALONE = [*QUICK, "tracking=none", "prepare"]
BEASTS = ("cat", "owl", "hen", "ant", "fox", "bee", "cow", "dog", "elk", "emu")


def pairs(count: int, start: int = 0, completion: str = " the {beast} went {miles} miles") -> list[dict[str, Any]]:
    """Prompt/completion rows of which no two are nearly the same."""
    chosen = random.Random(start)
    return [
        {
            "prompt": f"number {number}: {' '.join(chosen.sample(BEASTS, 4))} and",
            "completion": completion.format(beast=chosen.choice(BEASTS), miles=number * 7),
        }
        for number in range(start, start + count)
    ]


@pytest.fixture
def write(workplace: Workplace) -> Callable[..., str]:
    """Writes rows, or lines as they are, into a JSONL file, and returns its name."""

    def write_file(name: str, rows: Sequence[dict[str, Any] | str]) -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (workplace.folder / name).write_text("\n".join(lines) + "\n")
        return name

    return write_file


def command(workplace: Workplace, *words: str) -> list[str]:
    """The words of a command on the tiny model."""
    return [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"cache_dir={workplace.folder / 'cache'}", *words]


def tracked(workplace: Workplace) -> tuple[MlflowClient, Run]:
    """The store and its only run."""
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("llmtune")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def text_of(page: str) -> str:
    """What a page says, its tokens joined."""
    return re.sub(r"<[^>]*>", "", page)


def test_prepare_alone_shows_and_writes_what_the_model_will_learn_from(workplace, write, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rows = pairs(100)
    name = write("mine.jsonl", [*rows, rows[0], "", *({**row, "note": "x"} for row in pairs(5, 200))])
    assert workplace.train(*ALONE, f"data.path={name}") == 0
    run = workplace.newest
    report = json.loads(run.data_report.read_text())
    splits = report["splits"]
    held_out = splits["validation"]["num_rows"] + splits["test"]["num_rows"]
    over = {"over the limit of train examples": 107 - 2 - 64 - held_out}
    assert report["rows"]["in"] == 107 and report["rows"]["dropped"] == {"duplicate": 1, "blank line": 1} | over
    shown = capsys.readouterr()
    told = " ".join((shown.out + shown.err).split())
    assert "mine.jsonl, 107 rows: 106 as prompt and completion: every row has `prompt` and `completion`" in told
    for split, shown_as in (("train", "training"), ("validation", "validation"), ("test", "test")):
        figures = [splits[split][key] for key in ("num_rows", "num_examples", "num_tokens")]
        assert re.search(rf"{shown_as} +│ +" + r" │ +".join(f"{figure:,}" for figure in figures), shown.out), shown.out
    assert f"left out: {sum(report['rows']['dropped'].values())} of 107 rows" in told
    assert "warning: column note of" in told and "data.*_column" in told
    assert f"what the model will learn from: {run.data_page}" in told
    page = text_of(run.data_page.read_text())
    assert "Rows left out, by reason" in page
    assert f"{splits['train']['num_tokens']:,} training tokens" in page
    assert workplace.manifest.stage("prepare")["digest"] == report["digest"]
    assert not workplace.manifest.stage("train") and not run.checkpoints.exists()


def test_page_and_report_are_artifacts_and_the_splits_inputs(workplace, write) -> None:
    name = write("mine.jsonl", pairs(60))
    assert workplace.train(*QUICK, "prepare", f"data.path={name}") == 0
    client, run = tracked(workplace)
    folder = workplace.newest
    for file in (folder.data_page, folder.data_report):
        got = client.download_artifacts(run.info.run_id, file.name, str(workplace.folder))
        assert Path(got).read_bytes() == file.read_bytes()
    splits = json.loads(folder.data_report.read_text())["splits"]
    assert run.inputs is not None
    inputs = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    assert set(inputs) == {f"files-{split}" for split in splits if splits[split]["num_rows"]}
    for entry in inputs.values():
        assert str(workplace.folder / name) in entry.dataset.source
        assert workplace.manifest.section("data")["digest"].startswith(entry.dataset.digest)
    (context,) = (tag.value for tag in inputs["files-train"].tags if tag.key == "mlflow.data.context")
    assert context == "train"


CANARIES = {name: f"zq{name}vx" for name in ("text", "prompt", "completion", "turn", "answer", "bad", "mail", "group")}


def _rows_with_canaries() -> dict[str, list[dict[str, Any] | str]]:
    """Every shape with its canary; a row of each fault: a duplicate, an outlier, personal data, a broken record."""
    words = CANARIES
    texts = [
        {"text": f"{words['text']} {row['prompt']}{row['completion']}", "by": f"{words['group']} {number // 4}"}
        for number, row in enumerate(pairs(60))
    ]
    rows = pairs(30, 100, completion=f" {words['completion']} " + "{beast} {miles}")
    completions = [{**row, "prompt": f"{words['prompt']} {row['prompt']}"} for row in rows]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{words['turn']} {row['prompt']}"},
                {"role": "assistant", "content": f"{words['answer']}{row['completion']}"},
            ]
        }
        for row in pairs(30, 200)
    ]
    long = {"text": f"{words['text']} " * 400, "by": "other"}
    mail = {"text": f"write to {words['mail']}@{words['mail']}.org", "by": "other"}
    return {
        "texts.jsonl": [*texts, texts[0], long, mail, f'{{"text": "{words["bad"]}', {"text": {words["bad"]: 1}}],
        "pairs.jsonl": [*completions, {"prompt": words["prompt"], "completion": 3}],
        "chats.jsonl": [*chats, {"messages": [{"role": words["bad"], "content": words["turn"]}]}],
    }


def _mixture(write: Callable[..., str]) -> list[str]:
    rows = _rows_with_canaries()
    files = [write(name, lines) for name, lines in rows.items()]
    sources = [f"{{path: {name}{', group_column: by' if name == 'texts.jsonl' else ''}}}" for name in files]
    return ["data=mixture", f"data.sources=[{', '.join(sources)}]", "data.on_bad_record=skip", "data.test_fraction=0.3"]


def test_without_text_no_file_and_no_line_holds_any(workplace, write, capsys) -> None:
    words = [*QUICK[:2], "evaluate.num_samples=2", *QUICK[3:], *_mixture(write)]
    stages = ("prepare", "train", "evaluate", "export")
    assert workplace.type(*command(workplace, *words, "tracking.log_text=false", *stages)) == 0
    shown = capsys.readouterr()
    report = json.loads(workplace.newest.data_report.read_text())
    assert report["bad_records"]["count"] == 4 and report["personal_data"]["kinds"]["email"]["rows"] == 1
    assert report["outliers"]["repetition"]["count"] == 1 and report["duplicates"]["exact"] == 1
    kept = [workplace.newest.path, workplace.folder / "mlruns", workplace.folder / "mlflow.db"]
    files = [path for place in kept for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    assert len(files) > 20 and any(path.name == "data_report.html" for path in files)
    said = {"terminal": (shown.out + shown.err).encode()} | {str(path): path.read_bytes() for path in files}
    said |= {f"{path}: text": text_of(path.read_text()).encode() for path in files if path.suffix == ".html"}
    assert [(where, word) for where, data in said.items() for word in CANARIES.values() if word.encode() in data] == []


def test_with_text_the_page_shows_examples_of_every_file(workplace, write, capsys) -> None:
    """The control of the test above: the same data, and what is shown of it."""
    assert workplace.type(*command(workplace, *ALONE, *_mixture(write))) == 0
    page = text_of(workplace.newest.data_page.read_text())
    for name in ("text", "prompt", "completion", "turn", "answer"):
        assert CANARIES[name] in page
    for name in ("bad", "mail", "group"):
        assert CANARIES[name] not in page
    shown = capsys.readouterr().out
    assert any(CANARIES[name] in shown for name in ("text", "prompt", "turn"))


MIXTURE = """\
# @package _global_
defaults:
  - override /data: mixture
  - override /method: lora

data:
  max_seq_len: 64
  sources:
    - path: one.jsonl
      weight: 2
      licence: CC-BY-4.0
    - path: two.jsonl
      licence: ODbL-1.0
"""


def test_licence_and_origin_stand_in_manifest_and_model_card(workplace, write) -> None:
    write("one.jsonl", pairs(40))
    write("two.jsonl", pairs(30, 100))
    (workplace.folder / "experiments").mkdir()
    (workplace.folder / "experiments" / "mine.yaml").write_text(MIXTURE)
    words = ["+experiment=mine", *QUICK[1:], "tracking=none", "export.formats=[hf]", "train", "export"]
    assert workplace.type(*[word for word in command(workplace, *words) if "num_examples" not in word]) == 0
    data = workplace.manifest.section("data")
    assert [(source["licence"], source["weight"], source["rows"]) for source in data["sources"]] == [
        ("CC-BY-4.0", 2.0, 40),
        ("ODbL-1.0", 1.0, 30),
    ]
    one, two = (source["kept"]["train"] for source in data["sources"])
    assert [source["path"] for source in data["sources"]] == [
        str(workplace.folder / name) for name in ("one.jsonl", "two.jsonl")
    ]
    assert all(len(source["files"][0]["sha256"]) == 64 for source in data["sources"])
    assert data["splits"]["train"]["num_examples"] == 2 * one + two > one + two
    card = (workplace.newest.exports / "hf" / "README.md").read_text()
    assert re.search(r"source 1 \| one\.jsonl, 40 rows, CC-BY-4\.0", card)
    assert re.search(r"source 2 \| two\.jsonl, 30 rows, ODbL-1\.0", card)
    assert f"training examples | {2 * one + two} " in card


def test_the_kept_rows_are_written_once_and_no_other_file_replaced(workplace, write, capsys) -> None:
    rows = pairs(60)
    name = write("mine.jsonl", [*rows[:30], rows[3], *rows[30:]])
    words = command(
        workplace, *ALONE, f"data.path={name}", "data.num_examples=1000", "data.write_clean=out/clean.jsonl"
    )
    assert workplace.type(*words) == 0
    clean = workplace.folder / "out" / "clean.jsonl"
    assert [json.loads(line) for line in clean.read_text().splitlines()] == rows
    assert "data.write_clean: 60 rows in " in capsys.readouterr().out
    assert workplace.type(*words) == 0
    with clean.open("a") as file:
        file.write("{}\n")
    before = clean.read_bytes()
    assert workplace.type(*words) == 2
    told = capsys.readouterr().err
    assert "another file is there" in told and "Traceback" not in told
    assert clean.read_bytes() == before and [path.name for path in clean.parent.iterdir()] == ["clean.jsonl"]


def test_the_kept_rows_are_never_written_where_rows_are_read_from(workplace, write, capsys) -> None:
    (workplace.folder / "in").mkdir()
    write("in/mine.jsonl", pairs(40))
    for path, target in (("in", "in/clean.jsonl"), ("in/*.jsonl", "in/clean.jsonl"), ("in/mine.jsonl",) * 2):
        assert workplace.type(*command(workplace, *ALONE, f"data.path={path}", f"data.write_clean={target}")) == 2
        told = capsys.readouterr().err
        assert "data.write_clean=" in told and "would read this file as examples" in told and "Traceback" not in told
    assert [path.name for path in (workplace.folder / "in").iterdir()] == ["mine.jsonl"]
    assert not (workplace.folder / "cache" / "prepared").exists()


def test_only_a_run_that_trains_writes_the_kept_rows(workplace, write) -> None:
    words = [*QUICK, "tracking=none", f"data.path={write('mine.jsonl', pairs(60))}", "data.write_clean=clean.jsonl"]
    assert workplace.train(*words, "train") == 0
    clean = workplace.folder / "clean.jsonl"
    before = clean.read_bytes()
    other = write("other.jsonl", [*pairs(60)[:5], *pairs(25, 500)])
    evaluate = ("evaluate", f"run={workplace.newest.path}", f"data.eval_path={other}")
    assert workplace.type(*evaluate, "data.max_seq_len=24") == 0
    assert clean.read_bytes() == before
    clean.write_text("mine")
    assert workplace.type(*evaluate, "data.max_seq_len=28") == 0
    assert clean.read_text() == "mine"


BROKEN = ('{"prompt": "zqbadvx', '{"prompt": "zqbadvx", "completion": 7}', '["zqbadvx"]')


def test_a_refused_file_lists_its_problems_and_the_run_has_failed(workplace, write, capsys) -> None:
    rows = pairs(40)
    name = write("mine.jsonl", [*rows[:10], BROKEN[0], *rows[10:20], BROKEN[1], BROKEN[2], *rows[20:]])
    assert workplace.train(*ALONE, f"data.path={name}") == 2
    shown = capsys.readouterr()
    for line in (11, 22, 23):
        assert f"{workplace.folder / name}:{line}: " in shown.err
    assert "data.on_bad_record=skip" in shown.err
    assert "Traceback" not in shown.err and "zqbadvx" not in shown.out + shown.err
    record = RunStatusFile(workplace.newest.status_file).read()
    assert record is not None and record.status == "FAILED"
    assert not workplace.newest.data_page.exists() and not workplace.manifest.stage("prepare")
    assert list((workplace.folder / "cache" / "prepared").glob("*/")) == []


def test_what_is_skipped_is_counted_and_the_rest_trained_on(workplace, write, capsys) -> None:
    rows = pairs(40)
    name = write("mine.jsonl", [*rows[:10], *BROKEN, *rows[10:]])
    words = [*QUICK, "tracking=none", "data.on_bad_record=skip", f"data.path={name}", "train"]
    assert workplace.train(*words) == 0
    data = workplace.manifest.section("data")
    assert workplace.manifest.stage("train")["steps"] == 2
    assert data["rows"]["in"] == 43 and sum(data["rows"]["kept"].values()) == 40
    assert data["bad_records"]["count"] == sum(data["rows"]["dropped"].values()) == 3
    assert "3 records can't be read and are left out" in capsys.readouterr().out


def test_a_test_file_that_the_model_was_trained_on_is_told(workplace, write, capsys) -> None:
    rows = pairs(60)
    name, known, unknown = (
        write("mine.jsonl", rows),
        write("known.jsonl", rows[:25]),
        write("new.jsonl", pairs(25, 500)),
    )
    assert workplace.train(*QUICK, "tracking=none", f"data.path={name}", "train") == 0
    told = []
    for test_file in (known, unknown):
        capsys.readouterr()
        assert workplace.type("evaluate", "run=latest", f"data.eval_path={test_file}") == 0
        shown = capsys.readouterr()
        told.append("the model may know them" in shown.out)
        assert ("25 examples of the data that the run took" in shown.out) == told[-1]
        assert workplace.manifest.stage("evaluate")["num_examples"] == 25
    assert told == [True, False]


def test_general_text_that_is_not_there_is_refused_before_training(workplace, capsys) -> None:
    words = ["evaluate.num_general_examples=2", "evaluate.general_path=no such.txt"]
    assert workplace.train("method=lora", "tracking=none", *words) == 2
    said = capsys.readouterr()
    assert f"evaluate.general_path={workplace.folder / 'no such.txt'}" in said.out + said.err
    assert not workplace.newest.checkpoints.exists()
