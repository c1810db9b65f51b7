"""A run's record on disk to what a comparison needs of it."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llmtune.comparison.results import ExampleLosses, RunCost, RunResult, TrainedOn
from llmtune.config.saved import load_plain
from llmtune.config.validate import flatten, to_plain, to_run_config
from llmtune.errors import ConfigError, RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.runs.status import RunStatusFile

UNTRAINED = "none"
"""`method.name` of a run that measures a model as it is."""
_COLUMNS = ("example_id", "loss_sum", "num_supervised_tokens", "num_supervised_bytes")
_PACKAGES = ("llmtune", "torch", "transformers", "peft", "bitsandbytes")
"""Those whose version may move a loss or a time."""


def read_result(folder: RunFolder) -> RunResult:
    """What one run measured, what it cost and what it was made of.

    Args:
        folder: the run's.

    Raises:
        RunError: the run hasn't measured its weights, or its record is missing or damaged.
    """
    config = read_config(folder)
    try:
        return _result(folder, config)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder.manifest_file} or {folder.config_file.name} lacks what a run of ours has ({error!r}); the run "
            "can't be compared"
        ) from error


def _result(folder: RunFolder, config: dict[str, Any]) -> RunResult:
    manifest = Manifest(folder.manifest_file)
    evaluated, trained_in = manifest.stage("evaluate"), _training_manifest(config, manifest)
    if not evaluated:
        raise RunError(f"{folder.path} hasn't measured its weights; type: python -m llmtune evaluate run={folder.path}")
    train = trained_in.stage("train") if trained_in else {}
    if _names_own_choice(config, train):
        config["source_weights"] = None
    again = _measure_again(folder, config, evaluated)
    is_own_choice = config["source_weights"] is None
    record = RunStatusFile(folder.status_file).read()
    return RunResult(
        folder=folder,
        config=config,
        mlflow_run_id=record.mlflow_run_id if record else None,
        method=config["method.name"],
        seed=config["seed"],
        tuned=_losses(folder, "base" if config["method.name"] == UNTRAINED else "tuned", again),
        base=_losses_if_there(folder, "base", again),
        general_tuned=_losses_if_there(folder, "general_tuned", again),
        general_base=_losses_if_there(folder, "general_base", again),
        validation_loss=train.get("best_validation_loss") if is_own_choice else None,
        num_test_seen=_num_test_seen(config, manifest, trained_in, evaluated),
        trained_on=_trained_on(trained_in) if trained_in else TrainedOn(),
        digests=_digests(manifest, trained_in, evaluated),
        choices=_choices(trained_in, evaluated),
        versions=_versions(manifest),
        cost=_cost(trained_in, whole=is_own_choice) if trained_in and train else RunCost(),
    )


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The run's config, flat, with the defaults of keys that it doesn't know yet; as it is where it isn't valid.

    Args:
        folder: the run's.

    Raises:
        RunError: it is missing or damaged.
    """
    plain = load_plain(folder.config_file)
    try:
        return flatten(to_plain(to_run_config(plain)))
    except ConfigError:  # of another version: its keys may be others
        return {"source_run": None, "source_weights": None, **flatten(plain)}


def _training_manifest(config: Mapping[str, Any], own: Manifest) -> Manifest | None:
    """The manifest of the run that trained the weights; None where they were made elsewhere or not trained."""
    if config["source_run"] is not None:
        return Manifest(RunFolder(Path(config["source_run"])).manifest_file)
    trained_elsewhere = config["source_weights"] is not None or config["method.name"] == UNTRAINED
    return None if trained_elsewhere else own


def _names_own_choice(config: Mapping[str, Any], train: Mapping[str, Any]) -> bool:
    """Whether the checkpoint that was named is the one that its run takes by itself."""
    named = config["source_weights"]
    return named is not None and config["source_run"] is not None and Path(named).name == train.get("checkpoint")


def _measure_again(folder: RunFolder, config: Mapping[str, Any], evaluated: Mapping[str, Any]) -> str:
    """What to type so that the same weights are measured anew, in a run of their own, and that run is compared."""
    if config["method.name"] == UNTRAINED:
        weights = config.get("model.path") or config.get("model.id") or config["model.name"]
    elif config["source_weights"] is not None:
        weights = config["source_weights"]
    else:
        trained = RunFolder(Path(config["source_run"])) if config["source_run"] else folder
        weights = trained.checkpoints / str(evaluated.get("checkpoint", "checkpoint-final"))
    return f"python -m llmtune evaluate run={weights}; then: python -m llmtune compare runs=[SWEEP,NEW_RUN]"


def _losses_if_there(folder: RunFolder, model: str, again: str) -> ExampleLosses | None:
    return _losses(folder, model, again) if folder.predictions_file(model).exists() else None


def _losses(folder: RunFolder, model: str, again: str) -> ExampleLosses:
    """A model's loss on each example, by id.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = folder.predictions_file(model)
    if not path.is_file():
        raise RunError(f"{path} is missing; measure the weights again: {again}")
    try:
        table = pq.read_table(path)
        ids, sums, tokens, num_bytes = (table[name].to_numpy() for name in _COLUMNS)
        clusters = table["cluster"].to_numpy() if "cluster" in table.column_names else _clusters(ids)
        order = np.argsort(ids.astype(str), kind="stable")
        found = ExampleLosses(
            example_ids=tuple(ids[order].tolist()),
            clusters=clusters[order].astype(str),
            loss_sums=sums[order].astype(np.float64),
            num_tokens=tokens[order].astype(np.int64),
            num_bytes=num_bytes[order].astype(np.int64),
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} is damaged ({reason}); measure the weights again: {again}") from error
    if found.num_tokens.sum() <= 0:
        raise RunError(f"{path} holds no supervised token; measure the weights again: {again}")
    return found


def _clusters(ids: np.ndarray) -> np.ndarray:
    """What the examples belong to where older records don't say it: parts of one row share the id before the `-`."""
    return np.array([str(example_id).partition("-")[0] for example_id in ids])


def _num_test_seen(
    config: Mapping[str, Any], own: Manifest, trained_in: Manifest | None, evaluated: Mapping[str, Any]
) -> int | None:
    """How many test examples the weights may have learnt from; None where nothing is recorded that tells it."""
    if evaluated.get("num_test_seen") is not None:
        return evaluated["num_test_seen"]
    if config["method.name"] == UNTRAINED or trained_in is own:
        return 0
    digests = [one.section("data").get("digest") if one else None for one in (own, trained_in)]
    return 0 if digests[0] is not None and digests[0] == digests[1] else None


def _trained_on(trained_in: Manifest) -> TrainedOn:
    train, choices = trained_in.stage("train"), trained_in.section("choices")
    names = ("micro_batch_size", "gradient_accumulation_steps", "num_processes")
    division = [choices[name] for name in names if name in choices]
    return TrainedOn(
        examples_per_step=math.prod(division) if len(division) == len(names) else None,
        total_steps=choices.get("total_steps"),
        num_steps=train.get("steps"),
        num_tokens=train.get("num_tokens"),
    )


def _digests(manifest: Manifest, trained_in: Manifest | None, evaluated: Mapping[str, Any]) -> dict[str, str]:
    """What the run read; of the training data what its weights were trained on."""
    model, data = manifest.section("model"), (trained_in.section("data") if trained_in else {})
    training_sources = [source["digest"] for source in data.get("sources", ()) if source["role"] == "train"]
    joined = hashlib.sha256("\n".join(training_sources).encode()).hexdigest()
    found = {
        "base": model.get("weights_digest"),
        "tokenizer": model.get("tokenizer_digest"),
        "data": data.get("digest"),
        "train": data.get("split_digests", {}).get("train"),
        "sources": joined if training_sources else None,
        "general": evaluated.get("general", {}).get("digest"),
    }
    return {name: digest for name, digest in found.items() if digest is not None}


def _choices(trained_in: Manifest | None, evaluated: Mapping[str, Any]) -> dict[str, Any]:
    """How it was trained; the precision and attention of the measurement beside it."""
    measured = evaluated.get("computed_with", {})
    begun = trained_in.section("choices") if trained_in else {}
    return {**begun, **{f"evaluate_{name}": value for name, value in measured.items()}}


def _versions(manifest: Manifest) -> dict[str, str]:
    packages = manifest.section("environment").get("packages", {})
    return {name: packages[name] for name in _PACKAGES if packages.get(name)}


def _cost(trained_in: Manifest, *, whole: bool) -> RunCost:
    """What training took; for an earlier checkpoint than the run's own choice the time isn't known."""
    train, choices = trained_in.stage("train"), trained_in.section("choices")
    processes = choices.get("num_processes", 1)
    speed = train.get("tokens_per_second_per_device")
    return RunCost(
        num_trainable=train.get("num_trainable"),
        num_parameters=train.get("num_parameters"),
        peak_memory_gib=train.get("peak_memory_gib"),
        tokens_per_second=speed * processes if speed else None,
        train_seconds=train.get("seconds") if whole else None,
        device=choices.get("device_name"),
        num_devices=processes,
    )
