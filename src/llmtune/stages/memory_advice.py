"""What to lower where memory runs out: only what is left, the cheapest first, each as it is typed."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from llmtune import distributed
from llmtune.config.run import RunConfig
from llmtune.errors import LlmtuneError
from llmtune.stages.context import RunContext
from llmtune.training.fitting import ExampleTooLarge
from llmtune.training.out_of_memory import out_of_memory

_MUCH = 0.1
"""Share of a GPU's memory in other programs' hands that is worth a word."""
_SHORTEST = 64
"""Tokens below which no shorter examples are suggested."""
_SMALLER_METHODS = {
    "full": (("method=lora", "trains adapters alone"), ("method=qlora", "that on a base in 4 bits")),
    "lora": (("method=qlora", "the base in 4 bits"),),
}
_SMALLER_OPTIMIZERS = {
    "adamw": ("adamw_8bit", "its state in a quarter of the memory"),
    "lion": ("adamw_8bit", "its state in half of the memory"),
    "sgd": ("adamw_8bit", "its state in half of the memory"),
    "adamw_8bit": ("paged_adamw_8bit", "its state moves to the machine's memory where the GPU's is short"),
}


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """What is known where memory ran out, or may run out."""

    on_gpu: bool
    """Whether the work is done on a GPU."""
    example_tokens: Sequence[int] | np.ndarray | None = None
    """Tokens of each example that the stage takes; None where they aren't known."""
    packed: bool = True
    """Whether a micro-batch's examples lie end to end."""
    num_processes: int = 1
    others_gib: float = 0.0
    """What other programs hold of the GPU's memory, where it is much."""
    validating: bool = False
    """Whether training was validating."""
    one_example: bool = False
    """Whether a single example a pass was too much."""
    recomputing: bool = False
    """Whether training computes whole blocks again in the backward pass, as typed or by itself."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest example."""
        known = self.example_tokens is not None and len(self.example_tokens) > 0
        return int(np.max(np.asarray(self.example_tokens))) if known else None


@dataclass(frozen=True)
class Cure:
    """Something that lowers memory."""

    typed: str
    """What to type, or to do."""
    effect: str = ""
    """What it costs."""

    def __str__(self) -> str:
        return f"{self.typed}  ({self.effect})" if self.effect else self.typed


def memory_advice(stage: str, config: RunConfig, facts: MemoryFacts) -> str:
    """What is left to lower, a line each, the one that costs least first.

    Args:
        stage: `prepare`, `train`, `evaluate`, `export` or `generate`.
        config: the run's.
        facts: what is known.
    """
    harmless, costly = cheap_cures(stage, config, facts), _costly_cures(stage, config, facts)
    lines = [f"  {cure}" for cure in [*harmless, *costly]]
    if facts.others_gib:
        lines.insert(0, f"  other programs hold {facts.others_gib:.1f} GiB of this GPU: end them, or take another GPU")
    if harmless or stage != "train" or facts.validating:
        return "\n".join(["left to lower, the cheapest first:", *lines])
    return "\n".join(["all that leaves the training as it is has been lowered; what is left:", *lines])


def cheap_cures(stage: str, config: RunConfig, facts: MemoryFacts) -> list[Cure]:
    """What lowers a stage's memory and leaves its result as it is, or nearly so; see `memory_advice`."""
    if stage == "evaluate" or facts.validating:
        return _smaller_batches(config, facts)
    if stage != "train":
        return []
    return [*_same_steps(config, facts), *_same_training(config, facts)]


def _same_steps(config: RunConfig, facts: MemoryFacts) -> Iterator[Cure]:
    size, accumulation = config.train.micro_batch_size, config.train.gradient_accumulation_steps
    filled = config.train.batch_unit == "tokens"  # whatever the micro-batches and processes are
    if size > 1 and not facts.one_example:
        parts = next(parts for parts in range(2, size + 1) if size % parts == 0)
        more = "" if filled else f" train.gradient_accumulation_steps={accumulation * parts}"
        least = "1" if filled else f"1 and {size * accumulation}"
        effect = f"the same steps; goes down to {least}" if size > parts else "the same steps"
        yield Cure(f"train.micro_batch_size={size // parts}{more}", effect)
    if not facts.on_gpu and facts.num_processes > 1:
        more = "" if filled else f" train.gradient_accumulation_steps={accumulation * facts.num_processes}"
        yield Cure(f"hardware=cpu{more}", "the same steps in one process")
    room = facts.packed and not facts.one_example
    if room and facts.longest is not None and facts.longest < config.data.max_seq_len:
        yield Cure(f"data.max_seq_len={facts.longest}", "smaller micro-batches; no example is longer")


def _same_training(config: RunConfig, facts: MemoryFacts) -> Iterator[Cure]:
    train = config.train
    if not (train.activation_checkpointing or facts.recomputing):
        yield Cure("train.activation_checkpointing=true", "the same steps, about a third slower")
    if facts.on_gpu and train.precision == "fp32":
        yield Cure("train.precision=auto", "products in 16 bits")
    if config.method.name == "full" and train.optimizer in _SMALLER_OPTIMIZERS:
        name, effect = _SMALLER_OPTIMIZERS[train.optimizer]
        if facts.on_gpu or not name.startswith("paged"):
            yield Cure(f"train.optimizer={name}", effect)


def _smaller_batches(config: RunConfig, facts: MemoryFacts) -> list[Cure]:
    tokens = max(config.evaluate.batch_tokens // 2, facts.longest or 1)
    if tokens >= config.evaluate.batch_tokens:
        return []
    return [Cure(f"evaluate.batch_tokens={tokens}", "the same figures, slower")]


def _costly_cures(stage: str, config: RunConfig, facts: MemoryFacts) -> list[Cure]:
    cures = {
        "prepare": _prepare_less,
        "train": _train_less,
        "evaluate": _evaluate_less,
        "export": _export_less,
        "generate": _generate_less,
    }
    return [*cures[stage](config, facts), *_elsewhere(stage, facts)]


def _prepare_less(config: RunConfig, facts: MemoryFacts) -> Iterator[Cure]:
    del config, facts
    yield Cure("a data.path with fewer rows")


def _train_less(config: RunConfig, facts: MemoryFacts) -> Iterator[Cure]:
    longest = min(facts.longest or config.data.max_seq_len, config.data.max_seq_len)
    shorter = longest // 2
    if shorter >= _SHORTEST:
        yield Cure(f"data.max_seq_len={shorter}", _cut(shorter, config, facts))
    for typed, effect in _SMALLER_METHODS.get(config.method.name, ()):
        yield Cure(typed, effect)
    yield Cure("a smaller base model, model=NAME")


def _cut(max_seq_len: int, config: RunConfig, facts: MemoryFacts) -> str:
    verb = "leaves out" if config.data.overlong == "drop" else "cuts the end of"
    if facts.longest is None:
        return f"{verb} what is longer"
    share = float(np.mean(np.asarray(facts.example_tokens) > max_seq_len))
    return f"{verb} {share:.1%} of the training examples"


def _evaluate_less(config: RunConfig, facts: MemoryFacts) -> Iterator[Cure]:
    del facts
    if config.evaluate.base:
        effect = "its weights in 16 bits are larger; " if config.method.name == "qlora" else ""
        yield Cure("evaluate.base=false", f"{effect}the base model's figures are left out")
    if config.evaluate.num_samples:
        yield Cure("evaluate.num_samples=0", "no samples are written")


def _export_less(config: RunConfig, facts: MemoryFacts) -> Iterator[Cure]:
    if facts.on_gpu:
        yield Cure("hardware=cpu", "the same files, slower")
    formats = config.export.formats
    if config.method.name in ("lora", "qlora") and formats != ("adapter",):
        yield Cure("export.formats=[adapter]", "nothing is merged")
    elif formats is not None and len(formats) > 1:
        yield Cure(f"export.formats=[{formats[0]}]", "one format at a time")


def _generate_less(config: RunConfig, facts: MemoryFacts) -> Iterator[Cure]:
    del facts
    if config.generate.num_samples > 1:
        yield Cure("generate.num_samples=1", "one text at a time")
    if config.generate.max_new_tokens > 1:
        yield Cure(f"generate.max_new_tokens={config.generate.max_new_tokens // 2}", "shorter texts")


def _elsewhere(stage: str, facts: MemoryFacts) -> Iterator[Cure]:
    """The last resort: another machine, or none of its other programs."""
    if not facts.on_gpu or stage == "prepare":
        yield Cure("fewer other programs, or a machine with more memory")
        return
    yield Cure("a GPU with more memory")
    if stage != "export":
        yield Cure("hardware=cpu", "much slower")


@contextmanager
def memory_explained(stage: str, context: RunContext) -> Iterator[None]:
    """Where memory runs out inside, end with what to lower; free what was held after it in any case.

    Args:
        stage: see `memory_advice`.
        context: the run's.

    Raises:
        LlmtuneError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        single = error if isinstance(error, ExampleTooLarge) else None
        where = out_of_memory(error) or (single and "GPU")
        if where is None:
            raise
        validating = stage == "train" and _passed_through(error.__traceback__, "llmtune.evaluation.perplexity")
        facts = known_of(context, stage, validating=validating)
        if single:
            facts = replace(facts, one_example=True, recomputing=facts.recomputing or single.recomputing)
        if where == "machine" and facts.on_gpu:
            text = f"{stage}: the machine, not its GPU, is out of memory; end other programs, or take a smaller model"
        else:
            how = ", with a single example a pass" if single else ""
            text = f"{stage}: the {where} is out of memory{how}\n{memory_advice(stage, context.config, facts)}"
        raise LlmtuneError(f"{text}{_how_to_go_on(stage, context)}") from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def known_of(context: RunContext, stage: str, *, validating: bool = False) -> MemoryFacts:
    """What is known of a run, without loading anything more.

    Args:
        context: the run's.
        stage: the stage that takes the memory.
        validating: whether that is training's validation.
    """
    tokens, choices = None, context.manifest.section("choices")
    if "data" in vars(context):
        split = "validation" if validating else "test" if stage == "evaluate" else "train"
        tokens = context.data.split(split).num_tokens
    return MemoryFacts(
        on_gpu=context.device.type == "cuda",
        example_tokens=tokens,
        packed=choices.get("packed", context.config.train.packing),
        num_processes=distributed.num_processes(),
        others_gib=_held_by_others(context.device),
        validating=validating,
        recomputing=choices.get("activation_checkpointing", False) and choices.get("recomputed") != "gates",
    )


def _passed_through(traceback: TracebackType | None, module: str) -> bool:
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == module:
            return True
        traceback = traceback.tb_next
    return False


def _held_by_others(device: torch.device) -> float:
    """GiB of a GPU's memory that other programs hold, where it is much; 0 else, and where the GPU doesn't answer."""
    if device.type != "cuda":
        return 0.0
    try:
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
    except RuntimeError:
        return 0.0
    return others / 2**30 if others > _MUCH * total else 0.0


def _how_to_go_on(stage: str, context: RunContext) -> str:
    """The command for a stage that comes after training: what was trained is kept."""
    if stage not in ("evaluate", "export"):
        return ""
    run: Path = context.trained_run.path
    return f"\nthe trained weights are kept; go on with: python -m llmtune {stage} run={run} KEY=VALUE"
