"""The list of runs: what it shows, how it is filtered, what a damaged run does to it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmtune.commands import run_follow, runs
from llmtune.commands.run_entries import RunEntry, run_entries
from llmtune.commands.run_follow import MetricsTail, Progressed
from llmtune.commands.run_table import runs_text, shown_seconds
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.config.saved import config_text
from llmtune.errors import ConfigError, Interrupted, RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile

pytestmark = pytest.mark.fast
START = datetime(2026, 3, 4, 5, 0, tzinfo=UTC)
TRAINED = {"best_validation_loss": 2.5, "final_loss": 2.25}


@pytest.fixture(scope="module")
def config_of():
    """The saved text of a composed config, each set of overrides composed once."""
    texts = {}

    def text(*overrides):
        if overrides not in texts:
            config = compose(Composition([], ["data=files", "++data.path=/d/mine.jsonl", *overrides]), lambda *_: [])
            assert isinstance(config, RunConfig)
            texts[overrides] = config_text(config)
        return texts[overrides]

    return text


@pytest.fixture
def make(tmp_path, monkeypatch, config_of):
    """Makes a run folder; the working folder is the one that `runs` stands in."""
    monkeypatch.chdir(tmp_path)

    def make(name, *overrides, status="FINISHED", stages=None, minutes=0, below="runs"):
        folder = RunFolder(tmp_path / below / name)
        folder.path.mkdir(parents=True)
        folder.config_file.write_text(config_of(*overrides))
        record = asdict(RunStatusFile(folder.status_file).start(f"{minutes:032x}"))
        started = START + timedelta(minutes=minutes)
        record |= {"status": status, "started_at": started.isoformat()}
        if status != "RUNNING":
            record |= {"ended_at": (started + timedelta(seconds=75)).isoformat()}
        if status == "FAILED":
            record["error"] = "the data is empty"
        folder.status_file.write_text(json.dumps(record))
        if stages is not None:
            folder.manifest_file.write_text(json.dumps({"format_version": 1, "stages": stages}))
        return folder

    return make


def _kill(folder):
    """Let the status file name a process that is no more."""
    content = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps({**content, "pid": 2**22 + 1}))


def _listed(capsys, *words):
    assert runs.run([*words, "--json"]) == 0
    return [entry["name"] for entry in json.loads(capsys.readouterr().out)]


def test_the_table_shows_each_run_newest_first(make, capsys):
    make("a", status="FINISHED", stages={"train": TRAINED, "evaluate": {"loss": 2.0}})
    make("b", "method=full", status="FAILED", minutes=1)
    assert runs.run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["status", "method", "model", "loss", "time", "started"]
    assert lines[1].split()[:2] == ["FAILED", "full"]
    assert "1 min 15 s" in lines[1]
    assert lines[2:4] == ["  runs/b", "  the data is empty"]
    assert lines[4].split()[:4] == ["FINISHED", "lora", "smollm2-135m-instruct", "2.0000"]
    assert lines[5:] == ["  runs/a", "", "2 runs"]


def test_the_loss_is_the_one_that_says_most_and_is_marked(make, capsys):
    make("validated", stages={"train": TRAINED})
    trains = make("trains", minutes=1)
    trains.metrics_file.write_text('{"step": 1, "train/loss": 3.5}\n{"step": 2, "train/loss": 3.25}\n{"step": 3, "tr')
    make("nothing", minutes=2)
    assert runs.run([]) == 0
    shown = capsys.readouterr().out
    assert "2.5000 validation" in shown
    assert "3.2500 train" in shown
    assert "loss: on the test set; marked where" in shown


def test_a_run_whose_process_is_gone_is_shown_as_killed(make, capsys):
    folder = make("gone", status="RUNNING")
    _kill(folder)
    make("lives", status="RUNNING", minutes=1)
    written = max(file.stat().st_mtime for file in folder.path.iterdir())
    assert runs.run(["--json"]) == 0
    lives, gone = json.loads(capsys.readouterr().out)
    assert (lives["status"], lives["error"]) == ("RUNNING", None)
    assert (gone["status"], gone["error"]) == ("KILLED", "the process is gone")
    record = RunStatusFile(folder.status_file).read()
    assert (record.status, record.error) == ("KILLED", "the process is gone")
    assert datetime.fromisoformat(record.ended_at).timestamp() == pytest.approx(written, abs=1e-3)


@pytest.mark.parametrize("below", ["runs", "runs/20260304-050000-sweep-ab12"])
def test_a_run_of_a_sweep_names_it(make, tmp_path, capsys, below):
    folder = make("job", below=below)
    make("alone")
    sweep = tmp_path / "runs" / "20260304-050000-sweep-ab12"
    sweep.mkdir(exist_ok=True)
    RunStatusFile(sweep / "status.json").start()
    (sweep / "summary.json").write_text(json.dumps([{"folder": str(folder.path)}]))
    assert runs.run([]) == 0
    assert "job  (sweep 20260304-050000-sweep-ab12)" in capsys.readouterr().out
    assert _listed(capsys, f"sweep={sweep.name}") == ["job"]


@pytest.mark.parametrize("file", ["config.yaml", "status.json", "manifest.json"])
@pytest.mark.parametrize("content", ["", "{", "\x00", "[1"])
def test_a_damaged_file_of_one_run_is_named_and_spoils_no_other(make, capsys, file, content):
    make("whole", stages={"evaluate": {"loss": 2.0}})
    (make("hurt", stages={}, minutes=1).path / file).write_text(content)
    assert runs.run([]) == 0
    shown = capsys.readouterr().out
    assert f"  {file} is damaged" in shown
    assert "?" in shown
    assert "2.0000" in shown
    assert runs.run(["--json"]) == 0
    problems = {entry["name"]: entry["problems"] for entry in json.loads(capsys.readouterr().out)}
    assert problems == {"whole": [], "hurt": [f"{file} is damaged"]}


def test_damaged_metrics_leave_the_whole_lines(make):
    folder = make("a")
    folder.metrics_file.write_bytes(
        b'{"step": 1, "train/loss": 3.0}\n\xff\xfe\n[1]\n{"step": 2, "train/loss": NaN}\n{"st'
    )
    assert RunEntry(folder).losses == {"train": 3.0}


def test_a_run_that_has_not_begun_is_listed(make, capsys):
    make("waits").status_file.unlink()
    assert runs.run(["status=not_started"]) == 0
    assert "NOT STARTED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["method=lora"], ["a"]),
        (["+method=lora"], ["a"]),
        (["--method", "full"], ["b"]),
        (["method=lora,full"], ["b", "a"]),
        (["model=smollm2-135m-instruct"], ["c", "b", "a"]),
        (["--model", "gpt2"], []),
        (["data=mine.jsonl"], ["c", "b", "a"]),
        (["data=files", "method.name=qlora"], ["c"]),
        (["data.path=/d/mine.jsonl", "seed=1"], ["b", "a"]),
        (["status=failed"], ["b"]),
        (["--status", "Failed,KILLED"], ["c", "b"]),
        (["train.learning_rate=2e-4"], ["c", "a"]),
        (["train.learning_rate=0.00002"], ["b"]),
        (["seed=2"], ["c"]),
        (["seed=2.0"], ["c"]),
        (["seed=two"], []),
        (["train.max_steps=null"], ["b", "a"]),
        (["train.max_steps=7"], ["c"]),
        (["evaluate.base=True"], ["c", "b", "a"]),
        (["export.formats=[hf,adapter]"], ["c"]),
        (["export.formats=[hf"], []),
        (["run=a"], ["a"]),
        (["run=latest"], ["c"]),
        (["--sort", "name"], ["a", "b", "c"]),
        (["--sort", "loss"], ["c", "a", "b"]),
        (["--sort", "time"], ["c", "b", "a"]),
        (["--sort", "started", "--limit", "2"], ["c", "b"]),
    ],
)
def test_runs_are_filtered_and_sorted(make, capsys, words, names):
    make("a", stages={"train": TRAINED})
    make("b", "method=full", status="FAILED", minutes=1)
    more = ("method=qlora", "++seed=2", "++train.max_steps=7", "++export.formats=[hf,adapter]")
    make("c", *more, status="KILLED", minutes=2, stages={"evaluate": {"loss": 9.0}})
    assert _listed(capsys, *words) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qq=1"], "qq=1: there is no such key. Any key of the config is one, and method, model,"),
        (["learning_rate=1"], "learning_rate=1: there is no such key. Did you mean train.learning_rate?"),
        (["train.lerning_rate=1"], "there is no such key. Did you mean train.learning_rate?"),
        (
            ["status=faild"],
            "status=faild: must be one of running, finished, failed, killed, not_started. Did you mean fai",
        ),
        (["--sort", "los"], "--sort los: must be one of started, loss, time, name. Did you mean loss?"),
        (["--limit", "0"], "--limit 0: must be a whole number from 1 up."),
        (["--limit"], "runs: argument --limit: expected one argument"),
        (["--stat", "failed"], "--stat: runs has no such option. Did you mean --status?"),
        (["latest"], "latest: runs takes KEY=VALUE, such as method=lora or run=latest."),
        (["runs_dir=nowhere"], "runs_dir=nowhere: there is no such folder."),
        (["--follow", "--json"], "--json: can't stand beside --follow."),
    ],
)
def test_what_makes_no_sense_is_refused(make, words, message):
    make("a")
    with pytest.raises(ConfigError) as caught:
        runs.run(words)
    assert message in str(caught.value)


def test_all_mistakes_come_at_once(make):
    make("a")
    with pytest.raises(ConfigError) as caught:
        runs.run(["qq=1", "--sort", "x", "--limit", "y"])
    assert len(caught.value.problems) == 3


def test_where_nothing_matches_it_says_what_there_is(make, capsys):
    assert runs.run([]) == 0
    assert capsys.readouterr().out == "there is no run in runs; train one, or set runs_dir=\n"
    make("a")
    make("b", "method=full", minutes=1).config_file.write_text("{")
    assert runs.run(["method=qlra"]) == 0
    shown = capsys.readouterr().out
    assert "no run of 2 has method=qlra; there are: lora" in shown
    assert "1 could not be filtered, since config.yaml can't be read: b" in shown
    assert runs.run(["method=lora", "status=failed"]) == 0
    assert "no run of 2 has status=FAILED; there are: FINISHED" in capsys.readouterr().out


def test_more_runs_than_the_limit_are_counted(make, capsys):
    for number in range(23):
        make(f"r{number}", minutes=number)
    assert runs.run([]) == 0
    shown = capsys.readouterr().out
    assert shown.count("FINISHED") == 20
    assert "23 runs; 3 more not shown: --limit 23" in shown
    assert runs.run(["--limit", "2", "method=lora"]) == 0
    assert "23 runs; 21 more not shown" in capsys.readouterr().out
    assert len(_listed(capsys)) == 23


def test_no_line_is_wider_than_a_hundred_columns(make):
    make("20260304-050607-qlora-smollm2-135m-instruct-ab12", "++model.name=" + "m" * 60, stages={"train": TRAINED})
    folder = make("20260304-050607-qlora-smollm2-135m-instruct-cd34", status="FAILED", minutes=1)
    content = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps({**content, "error": "words and " * 60}))
    lines = runs_text(run_entries(folder.path.parent), START).plain.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) == 7


def test_200_runs_are_listed_at_once_and_nothing_heavy_is_imported(make):
    for number in range(200):
        make(f"r{number}", minutes=number, stages={"train": TRAINED, "evaluate": {"loss": 2.0}})
    code = "import json, sys; from llmtune.commands import runs; runs.run(['method=lora']); "
    code += "print(json.dumps(sorted({'torch', 'mlflow', 'transformers'} & set(sys.modules))))"
    environment = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert time.perf_counter() - started < 5
    assert "200 runs; 180 more not shown" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.2, "0 s"), (59.7, "1 min 00 s"), (3725, "1 h 02 min"), (90000, "1 d 1 h")],
)
def test_lengths_of_time(seconds, shown):
    assert shown_seconds(seconds) == shown


def test_the_tail_reads_whole_lines_once_and_anew_where_the_file_is_new(tmp_path):
    file = tmp_path / "metrics.jsonl"
    tail = MetricsTail(file)
    assert tail.new_entries() == []
    file.write_text('{"step": 1}\n{"st')
    assert tail.new_entries() == [{"step": 1}]
    with file.open("a") as more:
        more.write('ep": 2}\nrubbish\n')
    assert tail.new_entries() == [{"step": 2}]
    assert tail.new_entries() == []
    (tmp_path / "new").write_text('{"step": 7}\n')
    (tmp_path / "new").replace(file)
    assert tail.new_entries() == [{"step": 7}]


def test_speed_and_time_left_are_those_of_the_last_steps_together():
    seen = Progressed(total=10, num_processes=2)
    for step, speed in ((1, None), (2, 50.0), (3, 12.5)):
        entry = {"step": step, "train/loss": 2.0, "train/num_tokens": 100.0 * step}
        seen.add(entry if speed is None else {**entry, "train/tokens_per_second_per_device": speed})
    seen.add({"step": 3, "evaluate/validation_loss": 1.5})
    # 100 tokens in 1 s and 100 in 4 s: 40 a second, so 2.5 s a step, of which 7 are left
    assert seen.speed == pytest.approx(40)
    assert seen.seconds_left == pytest.approx(17.5)
    assert seen.in_words() == "loss 2.0000, validation 1.5000 (step 3), 40 tokens/s, 18 s left"


@pytest.mark.parametrize(
    ("status", "exit_status", "line"),
    [
        ("FINISHED", 0, "FINISHED after 1 min 15 s, test loss 2.0000"),
        ("FAILED", 1, "FAILED after 1 min 15 s, test loss 2.0000: the data is empty"),
        ("KILLED", 1, "KILLED after 1 min 15 s, test loss 2.0000"),
    ],
)
def test_following_a_run_that_ended_shows_its_last_state_at_once(make, capsys, status, exit_status, line):
    folder = make("a", status=status, stages={"evaluate": {"loss": 2.0}})
    folder.metrics_file.write_text('{"step": 3, "train/loss": 3.5}\n')
    assert runs.run(["--follow"]) == exit_status
    assert capsys.readouterr().out.splitlines() == ["runs/a", "step 3/?: loss 3.5000", line]


def test_following_ends_with_a_process_that_is_gone(make, capsys):
    _kill(make("a", status="RUNNING"))
    assert runs.run(["--follow", "run=a"]) == 1
    assert "the process is gone" in capsys.readouterr().out


def test_the_newest_run_that_runs_is_followed(make, capsys, monkeypatch):
    followed = []
    monkeypatch.setattr(runs, "follow", lambda entry: followed.append(entry.name) or 0)
    with pytest.raises(RunError, match="there is no run in runs; train one"):
        runs.run(["--follow"])
    make("lives", status="RUNNING")
    make("done", "method=full", minutes=1)
    make("waits", minutes=2).status_file.unlink()
    for words in ([], ["method=full"], ["run=done"]):
        assert runs.run(["--follow", *words]) == 0
    assert followed == ["lives", "done", "done"]
    with pytest.raises(RunError, match="no run of 3 has method=qlora; there are: full, lora"):
        runs.run(["--follow", "method=qlora"])


def test_ctrl_c_leaves_with_130_and_the_run_as_it_was(make, monkeypatch):
    folder = make("a", status="RUNNING")
    before = folder.status_file.read_text()

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_follow.time, "sleep", interrupt)
    with pytest.raises(Interrupted, match="stopped following; the run goes on") as caught:
        runs.run(["--follow"])
    assert caught.value.exit_status == 130
    assert folder.status_file.read_text() == before


def test_a_run_that_never_starts_or_is_damaged_is_not_waited_for(make):
    old = make("20260304-050607-lora-m-ab12")
    old.status_file.write_text("{")
    with pytest.raises(RunError, match=r"status.json is damaged, so it can't be followed; its log"):
        runs.run(["--follow"])
    old.status_file.unlink()
    with pytest.raises(RunError, match="has not started; start it: llmtune train run=20260304-050607-lora-m-ab12"):
        runs.run(["--follow"])
