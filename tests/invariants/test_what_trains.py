"""Only what should train trains, and by enough: the frozen base keeps every bit, small updates aren't rounded away."""

import hashlib
import logging
import warnings
from functools import partial

import peft
import pytest
import torch
from tiny_training import FULL, LORA_DROPOUT, QLORA_DROPOUT, Setup, make_parts
from transformers import AutoModelForCausalLM

from llmtune.models.quantization import keep_as_quantised, nf4_config
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.fast

ADAPTERS = pytest.mark.parametrize("method", [LORA_DROPOUT, QLORA_DROPOUT], ids=["lora", "qlora"])
MASTERS = pytest.mark.parametrize("master_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
IDS = torch.arange(3, 40)[None]


def bits(tensor):
    plain = tensor.detach().cpu().contiguous()
    described = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    return described + plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def quantisation_bits(state):
    """Every number by which 4-bit weights are read: block scales, code, and those of the scales themselves."""
    tensors = [getattr(state, name) for name in ("absmax", "code", "offset")]
    found = b"".join(bits(tensor) for tensor in tensors if tensor is not None)
    found += f"{state.shape} {state.dtype} {state.blocksize} {state.quant_type}".encode()
    return found + (quantisation_bits(state.state2) if state.nested else b"")


def digests(model):
    """Sha256 of each parameter and buffer by name, with the quantisation state of 4-bit ones."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state = getattr(tensor, "quant_state", None)
        content = bits(tensor) + (quantisation_bits(state) if state is not None else b"")
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def types_of_what_trains(parts):
    """Of the weights that train, and of AdamW's state of them."""
    state = [
        parts.optimizer.state[parameter][name] for parameter in parts.trainable for name in ("exp_avg", "exp_avg_sq")
    ]
    return {tensor.dtype for tensor in [*parts.trainable, *state]}


@ADAPTERS
@MASTERS
def test_a_run_changes_every_adapter_and_no_bit_of_the_base(tiny_model, method, master_dtype):
    parts = make_parts(tiny_model, Setup(method, master_dtype=master_dtype))
    before = digests(parts.model)
    quantised = [name for name, tensor in parts.model.named_parameters() if hasattr(tensor, "quant_state")]
    assert len(quantised) == (0 if method is LORA_DROPOUT else {"tiny_llama": 14, "tiny_gpt2": 8}[tiny_model.name])
    train(parts, TrainState(), [])
    assert changed(before, digests(parts.model)) == {name for name in before if "lora_" in name}
    assert types_of_what_trains(parts) == {master_dtype}


@pytest.mark.parametrize("part", ["weight", "absmax", "state2", "buffer"])
def test_control_each_bit_of_the_base_is_watched(tiny_llama, part):
    parts = make_parts(tiny_llama, Setup(QLORA_DROPOUT))
    before = digests(parts.model)
    name, weight = next((n, p) for n, p in parts.model.named_parameters() if hasattr(p, "quant_state"))
    with torch.no_grad():
        match part:
            case "weight":
                weight.data.view(-1)[5] ^= 1
            case "absmax":
                weight.quant_state.absmax.view(-1)[0] ^= 1
            case "state2":
                weight.quant_state.state2.absmax[0] += 1e-6
            case "buffer":
                name, buffer = next(iter(parts.model.named_buffers()))
                buffer.view(-1)[0] += 1e-6
    assert changed(before, digests(parts.model)) == {name}


@MASTERS
def test_full_changes_every_weight_and_a_tied_head_stays_tied(tiny_model, master_dtype):
    parts = make_parts(tiny_model, Setup(FULL, optimizer="adamw", master_dtype=master_dtype))
    model = parts.model
    before = digests(model)
    train(parts, TrainState(), [])
    assert changed(before, digests(model)) == {name for name, _ in model.named_parameters()}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert sum(parameter is model.get_input_embeddings().weight for parameter in parts.trainable) == 1
    assert types_of_what_trains(parts) == {master_dtype}


@ADAPTERS
def test_adapters_are_seeded(tiny_model, method):
    def drawn(seed):
        return digests(make_parts(tiny_model, Setup(method, seed=seed)).model)

    torch.manual_seed(99)
    first = drawn(1)
    torch.rand(7)  # no draw elsewhere matters
    assert drawn(1) == first
    assert changed(first, drawn(2)) == {name for name in first if "lora_A" in name}


@ADAPTERS
def test_a_trained_adapter_is_plain_pefts_without_a_word(tiny_model, method, tmp_path, caplog):
    parts = make_parts(tiny_model, Setup(method))
    train(parts, TrainState(), [])
    parts.method.save(parts.model, tmp_path / "adapter")
    parts.model.eval()
    extra = {}
    if method is QLORA_DROPOUT:
        extra["quantization_config"] = nf4_config(method, torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, **extra)
    keep_as_quantised(base, torch.float32)
    with torch.no_grad():
        bare = base(IDS).logits
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's own use
        plain = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert caplog.records == []
    with torch.no_grad():
        expected = parts.model(IDS, use_cache=False).logits
        assert float((plain(IDS, use_cache=False).logits - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
        # control: the adapter is what makes the difference
        assert float((bare - expected).abs().max()) > 1e-2 * float(expected.abs().max())


def share_unchanged(model_folder, master_dtype=torch.float32):
    """Share of the weights with a gradient that a step of Adam at 2e-5 leaves as they were."""
    parts = make_parts(model_folder, Setup(FULL, learning_rate=2e-5, master_dtype=master_dtype))
    before = [parameter.detach().clone() for parameter in parts.trainable]
    has_gradient = [torch.zeros_like(parameter, dtype=torch.bool) for parameter in parts.trainable]

    def note(gradient, flags):
        flags.logical_or_(gradient != 0)

    for parameter, flags in zip(parts.trainable, has_gradient, strict=True):
        parameter.register_hook(partial(note, flags=flags))
    after_warmup = TrainState(global_step=2)
    assert float(train_step(parts, after_warmup).learning_rate) == pytest.approx(2e-5, rel=0.1)
    stayed = [now == old for now, old in zip(parts.trainable, before, strict=True)]
    counted = sum(int(flags.sum()) for flags in has_gradient)
    assert counted > 10_000
    return sum(int((same & flags).sum()) for same, flags in zip(stayed, has_gradient, strict=True)) / counted


def test_full_holds_master_weights_in_which_a_small_update_shows(tiny_llama):
    kept, rounded = share_unchanged(tiny_llama), share_unchanged(tiny_llama, torch.bfloat16)
    print(f"unchanged by a step at 2e-5: {kept:.2%} as they are held, {rounded:.1%} in bf16")
    assert kept < 0.02
    assert rounded > 0.5  # control
