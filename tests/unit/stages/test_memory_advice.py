"""What is said where memory runs out: only what is left, as it is typed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmtune.config.data import FilesConfig
from llmtune.config.evaluate import EvaluateConfig
from llmtune.config.export import ExportConfig
from llmtune.config.generate import GenerateConfig
from llmtune.config.method import FullConfig, LoraConfig, QloraConfig
from llmtune.config.model import ModelConfig
from llmtune.config.run import RunConfig
from llmtune.config.train import TrainConfig
from llmtune.errors import LlmtuneError, ModelError, message_of
from llmtune.stages.memory_advice import MemoryFacts, cheap_cures, memory_advice, memory_explained
from llmtune.training.fitting import ExampleTooLarge
from llmtune.training.out_of_memory import out_of_memory

GPU = MemoryFacts(on_gpu=True, example_tokens=[100] * 90 + [400] * 9 + [512])
CPU = replace(GPU, on_gpu=False)
LOWEST = TrainConfig(micro_batch_size=1, activation_checkpointing=True, optimizer="paged_adamw_8bit")


def _config(**sections: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(name="tiny", source="folder", path="tiny"), **sections)


def _lines(stage: str, facts: MemoryFacts = GPU, **sections: Any) -> list[str]:
    return [line.strip() for line in memory_advice(stage, _config(**sections), facts).splitlines()]


@pytest.mark.fast
def test_training_lists_everything_once_the_cheapest_first():
    assert _lines("train", method=FullConfig()) == [
        "left to lower, the cheapest first:",
        "train.micro_batch_size=2 train.gradient_accumulation_steps=4  (the same steps; goes down to 1 and 8)",
        "train.activation_checkpointing=true  (the same steps, about a third slower)",
        "train.optimizer=adamw_8bit  (its state in a quarter of the memory)",
        "data.max_seq_len=256  (cuts the end of 10.0% of the training examples)",
        "method=lora  (trains adapters alone)",
        "method=qlora  (that on a base in 4 bits)",
        "a smaller base model, model=NAME",
        "a GPU with more memory",
        "hardware=cpu  (much slower)",
    ]


@pytest.mark.fast
def test_at_the_lowest_setting_it_says_plainly_what_is_left():
    assert _lines("train", method=QloraConfig(), train=LOWEST, data=FilesConfig(max_seq_len=512)) == [
        "all that leaves the training as it is has been lowered; what is left:",
        "data.max_seq_len=256  (cuts the end of 10.0% of the training examples)",
        "a smaller base model, model=NAME",
        "a GPU with more memory",
        "hardware=cpu  (much slower)",
    ]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("size", "accumulation", "typed"),
    [
        (2, 2, "train.micro_batch_size=1 train.gradient_accumulation_steps=4"),
        (3, 2, "train.micro_batch_size=1 train.gradient_accumulation_steps=6"),
        (32, 1, "train.micro_batch_size=16 train.gradient_accumulation_steps=2"),
        (9, 4, "train.micro_batch_size=3 train.gradient_accumulation_steps=12"),
    ],
)
def test_a_smaller_micro_batch_keeps_the_examples_of_a_step(size, accumulation, typed):
    train = TrainConfig(micro_batch_size=size, gradient_accumulation_steps=accumulation)
    assert cheap_cures("train", _config(train=train), GPU)[0].typed == typed


@pytest.mark.fast
def test_steps_of_tokens_stay_the_same_without_more_accumulation():
    train = TrainConfig(micro_batch_size=4, batch_unit="tokens", tokens_per_step=4096)
    typed = [str(cure) for cure in cheap_cures("train", _config(train=train), replace(CPU, num_processes=2))]
    assert typed[0] == "train.micro_batch_size=2  (the same steps; goes down to 1)"
    assert "hardware=cpu  (the same steps in one process)" in typed


@pytest.mark.fast
def test_room_that_no_example_fills_goes_first_where_examples_are_packed():
    short = replace(GPU, example_tokens=[20, 120])
    assert "data.max_seq_len=120  (smaller micro-batches; no example is longer)" in _lines("train", short)
    assert "data.max_seq_len=60  (cuts the end of 50.0% of the training examples)" not in _lines("train", short)
    padded = _lines("train", replace(short, packed=False))
    assert not any("data.max_seq_len=120" in line for line in padded)


@pytest.mark.fast
def test_what_is_dropped_is_called_so_and_unknown_lengths_are_not_guessed():
    assert "data.max_seq_len=256  (leaves out 10.0% of the training examples)" in _lines(
        "train", data=FilesConfig(overlong="drop")
    )
    assert "data.max_seq_len=256  (cuts the end of what is longer)" in _lines("train", MemoryFacts(on_gpu=True))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("method", "optimizer", "on_gpu", "expected"),
    [
        (FullConfig(), "adamw", True, "adamw_8bit"),
        (FullConfig(), "adamw_8bit", True, "paged_adamw_8bit"),
        (FullConfig(), "adamw_8bit", False, None),
        (FullConfig(), "adafactor", True, None),
        (LoraConfig(), "adamw", True, None),
    ],
)
def test_a_smaller_optimizer_is_named_where_its_state_is_large(method, optimizer, on_gpu, expected):
    lines = _lines("train", replace(GPU, on_gpu=on_gpu), method=method, train=TrainConfig(optimizer=optimizer))
    found = [line.split()[0] for line in lines if line.startswith("train.optimizer=")]
    assert found == ([f"train.optimizer={expected}"] if expected else [])


@pytest.mark.fast
def test_a_cpu_isnt_told_to_go_to_the_cpu():
    lines = _lines("train", CPU)
    assert not any("hardware=cpu" in line or "GPU" in line for line in lines)
    assert lines[-1] == "fewer other programs, or a machine with more memory"
    several = _lines("train", replace(CPU, num_processes=2))
    assert "hardware=cpu train.gradient_accumulation_steps=4  (the same steps in one process)" in several


@pytest.mark.fast
def test_precision_is_named_where_it_was_raised():
    lines = _lines("train", train=TrainConfig(precision="fp32"))
    assert "train.precision=auto  (products in 16 bits)" in lines
    assert not any("precision" in line for line in _lines("train"))


@pytest.mark.fast
def test_other_programs_come_first():
    assert _lines("train", replace(GPU, others_gib=60.0))[1] == (
        "other programs hold 60.0 GiB of this GPU: end them, or take another GPU"
    )


@pytest.mark.fast
def test_validation_during_training_asks_for_smaller_evaluation_batches():
    lines = _lines("train", replace(GPU, validating=True))
    assert lines[1] == "evaluate.batch_tokens=1024  (the same figures, slower)"
    assert not any("micro_batch_size" in line for line in lines)


@pytest.mark.fast
def test_what_training_lowered_by_itself_is_not_named_again():
    lines = _lines("train", replace(GPU, one_example=True, recomputing=True), method=LoraConfig())
    assert not any("micro_batch_size" in line or "activation_checkpointing" in line for line in lines)
    assert lines[:2] == [
        "all that leaves the training as it is has been lowered; what is left:",
        "data.max_seq_len=256  (cuts the end of 10.0% of the training examples)",
    ]


@pytest.mark.fast
@pytest.mark.parametrize("recomputing", [True, False])
def test_one_example_that_is_too_large_is_told(recomputing):
    with pytest.raises(LlmtuneError) as caught, memory_explained("train", _context()):
        raise ExampleTooLarge("here", recomputing=recomputing) from MemoryError()
    told = message_of(caught.value)
    assert told.startswith("train: the machine is out of memory, with a single example a pass\n")
    assert ("train.activation_checkpointing=true" in told) != recomputing
    with (
        pytest.raises(LlmtuneError, match="the GPU is out of memory, with a single"),
        memory_explained("train", _context()),
    ):
        raise ExampleTooLarge("in another process")


@pytest.mark.fast
def test_evaluation_lists_its_own_keys():
    assert _lines("evaluate") == [
        "left to lower, the cheapest first:",
        "evaluate.batch_tokens=1024  (the same figures, slower)",
        "evaluate.base=false  (the base model's figures are left out)",
        "evaluate.num_samples=0  (no samples are written)",
        "a GPU with more memory",
        "hardware=cpu  (much slower)",
    ]
    lowest = EvaluateConfig(batch_tokens=512, base=False, num_samples=0)
    assert len(_lines("evaluate", evaluate=lowest)) == 3, "batches can't be smaller than the longest example"
    assert "evaluate.batch_tokens=512" in _lines("evaluate", evaluate=EvaluateConfig(batch_tokens=600))[1]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("stage", "facts", "sections", "expected"),
    [
        ("prepare", GPU, {}, ["a data.path with fewer rows", "fewer other programs, or a machine with more memory"]),
        (
            "export",
            GPU,
            {},
            [
                "hardware=cpu  (the same files, slower)",
                "export.formats=[adapter]  (nothing is merged)",
                "a GPU with more memory",
            ],
        ),
        (
            "export",
            CPU,
            {"export": ExportConfig(formats=("adapter",))},
            ["fewer other programs, or a machine with more memory"],
        ),
        ("export", GPU, {"method": FullConfig()}, ["hardware=cpu  (the same files, slower)", "a GPU with more memory"]),
        (
            "generate",
            GPU,
            {"generate": GenerateConfig(num_samples=4)},
            [
                "generate.num_samples=1  (one text at a time)",
                "generate.max_new_tokens=50  (shorter texts)",
                "a GPU with more memory",
                "hardware=cpu  (much slower)",
            ],
        ),
    ],
)
def test_other_stages_list_their_own(stage, facts, sections, expected):
    assert _lines(stage, facts, **sections)[1:] == expected


def _caused_by(cause: Exception) -> Exception:
    error = ModelError("the weights can't be put into the model")
    error.__cause__ = cause
    return error


@pytest.mark.fast
@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "GPU"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "machine"),
        (MemoryError(), "machine"),
        (OSError(12, "Cannot allocate memory"), "machine"),
        (_caused_by(RuntimeError("DefaultCPUAllocator: not enough memory")), "machine"),
        (RuntimeError("could not create a primitive"), "machine"),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (OSError(28, "No space left on device"), None),
        (ValueError("CUDA out of memory"), None),
    ],
)
def test_what_counts_as_out_of_memory(error, where):
    assert out_of_memory(error) == where


def _context(device: str = "cpu") -> Any:
    return SimpleNamespace(
        config=_config(),
        device=torch.device(device),
        manifest=SimpleNamespace(section=lambda name: {}),
        trained_run=SimpleNamespace(path=Path("runs/mine")),
    )


@pytest.mark.fast
def test_an_error_ends_with_one_message_whose_first_line_stands_alone():
    with pytest.raises(LlmtuneError) as caught, memory_explained("evaluate", _context()):
        raise MemoryError
    first, *rest = message_of(caught.value).splitlines()
    assert first == "evaluate: the machine is out of memory"
    assert "  evaluate.batch_tokens=1024  (the same figures, slower)" in rest
    assert rest[-1] == ("the trained weights are kept; go on with: python -m llmtune evaluate run=runs/mine KEY=VALUE")


@pytest.mark.fast
def test_a_gpus_error_is_told_from_the_machines(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * 2**30)
    with (
        pytest.raises(LlmtuneError, match="train: the GPU is out of memory") as caught,
        memory_explained("train", _context("cuda")),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "other programs hold 70.0 GiB" in str(caught.value)
    with (
        pytest.raises(LlmtuneError, match="the machine, not its GPU") as caught,
        memory_explained("train", _context("cuda")),
    ):
        raise MemoryError
    assert "micro_batch_size" not in str(caught.value)


@pytest.mark.fast
def test_any_other_error_passes_as_it_is():
    with pytest.raises(KeyError), memory_explained("train", _context()):
        raise KeyError("a bug")


STARVED = """
import resource, sys
from llmtune import cli
from llmtune.training import loop
import llmtune.stages.train as stage

def train(parts, state, callbacks):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 40 * 2**20, resource.RLIM_INFINITY))
    return loop.train(parts, state, callbacks)

stage.train = train
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_cpu_that_runs_out_in_earnest_splits_and_then_ends_with_what_to_type(tmp_path, tiny_llama, assets):
    rows = (assets / "text.jsonl").read_text().splitlines()
    (tmp_path / "long.jsonl").write_text("\n".join(row.replace('": "', '": "' + "word " * 300, 1) for row in rows))
    words = ["prepare", "train", f"model={tiny_llama}", "data.path=long.jsonl", "method=full", "tracking=none"]
    words += ["train.micro_batch_size=32", "data.max_seq_len=256", "hardware=cpu", "cache_dir=cache"]
    words += ["evaluate.num_general_examples=0"]  # what it frees again would count as room
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3] / "src")
    ended = subprocess.run(
        [sys.executable, "-c", STARVED, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "step 1: the machine is out of memory; from this step on each micro-batch is cut into 32 pieces" in " ".join(
        ended.stdout.split()
    )
    assert "llmtune: train: the machine is out of memory, with a single example a pass" in ended.stderr
    assert "train.activation_checkpointing=true" in ended.stderr and "micro_batch_size" not in ended.stderr
    assert "Traceback" not in ended.stderr
    (status,) = tmp_path.glob("runs/*/status.json")
    assert '"error": "train: the machine is out of memory, with a single example a pass"' in status.read_text()
