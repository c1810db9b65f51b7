"""The experiments for real, at tiny size; the files that some of them read, and the lines that measuring prints."""

import dataclasses
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmtune.cli import run
from llmtune.config.data import EmbeddedConfig
from llmtune.data.deciding.decisions import SPLITS
from llmtune.data.preparing.prepared import prepare_data
from llmtune.data.token_table import TokenTable
from llmtune.runs.manifest import Manifest

from .conftest import ASSETS

ROOT = ASSETS.parent.parent
EXAMPLES, TEXT = ASSETS / "examples.jsonl", ASSETS / "text.jsonl"
TINY = [f"model={ASSETS / 'tiny_llama'}", "data.max_seq_len=64", "tracking=none"]
TINY += [
    "evaluate.num_samples=0",
    "evaluate.num_general_examples=0",
    "export.max_loss_rise=1.0",
]  # random weights lose much in 4 bits
NUM_EXAMPLES = 24
LINE = re.compile(
    r"# .+: [\d.]+ (seconds|minutes|hours), peak memory [\d.]+ GiB, "
    r"test loss ([\d.]+ before and )?([\d.]+ after|[\d.]+ \(.+\)(, [\d.]+ \(.+\))+)\."
)


def _script(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "scripts" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


measuring = _script("measure_experiments.py")


@pytest.mark.parametrize(
    ("experiment", "words", "steps"),
    [
        ("domain_text", [f"data.path={EXAMPLES}", f"data.eval_path={TEXT}"], 5 * 3),
        ("code_generation", [f"data.path={EXAMPLES}"], 3 * 3),
        ("fast_iteration", [f"data.path={EXAMPLES}"], 12),
        ("balanced", [f"data.path={EXAMPLES}"], 3 * 2),
        ("high_quality", [f"data.path={EXAMPLES}"], 5),
    ],
)
def test_it_runs_all_stages_in_the_steps_of_its_batch_and_epochs(workplace, experiment, words, steps) -> None:
    assert workplace.type(f"+experiment={experiment}", *words, f"data.num_examples={NUM_EXAMPLES}", *TINY) == 0
    manifest = workplace.manifest
    assert manifest.stage("train")["steps"] == steps
    assert manifest.stage("evaluate")["loss"] > 0
    assert set(manifest.stage("export")) == ({"hf"} if experiment == "high_quality" else {"adapter", "hf"})
    if experiment == "domain_text":
        assert manifest.stage("evaluate")["num_examples"] == 60  # the whole of that file
    (job,) = measuring.read_jobs(workplace.folder / "runs")
    assert job.loss == manifest.stage("evaluate")["loss"]


def test_without_data_it_runs_on_the_quick_starts(workplace) -> None:
    small = ["data.num_examples=16", "data.num_test_examples=8", "export.formats=[adapter]"]
    assert workplace.type("+experiment=balanced", *small, *TINY, "data.max_seq_len=128") == 0
    manifest = workplace.manifest
    assert manifest.section("data")["sources"][0]["packages"].keys() == {"sympy", "networkx"}
    assert manifest.section("data")["rows"]["kept"]["train"] <= 16
    assert manifest.stage("train")["steps"] == 3  # the profile's epochs, not the quick start's


def test_the_stories_run_writes_three_samples_at_temperature_1(workplace, capsys) -> None:
    words = [f"data.path={EXAMPLES}", f"data.num_examples={NUM_EXAMPLES}", *TINY]
    assert workplace.type("+experiment=creative_writing", *words) == 0
    assert workplace.manifest.stage("train")["steps"] == 5 * 3
    capsys.readouterr()
    asked = ["generate.prompt=In a land where", "generate.max_new_tokens=8"]
    assert workplace.type("generate", f"run={workplace.newest.path}", *asked) == 0
    written = capsys.readouterr().out
    assert written.count("In a land where") == 3
    assert workplace.type("generate", f"run={workplace.newest.path}", *asked, "generate.temperature=0.01") == 0
    assert capsys.readouterr().out != written


@pytest.mark.fast
def test_the_file_to_measure_on_can_be_left_out(capsys) -> None:
    assert run(["+experiment=domain_text", "data.path=mine.jsonl", "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "path: mine.jsonl" in shown
    assert "eval_path: null" in shown


@pytest.mark.parametrize(
    ("experiment", "words", "key", "file"),
    [
        ("domain_text", [], "data.path", "medical_papers.jsonl"),
        ("domain_text", [f"data.path={EXAMPLES}", "data.eval_path=eval.jsonl"], "data.eval_path", "eval.jsonl"),
        ("code_generation", [], "data.path", "python_code.jsonl"),
        ("creative_writing", [], "data.path", "stories.jsonl"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_its_key(workplace, capsys, experiment, words, key, file) -> None:
    assert workplace.type(f"+experiment={experiment}", *words, *TINY) == 2
    errors = capsys.readouterr().err
    message = rf"^llmtune: {key}=\S*{file}: there is no such file; set {key} to a file that is there$"
    assert re.search(message, errors, flags=re.MULTILINE)
    assert "Traceback" not in errors


SWEEP = [f"data.path={EXAMPLES}", *TINY, "train.num_epochs=1", "data.num_test_examples=8", "export.formats=[adapter]"]
SWEEP += ["hardware.num_threads=1"]


def _sweep(workplace, experiment: str, values: str) -> list[dict]:
    """The summary of a sweep of that experiment over two values."""
    assert workplace.type(f"+experiment={experiment}", *SWEEP, f"hydra.sweeper.params={{{values}}}") == 0
    (summary,) = (workplace.folder / "runs").glob("*-sweep-*/summary.json")
    entries = json.loads(summary.read_text())
    assert [entry["status"] for entry in entries] == ["FINISHED", "FINISHED"]
    return entries


@pytest.mark.slow
def test_a_sweep_of_learning_rates_trains_alike_but_for_the_rate(workplace) -> None:
    words = "train.learning_rate:'1e-4,1e-3'"
    low, high = _sweep(workplace, "sweep_learning_rate", words)
    assert (low["differences"], high["differences"]) == (
        {"train.learning_rate": "0.0001"},
        {"train.learning_rate": "0.001"},
    )
    assert low["base_loss"] == high["base_loss"]
    assert high["loss"] < low["loss"]
    jobs = measuring.read_jobs(workplace.folder / "runs")
    assert [(job.name, job.loss) for job in jobs] == [("0.0001", low["loss"]), ("0.001", high["loss"])]


@pytest.mark.slow
def test_a_sweep_of_sizes_has_nested_training_sets_and_one_test_set(workplace) -> None:
    small, large = _sweep(workplace, "sweep_data_size", "data.num_examples:'16,48'")
    assert small["base_loss"] == large["base_loss"]
    stages = [Manifest(Path(entry["folder"]) / "manifest.json").stage("prepare") for entry in (small, large)]
    ids = [{name: _ids(Path(stage["folder"]) / f"{name}.arrow") for name in SPLITS} for stage in stages]
    assert len(ids[0]["train"]) == 16
    assert len(ids[1]["train"]) == 48
    assert ids[1]["train"][:16] == ids[0]["train"]
    assert (ids[0]["validation"], ids[0]["test"]) == (ids[1]["validation"], ids[1]["test"])


def _ids(file: Path) -> list[str]:
    table = TokenTable(file, file.with_suffix(".order.npy"))
    return [table.example_id(index) for index in range(len(table))]


@pytest.mark.slow
def test_the_quick_starts_smaller_sets_are_part_of_its_larger_ones(tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny_llama")
    config = EmbeddedConfig(num_validation_examples=16, num_test_examples=120, max_seq_len=8192)
    sizes = (50, 100, 200, 400)
    found = []
    for size in sizes:
        data = prepare_data(dataclasses.replace(config, num_examples=size), tokenizer, "t", tmp_path)
        found.append(
            {
                name: [table.example_id(row) for row in range(len(table))]
                for name in SPLITS
                for table in [data.split(name)]
            }
        )
    assert [len(ids["train"]) for ids in found] == list(sizes)
    for small, large in itertools.pairwise(found):
        assert large["train"][: len(small["train"])] == small["train"]
        assert (small["validation"], small["test"]) == (large["validation"], large["test"])


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_example_files_are_read_and_the_test_file_is_disjoint(tmp_path) -> None:
    counts = _script("examples/make_example_files.py").write_files(tmp_path)
    texts = {name: _texts(tmp_path / name) for name in counts}
    assert {name: len(found) for name, found in texts.items()} == counts
    assert all(len(set(found)) == len(found) >= 60 for found in texts.values())
    assert counts["python_code.jsonl"] == counts["science_text.jsonl"] == 400
    assert not set(texts["science_text.jsonl"]) & set(texts["science_eval.jsonl"])
    assert all("def " in str(text) for text in texts["python_code.jsonl"])


def test_the_commands_for_the_example_files_name_files_that_are_written(tmp_path, monkeypatch, capsys) -> None:
    script = _script("examples/make_example_files.py")
    written = {"python_code.jsonl", "science_text.jsonl", "science_eval.jsonl", "package_prose.jsonl"}
    named = {part.partition("=")[2] for words in script.COMMANDS.values() for part in words.split()}
    assert named == written
    assert {name: tuple(words.split()) for name, words in script.COMMANDS.items()} == measuring.FILES
    monkeypatch.chdir(tmp_path)
    for experiment, words in script.COMMANDS.items():
        assert run([f"+experiment={experiment}", *words.split(), "--cfg", "job"]) == 0
        assert "source: files" in capsys.readouterr().out


@pytest.mark.fast
@pytest.mark.parametrize(
    ("seconds", "jobs", "line"),
    [
        (
            331.0,
            [measuring.Job("", 7.57, 1.9977, 1.8018)],
            "# One H100: 5.5 minutes, peak memory 7.6 GiB, test loss 1.998 before and 1.802 after.",
        ),
        (
            41.2,
            [measuring.Job("", 0.04, None, 2.0)],
            "# One H100: 41 seconds, peak memory 0.0 GiB, test loss 2.000 after.",
        ),
        (
            974.0,
            [measuring.Job(*job) for job in (("lora", 7.53, 1.9977, 1.8018), ("full", 9.38, 1.9977, 1.7792))],
            "# One H100: 16 minutes, peak memory 9.4 GiB, test loss 1.998 before and 1.802 (lora), 1.779 (full).",
        ),
        (
            6000.0,
            [measuring.Job(*job) for job in (("lora", 7.0, 1.9, 1.8), ("qlora", 8.0, 1.7, 1.6))],
            "# One H100: 1.7 hours, peak memory 8.0 GiB, test loss 1.800 (lora), 1.600 (qlora).",
        ),
    ],
)
def test_the_line_is_the_one_that_experiments_are_headed_by(seconds, jobs, line) -> None:
    assert measuring.header("One H100", seconds, jobs) == line
    assert LINE.fullmatch(line)


@pytest.mark.fast
def test_a_long_line_is_broken_into_comments() -> None:
    jobs = [measuring.Job(str(size), 7.0, 2.0, 1.5) for size in (50, 100, 200, 400)]
    lines = measuring.header("2 CPU cores of an x86 server with bf16 in hardware", 60.0, jobs).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("# ") and len(line) <= 120 for line in lines)


@pytest.mark.fast
def test_a_run_without_figures_is_not_measured(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"stages": {"train": {"peak_memory_gib": 1.0}}}))
    with pytest.raises(ValueError, match="no test loss"):
        measuring.read_jobs(tmp_path)


@pytest.mark.slow
def test_measuring_types_the_command_and_reads_what_it_recorded(tmp_path, capfd) -> None:
    words = [*TINY, f"data.path={EXAMPLES}", "data.num_examples=16", f"cache_dir={tmp_path / 'cache'}"]
    seconds, (job,) = measuring.measure("balanced", tmp_path, [*words, "export.formats=[adapter]"])
    assert seconds > 1
    assert job.peak_memory_gib > 0
    assert job.base_loss != job.loss
    with pytest.raises(ValueError, match="ended with exit status 2"):
        measuring.measure("code_generation", tmp_path, TINY)
    assert "python_code.jsonl: there is no such file" in capfd.readouterr().err


@pytest.mark.fast
def test_measuring_goes_on_after_one_that_fails(tmp_path, monkeypatch, capsys) -> None:
    def measure(name, folder, overrides):
        assert (folder, overrides) == (tmp_path / "new", ["seed=2"])
        if name == "balanced":
            raise ValueError("ended with exit status 1")
        return 60.0, [measuring.Job("", 1.0, 2.0, 1.0)]

    monkeypatch.setattr(measuring, "measure", measure)
    words = ["--only", "balanced,high_quality", "seed=2", "--device-words", "H100", "--folder", f"{tmp_path}/new"]
    assert measuring.main(words) == 1
    shown = capsys.readouterr()
    assert "balanced: ended with exit status 1" in shown.err
    line = "# H100, on the quick start's data: 60 seconds, peak memory 1.0 GiB, test loss 2.000 before and 1.000 after."
    assert shown.out == f"experiments/high_quality.yaml\n{line}\n"


@pytest.mark.fast
def test_measuring_says_what_stood_in_for_a_persons_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(measuring, "measure", lambda *_: (60.0, [measuring.Job("", 1.0, 2.0, 1.0)]))
    monkeypatch.setattr(measuring, "_write_example_files", lambda folder: None)
    for words, shown in (([], "H100, on science_text.jsonl: 60 s"), (["data.path=mine.jsonl"], "H100: 60 s")):
        assert measuring.main(["--only=domain_text", "--device-words=H100", f"--folder={tmp_path}", *words]) == 0
        assert shown in capsys.readouterr().out


@pytest.mark.fast
def test_measuring_an_unknown_experiment_is_refused_with_the_known(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        measuring.main(["--only", "balnced"])
    assert "--only balnced: there is no such experiment; known: balanced, code_generation" in capsys.readouterr().err


@pytest.mark.fast
@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_figures_in_a_head_are_written_as_measuring_prints_them(file) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    figures = [part for part in re.sub(r"(?<![.:])\n# ", " ", head).split("\n") if "peak memory" in part]
    assert figures or file.stem == "debug"
    assert [line for line in figures if not LINE.fullmatch(line)] == []
