"""Combinations of values that can't work, and choices that derive from several groups."""

import difflib
import re
from collections.abc import Callable, Iterator

from llmtune.config.data import ExamplesConfig, FilesConfig, HubDataConfig, MixtureConfig, RowConfig
from llmtune.config.export import EXPORT_FORMATS, MODEL_NAME, REGISTERED_FORMAT
from llmtune.config.row_columns import find_wrong_columns
from llmtune.config.run import RunConfig
from llmtune.config.train import DEFAULT_CYCLES
from llmtune.credentials import holds_credentials
from llmtune.hub_answers import FULL_COMMIT


def check_combinations(config: RunConfig, *, begun: bool = False) -> list[str]:
    """Every combination that can't work, a sentence each: what was found, what is allowed, what to set.

    Args:
        config: what was composed.
        begun: whether it is a run's that has begun: how its weights train was checked then, and a later stage may be
            asked to compute in another way.
    """
    checks: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
        *(_model, _data, _train, _evaluate, _generate),
        *(_hardware, _export, _tracking),
        *(() if begun or config.is_trained_elsewhere else (_master_dtype, _step_tokens)),
    )
    return [problem for check in checks for problem in check(config)]


def _model(config: RunConfig) -> Iterator[str]:
    model = config.model
    if model.source == "hub" and not model.id:
        yield "model.id: is missing; set it to a Hub id such as model.id=HuggingFaceTB/SmolLM2-135M."
    if model.source == "folder" and not model.path:
        yield "model.path: is missing; set it to a folder in the Hugging Face format."
    if model.source != "hub" and (model.id or model.revision):
        yield f"model.id and model.revision belong to model=hub; the model here is {model.name} ({model.source})."
    if model.source != "folder" and model.path:
        yield f"model.path={model.path}: belongs to model=folder; the model here is {model.name} ({model.source})."
    if model.trust_remote_code and not FULL_COMMIT.fullmatch(model.revision or ""):
        yield "model.trust_remote_code=true: set model.revision to the full 40-digit commit whose code you have read."


def _data(config: RunConfig) -> Iterator[str]:
    data = config.data
    if isinstance(data, FilesConfig) and not data.path and not (config.is_trained_elsewhere and data.eval_path):
        if config.is_trained_elsewhere:
            yield "data.eval_path: is missing; set it to a file of examples to measure the model on."
        else:
            yield "data.path: is missing; set it to your file of examples, or type data=embedded_code for ours."
    if isinstance(data, HubDataConfig) and not data.id:
        yield "data.id: is missing; set it to the id of a data set on the Hub."
    if isinstance(data, MixtureConfig):
        yield from _mixture(data)
    if isinstance(data, RowConfig):
        yield from find_wrong_columns(data)
    yield from _cleaning(data)
    yield from _tokens(data)
    held_out = data.validation_fraction + (0 if data.eval_path else data.test_fraction)
    if held_out >= 1:
        yield (
            f"data.validation_fraction={data.validation_fraction} and data.test_fraction={data.test_fraction}: "
            f"add up to {held_out:g} and leave nothing to train on; their sum must be below 1."
        )
    if not data.eval_path and data.test_fraction == 0:
        yield "data.test_fraction=0.0: leaves no test set; set it above 0, or set data.eval_path to a file."


def _mixture(data: MixtureConfig) -> Iterator[str]:
    if not data.sources and not data.eval_path:
        yield "data.sources: is empty; list sources such as {path: a.jsonl, weight: 2} in a YAML file."
    for number, source in enumerate(data.sources):
        if (source.path is None) == (source.id is None):
            yield f"data.sources[{number}]: give either `path` or `id` of a data set on the Hub."
        yield from (f"data.sources[{number}]: {problem}" for problem in find_wrong_columns(source))


def _cleaning(data: ExamplesConfig) -> Iterator[str]:
    for unit in ("words", "tokens"):
        low, high = getattr(data, f"min_{unit}"), getattr(data, f"max_{unit}")
        if low is not None and high is not None and low > high:
            yield f"data.min_{unit}={low}: is above data.max_{unit}={high}, so every example would be left out."
    if data.duplicates == "near" and not data.find_near_duplicates:
        yield "data.duplicates=near: needs data.find_near_duplicates=true."


def _tokens(data: ExamplesConfig) -> Iterator[str]:
    for token in dict.fromkeys(data.add_tokens):
        if not token.strip():
            yield "data.add_tokens: holds an empty token; leave it out."
        elif data.add_tokens.count(token) > 1:
            yield f"data.add_tokens: {token} is listed {data.add_tokens.count(token)} times; list it once."


def _train(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.early_stopping_patience is not None and config.data.validation_fraction == 0:
        yield (
            f"train.early_stopping_patience={train.early_stopping_patience}: needs validation examples; "
            "set data.validation_fraction above 0."
        )
    if train.max_steps is not None and train.warmup_steps is not None and train.warmup_steps >= train.max_steps:
        yield (
            f"train.warmup_steps={train.warmup_steps}: must be below train.max_steps={train.max_steps}, "
            "or the learning rate never reaches its peak."
        )
    if train.num_cycles != DEFAULT_CYCLES and train.schedule != "cosine_with_restarts":
        yield f"train.num_cycles={train.num_cycles}: belongs to train.schedule=cosine_with_restarts."


def _master_dtype(config: RunConfig) -> Iterator[str]:
    precision = config.train.precision
    if config.train.master_dtype == "bf16" and precision in ("fp16", "fp32"):
        yield (
            f"train.master_dtype=bf16: needs bf16 products too, and train.precision is {precision}; set "
            "train.precision=bf16, or train.master_dtype=fp32."
        )


def _step_tokens(config: RunConfig) -> Iterator[str]:
    train, longest = config.train, config.data.max_seq_len
    if train.batch_unit == "examples":
        if train.tokens_per_step is not None:
            yield (
                f"train.tokens_per_step={train.tokens_per_step}: belongs to train.batch_unit=tokens; set that, or "
                "leave it out."
            )
    elif train.tokens_per_step is None:
        yield f"train.batch_unit=tokens: needs train.tokens_per_step; set it to data.max_seq_len={longest} or more."
    elif train.tokens_per_step < longest:
        yield (
            f"train.tokens_per_step={train.tokens_per_step}: is below data.max_seq_len={longest}, so a long example "
            "would fit in no step; raise the one or lower the other."
        )


def _generate(config: RunConfig) -> Iterator[str]:
    asked = config.generate
    if asked.temperature == 0 and (asked.top_k or asked.top_p < 1):
        yield "generate.top_k and generate.top_p: do nothing at generate.temperature=0; leave them out."


def _evaluate(config: RunConfig) -> Iterator[str]:
    path = config.evaluate.general_path
    if path is not None and not config.evaluate.num_general_examples:
        yield f"evaluate.general_path={path}: isn't read with evaluate.num_general_examples=0; set it above 0."


def _hardware(config: RunConfig) -> Iterator[str]:
    hardware = config.hardware
    if hardware.kind in ("cpu", "single_gpu") and (hardware.num_processes or 1) > 1:
        yield (
            f"hardware.num_processes={hardware.num_processes}: hardware={hardware.kind} is one process; "
            "type hardware=ddp for several."
        )
    if hardware.kind == "cpu" and config.train.precision == "fp16":
        yield "train.precision=fp16: needs a GPU; set train.precision=bf16 or fp32 with hardware=cpu."


def _export(config: RunConfig) -> Iterator[str]:
    for name in config.export.formats or ():
        if name not in EXPORT_FORMATS:
            near = difflib.get_close_matches(name.lower(), EXPORT_FORMATS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(EXPORT_FORMATS)}."
            yield f"export.formats: there is no format {name}.{hint}"
    if config.method.name == "full" and "adapter" in (config.export.formats or ()):
        yield "export.formats: adapter can't be had from method=full, which trains no adapter; take hf."
    if config.export.path is not None and not config.export.path.strip():
        yield "export.path: is empty; name a folder, or leave it out for the run's own."
    if config.export.register is not None:
        yield from _register(config, config.export.register)
    if not re.fullmatch(r"[1-9][0-9]*(\.[0-9]+)?\s?(MB|GB)", config.export.max_shard_size):
        yield f"export.max_shard_size={config.export.max_shard_size}: write a size such as 5GB or 200MB."


def _register(config: RunConfig, name: str) -> Iterator[str]:
    if not MODEL_NAME.fullmatch(name) or name != name.strip():
        yield (
            f"export.register={name}: no name for a model in MLflow; take letters, digits, spaces and - _ . with a "
            "letter or digit first, 200 characters at most."
        )
    if config.export.formats is not None and REGISTERED_FORMAT not in config.export.formats:
        yield f"export.register: registers the {REGISTERED_FORMAT} format; add {REGISTERED_FORMAT} to export.formats."
    if config.tracking.backend == "none":
        yield "export.register: needs MLflow, and tracking.backend is none; set tracking=mlflow."


def _tracking(config: RunConfig) -> Iterator[str]:
    if config.method.name == "full" and config.tracking.log_model == "adapter":
        yield "tracking.log_model=adapter: method=full trains no adapter; set auto, none or merged."
    formats = config.export.formats
    if config.tracking.log_model == "merged" and formats is not None and "hf" not in formats:
        yield "tracking.log_model=merged: needs the merged model; add hf to export.formats."
    if config.tracking.uri and holds_credentials(config.tracking.uri):
        yield (
            "tracking.uri: holds credentials, and the config is recorded; leave them out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment."
        )
    if not 0 < config.tracking.ui_port < 65536:
        yield f"tracking.ui_port={config.tracking.ui_port}: a port is between 1 and 65535."
