"""Every file under conf/ and experiments/ composes into a checked config."""

import dataclasses
from itertools import takewhile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmtune.config.compose import Composition, compose
from llmtune.config.data import FilesConfig
from llmtune.config.experiments import names_data
from llmtune.config.resources import group_options, option_summary, resource_dir
from llmtune.config.run import RunConfig
from llmtune.config.schema import groups, keys
from llmtune.config.validate import flatten

pytestmark = pytest.mark.fast

OPTIONS = sorted(
    (file.parent.name, file.stem)
    for file in resource_dir("conf").rglob("*.yaml")
    if file.parent != resource_dir("conf")
)
EXPERIMENTS = group_options("experiment")
DIFFERENCES = sorted(name for name in EXPERIMENTS if not names_data(name))
"""Experiments for anyone's data: what they change is something else."""
NEEDED = {
    ("data", "files"): ["++data.path='x.jsonl'"],
    ("data", "hub"): ["++data.id='a/b'"],
    ("data", "mixture"): ["data.sources=[{path: x.jsonl, weight: 2}, {id: a/b, licence: mit}]"],
    ("model", "hub"): ["++model.id='a/b'"],
    ("model", "folder"): ["++model.path='x'"],
}


def test_the_files_are_all_found() -> None:
    assert len(OPTIONS) == 41
    assert len(EXPERIMENTS) == 11
    assert {group for group, _ in OPTIONS} | {"experiment"} == set(groups())


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_each_option_composes(group, option) -> None:
    data = [] if group == "data" else ["data=embedded_code"]
    config = compose(Composition(overrides=[f"{group}={option}", *data, *NEEDED.get((group, option), [])]))
    assert isinstance(config, RunConfig)


def composed(*overrides: str) -> list[RunConfig]:
    """The config; for a sweep each job's."""
    seen: list[RunConfig] = []
    config = compose(Composition(overrides=overrides), lambda configs, _: seen.extend(configs) or [0] * len(configs))
    return [config] if isinstance(config, RunConfig) else seen


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_composes(experiment) -> None:
    names = f"[quickstart,{experiment}]" if experiment in DIFFERENCES else experiment
    assert composed(f"experiment={names}")


def test_the_experiments_for_any_data_are_known() -> None:
    assert DIFFERENCES == [
        "balanced",
        "compare_methods",
        "fast_iteration",
        "high_quality",
        "sweep_data_size",
        "sweep_learning_rate",
    ]


@pytest.mark.parametrize("experiment", DIFFERENCES)
def test_an_experiment_for_any_data_takes_the_whole_of_a_file(experiment) -> None:
    for config in composed("data=files", "++data.path='x.jsonl'", f"experiment={experiment}"):
        limit = config.data.num_examples if experiment == "sweep_data_size" else None
        assert config.data == FilesConfig(path="x.jsonl", num_examples=limit)


@pytest.mark.parametrize("experiment", DIFFERENCES)
def test_an_experiment_for_any_data_takes_the_quick_starts_where_there_is_none(experiment) -> None:
    (quickstart,) = composed("experiment=quickstart")
    for config in composed(f"experiment=[quickstart,{experiment}]"):
        limit = config.data.num_examples if experiment == "sweep_data_size" else quickstart.data.num_examples
        assert config.data == dataclasses.replace(quickstart.data, num_examples=limit)


@pytest.mark.parametrize(
    ("experiment", "method", "batch", "epochs", "learning_rate"),
    [
        ("domain_text", "lora", (4, 2), 5, 5e-4),
        ("code_generation", "qlora", (4, 2), 3, 2e-4),
        ("creative_writing", "lora", (4, 2), 5, 2e-4),
        ("[quickstart,fast_iteration]", "qlora", (1, 2), 1, 2e-4),
        ("[quickstart,balanced]", "lora", (8, 2), 3, 2e-4),
        ("[quickstart,high_quality]", "full", (8, 8), 5, 2e-5),
    ],
)
def test_each_experiment_trains_as_its_head_says(experiment, method, batch, epochs, learning_rate) -> None:
    (config,) = composed(f"experiment={experiment}")
    train = config.train
    assert (config.method.name, train.num_epochs, train.learning_rate) == (method, epochs, learning_rate)
    assert (train.micro_batch_size, train.gradient_accumulation_steps) == batch


def test_the_experiments_on_a_file_name_it() -> None:
    (domain,), (code,), (writing,) = (
        composed(f"experiment={name}") for name in ("domain_text", "code_generation", "creative_writing")
    )
    assert domain.data == FilesConfig(path="medical_papers.jsonl")
    assert code.data == FilesConfig(path="python_code.jsonl", max_seq_len=1024)
    assert writing.data == FilesConfig(path="stories.jsonl")
    assert (writing.generate.temperature, writing.generate.num_samples) == (1.0, 3)


@pytest.mark.parametrize(
    ("experiment", "read", "values"),
    [
        ("sweep_learning_rate", lambda config: config.train.learning_rate, [1e-4, 2e-4, 5e-4, 1e-3]),
        ("sweep_data_size", lambda config: config.data.num_examples, [50, 100, 200, 400]),
        (
            "compare_methods",
            lambda config: (config.method.name, config.seed),
            [(method, seed) for method in ("lora", "qlora", "full") for seed in (1, 2, 3)],
        ),
    ],
)
def test_a_sweep_has_the_jobs_that_its_head_names(experiment, read, values) -> None:
    assert [read(config) for config in composed(f"experiment=[quickstart,{experiment}]")] == values


def test_a_sweeps_methods_and_a_profile_can_be_joined() -> None:
    jobs = composed("experiment=[quickstart,fast_iteration,compare_methods]")
    assert [config.method.name for config in jobs] == 3 * ["lora"] + 3 * ["qlora"] + 3 * ["full"]
    assert {config.train.micro_batch_size for config in jobs} == {1}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_is_headed_by_its_command(experiment) -> None:
    lines = (resource_dir("experiments") / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    assert head[0] == "# @package _global_"
    assert head[1].endswith(".")
    command = "python -m llmtune" if experiment == "quickstart" else f"python -m llmtune +experiment={experiment}"
    assert head[2].startswith(f"#   {command}")


@pytest.mark.parametrize(("group", "option"), [*OPTIONS, *(("experiment", name) for name in EXPERIMENTS)])
def test_each_file_says_what_it_is(group, option) -> None:
    assert option_summary(group, option).endswith((".", "short for it.", "2106.09685", "2305.14314"))


def test_the_files_state_every_default_as_the_schema_has_it() -> None:
    """A reader of conf/ sees what applies: the YAML's values are the dataclasses' own."""
    config = compose(Composition(overrides=["data=embedded_code"]))
    assert isinstance(config, RunConfig)
    stated = {}
    for group, option in {"train": "default", "evaluate": "default", "export": "default", "tracking": "mlflow"}.items():
        content = OmegaConf.to_container(OmegaConf.load(Path(resource_dir("conf")) / group / f"{option}.yaml"))
        assert isinstance(content, dict)
        stated |= flatten({group: content})
    known = {key.name for key in keys() if key.name.partition(".")[0] in ("train", "evaluate", "export", "tracking")}
    assert set(stated) == known


def test_every_key_says_what_it_means() -> None:
    undocumented = [key.name for key in keys() if not _meaning(key)]
    assert undocumented == []


def _meaning(key) -> str | None:
    name = key.name.rpartition(".")[2]
    fields = [base.__pydantic_fields__ for base in key.owner.__mro__ if hasattr(base, "__pydantic_fields__")]
    return next((found[name].description for found in fields if name in found and found[name].description), None)
