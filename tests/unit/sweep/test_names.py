"""Jobs' names, short and each its own."""

from pathlib import Path

import pytest

from llmtune.runs.layout import RunFolder
from llmtune.sweep.job import SweepJob
from llmtune.sweep.jobs import differing
from llmtune.sweep.names import job_names

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("differences", "names"),
    [
        (
            [{"method": "lora", "method.rank": "8"}, {"method": "full"}],
            ["lora rank=8", "full"],
        ),
        (
            [{"train.learning_rate": "1e-4"}, {"train.learning_rate": "2e-4"}],
            ["learning_rate=1e-4", "learning_rate=2e-4"],
        ),
        (
            [{"data.path": "'/a/b/my.jsonl'"}, {"data.path": "'/a/b/it\\'s.jsonl'"}],
            ["path=my.jsonl", "path=it s.jsonl"],
        ),
        ([{"data.path": "/a/x.jsonl"}, {"data.path": "/b/x.jsonl"}], ["data.path=/a/x.jsonl", "data.path=/b/x.jsonl"]),
        (
            [{"data.seed": "1", "model.seed": "2"}, {"data.seed": "2", "model.seed": "1"}],
            ["data.seed=1 model.seed=2", "data.seed=2 model.seed=1"],
        ),
        ([{"method": "x", "model": "y"}, {"method": "x y", "model": ""}], ["method=x model=y", "method=x y model="]),
        ([{}], ["folder-0"]),
        ([{"a": "'x'"}, {"a": '"x"'}], ["a=x folder-0", "a=x folder-1"]),
        ([{"a": "x" * 60}, {"a": "y"}], [f"a={'x' * 40}…", "a=y"]),
    ],
)
def test_names_are_short_and_differ(differences, names) -> None:
    assert job_names(differences, [f"folder-{number}" for number in range(len(differences))]) == names


def test_the_mlflow_run_has_a_name_of_its_own() -> None:
    folder = RunFolder(Path("/runs/20260101-000000-lora-tiny-1a2b"))
    job = SweepJob(name="seed=1", folder=folder, differences={}, command=[])
    assert job.run_name == "seed=1 1a2b"
    assert SweepJob(name=folder.path.name, folder=folder, differences={}, command=[]).run_name == folder.path.name


def test_what_one_job_lacks_tells_it_from_the_others() -> None:
    typed = [["method=full", "++seed=1"], ["method=lora", "++method.rank=8", "++seed=1"]]
    assert differing(typed) == [{"method": "full"}, {"method": "lora", "method.rank": "8"}]
