"""The work of a benchmark of training: its model, its examples as llmtune prepares them, the device's peak."""

import json
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100
ROW_TOKENS = 2048
EXAMPLES_A_STEP = 8
"""Of the quick start's data: llmtune's default of 4 x 2."""
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "head_dim": 64,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "head_dim": 128,
    },
    "llama-135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "head_dim": 64,
    },
    "llama-tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 2048,
        "tie_word_embeddings": True,
        "head_dim": 16,
    },
}
"""Shapes that get random weights; the last only to try the benchmark itself."""
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_MIX_DOCUMENTS, _MIX_MEDIAN, _MIX_FEWEST = 4096, 180, 16
_MOST_ROWS, _TEST_ROWS = 512, 4


@dataclass(frozen=True)
class Work:
    """What every contender trains, and how long."""

    model: str
    """`smollm2`, a key of `SHAPES`, or a folder; once made, the folder."""
    data: str
    """`embedded`, `rows` or `mix`."""
    method: str
    """`lora`, `qlora` or `full`."""
    tokens: int | None
    """Tokens a step; None is 8 examples a step."""
    steps: int
    """Measured steps of a turn."""
    warmup: int
    """Steps before the first turn."""
    repeats: int
    """Turns."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    learning_rate: float
    folder: str
    """Holds models, data, caches and runs."""

    @property
    def total_steps(self) -> int:
        """Steps of a contender's training; a turn may have one that isn't measured."""
        return self.warmup + self.repeats * (self.steps + 1) + 1

    @property
    def examples_file(self) -> Path:
        """Where the examples stand for all contenders."""
        name = f"{Path(self.model).name}-{self.data}-{self.tokens or 'examples'}.npz"
        return Path(self.folder) / "examples" / name

    @property
    def text_file(self) -> Path:
        """Where the synthetic text stands, for a vocabulary."""
        return Path(self.folder) / "text" / f"{self.data}-{Path(self.model).name}.jsonl"

    @property
    def test_file(self) -> Path:
        """A test set, which a run must have, though nothing is measured on it here."""
        return self.text_file.with_suffix(".test.jsonl")

    @property
    def cache(self) -> Path:
        """Llmtune's cache: the converted model and the prepared data."""
        return Path(self.folder) / "cache"


@dataclass(frozen=True)
class Examples:
    """The training examples in the order in which ours takes them."""

    ids: list[np.ndarray]
    """int64 [T] each."""
    labels: list[np.ndarray]
    """int64 [T] each, -100 where nothing is learnt, always so at the first."""
    num_first: int
    """How many make up the first step of ours."""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each."""
        return np.array([len(ids) for ids in self.ids])

    @property
    def first(self) -> list[int]:
        """`identity` of those of the first step of ours."""
        return identity(self.ids[: self.num_first])

    @property
    def all_supervised(self) -> bool:
        """Whether every token is learnt."""
        return all((labels[1:] != IGNORED).all() for labels in self.labels)


def read_examples(work: Work) -> Examples:
    """What `make` wrote."""
    with np.load(work.examples_file, allow_pickle=False) as saved:
        borders = np.cumsum(saved["lengths"])[:-1]
        ids, labels = (np.split(saved[name].astype(np.int64), borders) for name in ("ids", "labels"))
        return Examples(ids, labels, int(saved["num_first"]))


def identity(examples: list[np.ndarray]) -> list[int]:
    """Tells sets of examples apart, whatever their order: number, tokens, two sums over ids."""
    sums = [int(ids.sum()) for ids in examples]
    return [len(examples), sum(map(len, examples)), sum(sums), sum(value**2 % 2**40 for value in sums)]


def words_of(work: Work) -> list[str]:
    """What a user would type for the model, the data and the division into steps."""
    words = [f"model={work.model}", f"cache_dir={work.cache}", f"runs_dir={work.folder}/runs"]
    words += [f"tracking.uri=sqlite:///{work.folder}/mlflow.db"]
    if work.data == "embedded":
        return [*words, "data=embedded_code"]
    words += [f"data.path={work.text_file}", f"data.max_seq_len={ROW_TOKENS}", "data.find_near_duplicates=false"]
    words += ["data.outliers=ignore", "data.personal_data=ignore", "data.validation_fraction=0"]
    words += [f"data.eval_path={work.test_file}"]
    assert work.tokens is not None, "synthetic data has steps of tokens"
    words += [
        f"train.micro_batch_size={max(1, work.tokens // ROW_TOKENS)}"
    ]  # all of them in one pass, as in the others
    return [*words, "train.batch_unit=tokens", f"train.tokens_per_step={work.tokens}"]


def make(work: Work) -> dict[str, Any]:
    """Make what isn't there yet of model and examples, and measure the device.

    Returns:
        `work` with the model's folder, the model's `shape`, the `device`, whether it is a GPU (`on_gpu`), its `peak` in
        FLOP/s, `versions`.
    """
    import torch

    work = replace(work, model=str(_model_folder(work)))
    if work.data != "embedded" and not work.text_file.exists():
        _write_text(work)
    if not work.examples_file.exists():
        _write_examples(work)
    shape = json.loads((Path(work.model) / "config.json").read_text(encoding="utf-8"))
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    measured = {"device": device, "on_gpu": on_gpu, "peak": _measured_peak(), "versions": _versions()}
    return {"work": asdict(work), "shape": shape, **measured}


def _model_folder(work: Work) -> Path:
    if work.model == "smollm2":
        from llmtune.models.embedded import embedded_folder

        return embedded_folder(work.cache)[0]
    if work.model not in SHAPES:
        return Path(work.model).absolute()
    folder = Path(work.folder) / "models" / work.model
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}")
        _write_model(SHAPES[work.model], draft)
        draft.rename(folder)
    return folder


def _write_model(shape: dict[str, Any], folder: Path) -> None:
    """Random bf16 weights of a shape, the same wherever they are made on the same kind of device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rest = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
    config = LlamaConfig(**shape, **rest, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config.dtype = torch.bfloat16
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    _tokenizer(shape["vocab_size"]).save_pretrained(folder)


def _tokenizer(vocab_size: int) -> Any:
    """One word, one token: `w17` is 17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *(f"w{number}" for number in range(len(_SPECIAL), vocab_size))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pad, begin, end, unknown = _SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=begin, eos_token=end, unk_token=unknown, padding_side="right"
    )
    tokenizer.model_max_length = 8192
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def document_lengths(data: str, num_rows: int) -> list[int]:
    """Tokens of each synthetic document: all alike, or log-normal with many short ones and few long ones."""
    if data == "rows":
        return [ROW_TOKENS] * num_rows
    numbers = random.Random(1234)
    drawn = [math.exp(numbers.gauss(math.log(_MIX_MEDIAN), 1.0)) for _ in range(_MIX_DOCUMENTS)]
    return [min(max(round(length), _MIX_FEWEST), ROW_TOKENS) for length in drawn]


def _write_text(work: Work) -> None:
    """Documents of words, common and rare ones as in a language, so that the loss falls; llmtune ends each itself."""
    shape = json.loads((Path(work.model) / "config.json").read_text(encoding="utf-8"))
    num_rows = min(_MOST_ROWS, work.total_steps * max(1, (work.tokens or ROW_TOKENS) // ROW_TOKENS))
    numbers = np.random.default_rng(7)
    words = numbers.permutation(np.arange(len(_SPECIAL), shape["vocab_size"]))
    shares = np.cumsum(1 / (np.arange(len(words)) + 10.0))
    work.text_file.parent.mkdir(parents=True, exist_ok=True)
    files = {work.test_file: [ROW_TOKENS] * _TEST_ROWS, work.text_file: document_lengths(work.data, num_rows)}
    for file, lengths in files.items():
        drawn = [np.searchsorted(shares, numbers.random(length - 1) * shares[-1]) for length in lengths]
        rows = (" ".join(f"w{word}" for word in words[places]) for places in drawn)
        file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")


def _write_examples(work: Work) -> None:
    """The first epoch's examples in the plan's order, prepared by llmtune, which finds them in its cache afterwards."""
    from llmtune.arguments import parse
    from llmtune.data.plan import StepPlan
    from llmtune.runs.layout import RunFolder
    from llmtune.runs.manifest import Manifest
    from llmtune.session import config_for
    from llmtune.stages.context import RunContext
    from llmtune.stages.division import plan_settings
    from llmtune.tracking.null import NullTracker

    folder = RunFolder(Path(work.folder) / "making")
    folder.path.mkdir(exist_ok=True)
    config = config_for(parse(["train", *words_of(work)]))
    context = RunContext(config, folder, Manifest(folder.manifest_file), NullTracker())
    table = context.data.train
    plan = StepPlan(table.num_tokens, table.num_supervised_tokens, plan_settings(context, packed=True))
    order = [index for step in range(plan.steps_per_epoch) for index in plan.step(step, 0).indices]
    labels = [table.labels(index).copy() for index in order]
    for of_one in labels:
        of_one[0] = IGNORED  # nothing predicts it
    work.examples_file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        work.examples_file,
        ids=np.concatenate([table.input_ids(index) for index in order]),
        labels=np.concatenate(labels),
        lengths=np.array([len(of_one) for of_one in labels]),
        num_first=len(plan.step(0, 0).indices),
    )


def _measured_peak(seconds: float = 1.5) -> float:
    """Bfloat16 matrix products that the device sustains, FLOP/s."""
    import torch

    on_gpu = torch.cuda.is_available()
    size = 8192 if on_gpu else 2048
    left, right = (torch.randn(size, size, device="cuda" if on_gpu else "cpu").bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    done, started, asked = 0, 0.0, 0.0
    while asked < seconds:
        for _ in range(20 if on_gpu else 1):
            torch.mm(left, right, out=out)
            done += 1
        if on_gpu:
            torch.cuda.synchronize()
        if not started:
            done, started = 0, time.perf_counter()  # the first ones warm up
        asked = time.perf_counter() - started
    return 2 * size**3 * done / asked


def _versions() -> dict[str, str]:
    import importlib.metadata

    found = {}
    for name in ("torch", "triton", "transformers", "accelerate", "peft", "bitsandbytes", "trl", "liger-kernel"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
