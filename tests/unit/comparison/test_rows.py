"""Runs to rows: what varies, what a row is called, which runs are pooled."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import losses, result

from llmtune.comparison.rows import find_settings

pytestmark = pytest.mark.fast

LOSSES = losses([10.0, 20.0])


def runs(*settings: tuple[str, dict], seeds: tuple[int, ...] = (1, 2)):
    return [
        result(LOSSES, method, seed, changes=changes, folder=f"20260101-00000{seed}-{place}")
        for place, (method, changes) in enumerate(settings)
        for seed in seeds
    ]


def names(*settings: tuple[str, dict]) -> list[str]:
    return [setting.name for setting in find_settings(runs(*settings)).trained]


def test_seeds_alone_are_one_row_called_by_its_method() -> None:
    found = find_settings(runs(("lora", {}), seeds=(3, 1, 2)))
    assert found.axes == ()
    assert [(setting.name, setting.seeds, setting.values) for setting in found.trained] == [("lora", (1, 2, 3), {})]


def test_methods_bring_their_own_keys_and_rates() -> None:
    found = find_settings(runs(("lora", {}), ("qlora", {}), ("full", {})))
    assert found.axes == ("method.name",)  # not method.rank, which full lacks, nor the rates, which differ by default
    assert [setting.name for setting in found.trained] == ["full", "lora", "qlora"]
    assert found.trained[0].values == {"method.name": "full"}


def test_a_rate_that_differs_within_a_method_is_an_axis() -> None:
    low, high = {"train.learning_rate": 1e-4}, {"train.learning_rate": 5e-4}
    found = find_settings(runs(("lora", low), ("lora", high), ("full", {})))
    assert found.axes == ("method.name", "train.learning_rate")
    assert [setting.name for setting in found.trained] == [
        "full learning_rate=2e-05",
        "lora learning_rate=0.0001",
        "lora learning_rate=0.0005",
    ]


def test_the_rate_of_the_method_acts_through_that_of_training() -> None:
    low = {"train.learning_rate": 1e-4, "method.learning_rate": 1e-4}
    high = {"train.learning_rate": 5e-4, "method.learning_rate": 5e-4}
    assert find_settings(runs(("lora", low), ("lora", high))).axes == ("train.learning_rate",)


def test_a_key_of_one_method_is_named_for_it_alone() -> None:
    assert names(("lora", {"method.rank": 8}), ("lora", {"method.rank": 16}), ("full", {})) == [
        "full",
        "lora rank=16",
        "lora rank=8",
    ]


def test_another_default_of_two_methods_is_told() -> None:
    found = find_settings(runs(("lora", {"method.rank": 8}), ("qlora", {"method.rank": 16})))
    assert found.axes == ("method.name",)
    assert found.notes == ("method.rank differs with the method: 8 for lora, 16 for qlora.",)


@pytest.mark.parametrize(
    "key",
    [
        *("seed", "runs_dir", "cache_dir", "resume_allow", "source_run", "hardware.peer_timeout_seconds"),
        *("tracking.uri", "export.formats", "generate.prompt", "sweep.job_timeout_minutes", "compare.margin"),
        *("evaluate.num_samples", "evaluate.base", "data.num_workers", "data.write_clean"),
        *("train.log_every_steps", "train.keep_checkpoints", "train.checkpoint_every_steps", "method.learning_rate"),
    ],
)
def test_keys_without_bearing_make_no_rows(key) -> None:
    assert find_settings(runs(("lora", {key: 1}), ("lora", {key: 2}), seeds=(1,))).axes == ()


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("method.rank", (8, 16), ["rank=16", "rank=8"]),
        ("model.name", ("gpt2", "tiny"), ["gpt2", "tiny"]),
        ("data.num_examples", (100, None), ["num_examples=100", "num_examples=all"]),
        ("data.path", ("/a/x.jsonl", "/b/y.jsonl"), ["data=x.jsonl", "data=y.jsonl"]),
        ("data.path", ("/a/x.jsonl", "/b/x.jsonl"), ["data=a/x.jsonl", "data=b/x.jsonl"]),
        ("train.packing", (True, False), ["packing=false", "packing=true"]),
        ("train.max_steps", (None, 5), ["max_steps=5", "max_steps=null"]),
        ("method.target_modules", ("all-linear", ["q", "v"]), ["target_modules=all-linear", "target_modules=q+v"]),
        ("hardware.kind", ("cpu", "ddp"), ["hardware=cpu", "hardware=ddp"]),
        (
            "data.sources",
            ([{"path": "/d/a.jsonl", "weight": 2.0}, {"id": "x/y"}], [{"path": "/d/a.jsonl"}]),
            ["sources=2xa.jsonl+y", "sources=a.jsonl"],
        ),
        (
            "train.learning_rate",
            (1.0000001e-4, 1.0000002e-4),
            ["learning_rate=0.00010000001", "learning_rate=0.00010000002"],
        ),
    ],
)
def test_names_are_short_and_plain(key, values, expected) -> None:
    assert names(*(("lora", {key: value}) for value in values)) == expected


def test_keys_with_the_same_last_part_are_named_whole() -> None:
    changes = [{"data.split": "a", "train.split": 1}, {"data.split": "b", "train.split": 2}]
    assert names(*(("lora", change) for change in changes)) == [
        "data.split=a train.split=1",
        "data.split=b train.split=2",
    ]


def test_another_model_brings_its_path() -> None:
    gpt2 = {"model.name": "gpt2", "model.path": "/models/gpt2"}
    tiny = {"model.name": "tiny", "model.path": "/models/tiny"}
    found = find_settings(runs(("lora", gpt2), ("lora", tiny)))
    assert found.axes == ("model.name",)
    assert [setting.group for setting in found.trained] == [{"model.name": "gpt2"}, {"model.name": "tiny"}]
    assert [setting.rest for setting in found.trained] == [{}, {}]


def test_a_model_of_the_same_name_from_elsewhere_is_another() -> None:
    found = find_settings(runs(("lora", {"model.path": "/a/tiny"}), ("lora", {"model.path": "/b/tiny"})))
    assert found.axes == ("model.path",)


def test_another_source_brings_its_keys() -> None:
    hub = {"data.source": "hub", "data.id": "a/b", "data.path": None}
    found = find_settings(runs(("lora", {}), ("lora", hub)))
    assert found.axes == ("data.source",)
    assert [setting.name for setting in found.trained] == ["data=files", "data=hub"]


def test_models_and_data_pose_the_question() -> None:
    changes = {"model.name": "gpt2", "data.num_examples": 10}
    found = find_settings(runs(("lora", changes), ("full", {})))
    assert found.axes == ("model.name", "method.name", "data.num_examples")
    (lora,) = [setting for setting in found.trained if setting.method == "lora"]
    assert lora.group == {"model.name": "gpt2", "data.num_examples": 10}
    assert lora.rest == {"method.name": "lora"}
    assert lora.name == "gpt2 lora num_examples=10"


def test_the_checkpoint_of_each_seed_is_one_setting() -> None:
    def of(name: str, seed: int):
        changes = {"source_run": f"/runs/{seed}", "source_weights": f"/runs/{seed}/checkpoints/{name}"}
        return result(LOSSES, "lora", seed, changes=changes)

    found = find_settings([of(name, seed) for name in ("checkpoint-4", "checkpoint-8") for seed in (1, 2)])
    assert [(setting.name, setting.seeds) for setting in found.trained] == [
        ("checkpoint=checkpoint-4", (1, 2)),
        ("checkpoint=checkpoint-8", (1, 2)),
    ]


def test_of_two_runs_of_one_seed_the_newest_counts() -> None:
    old = result(LOSSES, folder="20260101-000000-lora-tiny-ffff")
    new = result(losses([1.0, 2.0]), folder="20260102-000000-lora-tiny-0000")
    for order in ([old, new], [new, old]):
        found = find_settings(order)
        assert [run.folder for run in found.trained[0].runs] == [new.folder]
        assert found.notes == ("lora has 2 runs with seed 1; the newest counts, 20260102-000000-lora-tiny-0000.",)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("hardware.num_threads", (None, 4)),
        ("hardware.kind", ("auto", "cpu")),
        ("hardware.kind", ("auto", "single_gpu")),
        ("hardware.num_processes", (None, 2)),
    ],
)
def test_the_machines_settings_part_no_rows_unless_a_sweep_varies_them(key, values) -> None:
    def of(place: int, seed: int, folder: str):
        return result(LOSSES, seed=seed, changes={key: values[place]}, folder=f"{folder}-lora-tiny-000{place}{seed}")

    first, second = "20260101-000000", "20260102-000000"
    apart = find_settings([of(0, 1, first), of(0, 2, first), of(1, 1, second), of(1, 3, second)])
    assert apart.axes == ()
    assert [(setting.name, setting.seeds) for setting in apart.trained] == [("lora", (1, 2, 3))]
    gone_on = find_settings([of(0, 1, first), of(1, 2, first)])  # elsewhere: no seed has both
    assert [(setting.name, setting.seeds) for setting in gone_on.trained] == [("lora", (1, 2))]
    swept = find_settings([of(place, seed, first) for place in (0, 1) for seed in (1, 2)])
    assert swept.axes == (key,)
    assert [setting.seeds for setting in swept.trained] == [(1, 2), (1, 2)]


def test_an_untrained_model_is_no_setting() -> None:
    untrained = result(LOSSES, "lora", changes={"method.name": "none"})
    object.__setattr__(untrained, "method", "none")
    found = find_settings([untrained, *runs(("lora", {}))])
    assert found.untrained == (untrained,)
    assert [setting.name for setting in found.trained] == ["lora"]


def test_nothing_is_no_setting() -> None:
    assert find_settings([]).trained == ()
