"""Every file under conf/ and experiments/ composes into a checked config."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmtune.config.compose import Composition, compose
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
NEEDED = {
    ("data", "files"): ["++data.path='x.jsonl'"],
    ("data", "hub"): ["++data.id='a/b'"],
    ("model", "hub"): ["++model.id='a/b'"],
    ("model", "folder"): ["++model.path='x'"],
}


def test_the_files_are_all_found() -> None:
    assert len(OPTIONS) == 39
    assert len(EXPERIMENTS) == 3
    assert {group for group, _ in OPTIONS} | {"experiment"} == set(groups())


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_each_option_composes(group, option) -> None:
    data = [] if group == "data" else ["data=embedded_code"]
    config = compose(Composition(overrides=[f"{group}={option}", *data, *NEEDED.get((group, option), [])]))
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_composes(experiment) -> None:
    seen: list[RunConfig] = []
    config = compose(
        Composition(overrides=[f"experiment={experiment}"]),
        lambda configs, _: seen.extend(configs) or [0] * len(configs),
    )
    assert isinstance(config, RunConfig) or len(seen) > 1


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
