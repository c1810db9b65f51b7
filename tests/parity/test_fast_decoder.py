"""llmtune's decoder for the Llama family gives the numbers of the model's own forward pass, or isn't taken."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fast_models import FAMILY, adapted, apart, hidden_and_gradients, packed_row, tiny
from llmtune.models import decoding
from llmtune.models.attention import VARLEN, set_attention, underlying_model
from llmtune.models.decoding import FAST, OWN, choose_decoder, decoder_fault, recompute_activations
from llmtune.models.fast import pieces
from llmtune.models.fast.block import run_block
from llmtune.models.fast.decoder import FastDecoder, decoder_of, final_hidden_states, use_decoder
from llmtune.models.fast.dropout import Kept, kept_elements
from llmtune.models.precision import Precision
from llmtune.models.quantization import keep_as_quantised
from llmtune.models.token_loss import token_loss_sum

pytestmark = pytest.mark.fast

FP32 = Precision("fp32", "cpu", "test")
BF16 = Precision("bf16", "cpu", "test")


def own_states(model: nn.Module) -> Any:
    return lambda row: underlying_model(model).base_model(**row, use_cache=False).last_hidden_state


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", FAMILY)
def test_hidden_states_and_gradients_are_the_models_own(name: str, method: str) -> None:
    model: Any = tiny(name).requires_grad_(True) if method == "full" else adapted(tiny(name))
    expected, own = hidden_and_gradients(model, own_states(model), packed_row())
    decoder = FastDecoder(model, torch.float32)
    found, fast = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert apart(fast, own) < 2e-5


def test_in_float64_only_transformers_own_norms_make_a_difference() -> None:
    model = adapted(tiny("Llama", torch.float64))
    expected, own = hidden_and_gradients(model, own_states(model), packed_row())
    decoder = FastDecoder(model, torch.float64)
    found, fast = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    assert float((found - expected).abs().max()) < 1e-6 * float(expected.abs().max())
    assert apart(fast, own) < 1e-5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_under_autocast_they_are_within_its_rounding(method: str) -> None:
    model: Any = tiny("Llama").requires_grad_(True) if method == "full" else adapted(tiny("Llama"))
    exact, exact_gradients = hidden_and_gradients(model, own_states(model), packed_row())
    with torch.autocast("cpu", torch.bfloat16):
        rounded, rounded_gradients = hidden_and_gradients(model, own_states(model), packed_row())
        decoder = FastDecoder(model, torch.bfloat16)
        found, fast = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    error = float((rounded.float() - exact).abs().max())
    assert 0 < float((found.float() - exact).abs().max()) < 1.5 * error
    assert apart(fast, exact_gradients) < 1.5 * apart(rounded_gradients, exact_gradients)


def test_only_some_layers_may_have_adapters() -> None:
    model = adapted(tiny("Llama"), targets=("q_proj", "v_proj", "down_proj"))
    _, own = hidden_and_gradients(model, own_states(model), packed_row())
    decoder = FastDecoder(model, torch.float32)
    _, fast = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    assert len(own) == 2 * 2 * 3
    assert apart(fast, own) < 2e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_written_out_gradient_is_the_derivative(dropout: float) -> None:
    model = adapted(tiny("Qwen3", torch.float64), dropout=dropout).train()
    decoder = FastDecoder(model, torch.float64)
    block, row = decoder._blocks[0], packed_row((4, 2))
    x = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 32, dtype=torch.float64)
    inputs = [x, *block.trained_before, *block.trained_after]

    def run() -> torch.Tensor:
        torch.manual_seed(7)  # the same elements are dropped each time
        decoder._copies.refresh()
        return (run_block(x, block, *decoder._settings(row, x)) * weights).sum()

    for tensor, gradient in zip(inputs, torch.autograd.grad(run(), inputs), strict=True):
        numbers, size = tensor.data.view(-1), float(gradient.abs().max())
        for place in (0, 7, tensor.numel() - 1):
            kept = float(numbers[place])
            results = []
            for step in (1e-6, -1e-6):
                numbers[place] = kept + step
                results.append(float(run()))
            numbers[place] = kept
            found = float(gradient.reshape(-1)[place])
            assert (results[0] - results[1]) / 2e-6 == pytest.approx(found, abs=1e-7 * size)


def test_dropout_is_drawn_from_torchs_stream_and_leaves_the_mean() -> None:
    model = adapted(tiny("Llama"), dropout=0.3, targets=("down_proj",)).train()
    decoder = FastDecoder(model, torch.float32)
    block, row = decoder._blocks[0], packed_row()
    x = torch.randn(72, 32)

    def run() -> torch.Tensor:
        decoder._copies.refresh()
        return run_block(x, block, *decoder._settings(row, x)).detach()

    torch.manual_seed(0)
    first, second = run(), run()
    torch.manual_seed(0)
    assert torch.equal(first, run())
    assert not torch.equal(first, second)
    model.eval()
    still = run()
    model.train()
    noise = float((first - still).norm())
    assert float((torch.stack([run() for _ in range(400)]).mean(0) - still).norm()) < 0.1 * noise


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_as_many_elements_are_dropped_as_asked_for_and_both_forms_of_a_mask_agree(p: float) -> None:
    x, total = torch.randn(1001, 999), torch.randn(1001, 999)
    torch.manual_seed(3)
    kept = kept_elements(x, p)
    dropped = kept.mask == 0
    num_dropped, spread = int(dropped.sum()), (x.numel() * p * (1 - p)) ** 0.5
    assert abs(num_dropped - x.numel() * p) < 5 * spread
    as_on_a_gpu = Kept(~dropped, kept.factor)
    assert kept.factor == pytest.approx(1 / (1 - p), rel=2e-5)
    assert torch.equal(kept.apply(x), as_on_a_gpu.apply(x))
    expected = total + torch.where(dropped, 0, x * kept.factor)
    for form in (kept, as_on_a_gpu):
        torch.testing.assert_close(form.add_to(total.clone(), x), expected)


@pytest.mark.parametrize("what", ["gates", "blocks"])
def test_activations_computed_again_give_the_same_bits_and_keep_less(what: Any) -> None:
    def kept_bytes() -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            decoder.final_hidden_states(packed_row())
        return sum(kept.values())

    model = adapted(tiny("Llama"), dropout=0.1).train()
    decoder = FastDecoder(model, torch.float32)
    use_decoder(model, decoder)
    torch.manual_seed(1)
    expected, gradients = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    before = kept_bytes()
    recompute_activations(model, what)
    torch.manual_seed(1)
    found, again = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    assert torch.equal(found, expected)
    assert all(torch.equal(again[name], gradients[name]) for name in gradients)
    assert kept_bytes() < before


def test_the_models_weights_keep_their_bits_and_their_files(tmp_path: Path) -> None:
    model = tiny("Llama").requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FastDecoder(model, torch.float32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in saved.items())
    assert set(before) - set(saved) <= {"lm_head.weight"}


def test_what_trains_may_be_written_behind_autograds_back() -> None:
    model: Any = tiny("Llama").requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        decoder = FastDecoder(model, torch.bfloat16)
        before = decoder.final_hidden_states(packed_row()).detach()
        model.model.layers[0].mlp.down_proj.weight.data.mul_(2)
        after = decoder.final_hidden_states(packed_row()).detach()
    assert not torch.equal(before, after)


def test_weights_that_were_moved_are_told() -> None:
    model: Any = tiny("Llama").requires_grad_(True)
    decoder = FastDecoder(model, torch.float32)
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.data = weight.data.clone()
    with pytest.raises(AssertionError, match="moved"):
        decoder.final_hidden_states(packed_row())


@pytest.mark.parametrize("double", [True, False])
def test_four_bits_are_bitsandbytes_own(assets: Path, double: bool) -> None:
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base: Any = AutoModelForCausalLM.from_pretrained(
        assets / "tiny_llama", quantization_config=quantised, device_map={"": "cpu"}, dtype=torch.float32
    )
    set_attention(base, VARLEN)
    keep_as_quantised(base, torch.float32)
    packed = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = adapted(base).eval()
    expected, own = hidden_and_gradients(model, own_states(model), packed_row())
    decoder = FastDecoder(model, torch.float32)
    found, fast = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert apart(fast, own) < 2e-5
    layer = base.model.layers[0].self_attn
    wide = decoder._blocks[0].qkv._wide_weight()
    layers = [layer.q_proj, layer.k_proj, layer.v_proj]
    weights = [linear.get_base_layer().weight for linear in layers]
    alone = [bnb.functional.dequantize_4bit(weight.data, weight.quant_state) for weight in weights]
    assert torch.equal(wide, torch.cat(alone))
    now = {name.replace(".base_layer", ""): tensor for name, tensor in base.state_dict().items()}
    assert all(torch.equal(now[name], tensor) for name, tensor in packed.items())


def test_it_is_chosen_by_itself_and_leaves_adapters_at_zero() -> None:
    model = adapted(tiny("Llama"), filled=False).train()
    before = copy.deepcopy({name: parameter.detach() for name, parameter in model.named_parameters()})
    choice = choose_decoder(model, "auto", FP32, packed=True)
    assert choice.name == FAST, choice.reason
    assert decoder_of(model) is not None
    assert model.training
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_losses_take_it_for_packed_rows_alone() -> None:
    model = adapted(tiny("Llama"))
    assert choose_decoder(model, "auto", FP32, packed=True).name == FAST
    calls: list[int] = []
    decoder: Any = decoder_of(model)
    inner = decoder.final_hidden_states
    decoder.final_hidden_states = lambda row: (calls.append(1), inner(row))[1]
    row = packed_row()
    supervised = (torch.arange(1, 5), row["input_ids"][0, 1:5])
    shared = {"input_ids": row["input_ids"], "position_ids": row["position_ids"], "supervised": supervised}
    token_loss_sum(model, **shared, attention_mask=None, lengths=(11, 4, 30, 2, 25))
    assert len(calls) == 1
    mask = torch.ones_like(row["input_ids"], dtype=torch.bool)
    token_loss_sum(model, **shared, attention_mask=mask, lengths=(72,))
    assert len(calls) == 1


def test_other_products_than_it_was_made_for_take_the_models_own_pass() -> None:
    model = adapted(tiny("Qwen2"))
    assert choose_decoder(model, "auto", BF16, packed=True).name == FAST
    expected = own_states(model)(packed_row())
    assert torch.equal(final_hidden_states(model, packed_row()), expected)  # float32: no autocast here


@pytest.mark.parametrize(
    ("settings", "reason"), [(("transformers", True), "asked for"), (("auto", False), "packed rows")]
)
def test_it_isnt_taken_where_it_isnt_wanted(settings: tuple[Any, bool], reason: str) -> None:
    model = adapted(tiny("Llama"))
    choice = choose_decoder(model, settings[0], FP32, packed=settings[1])
    assert choice.name == OWN
    assert reason in choice.reason
    assert decoder_of(model) is None


def test_a_wrong_number_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtune.models.fast.linear.LinearGroup._merged_biases", lambda self: None)
    choice = choose_decoder(tiny("Qwen2").requires_grad_(True), "auto", FP32, packed=True)
    assert choice.name == OWN
    assert "another loss" in choice.reason


@pytest.mark.parametrize("num_rounded", [1, 7, 8])
def test_in_16_bits_one_of_eight_rows_has_to_agree(num_rounded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, seeds = decoding._compare_row, []

    def rounding(model: nn.Module, decoder: FastDecoder, precision: Precision, row: Any) -> str | None:
        seeds.append(row.seed)
        return "it rounds" if len(seeds) <= num_rounded else compare(model, decoder, precision, row)

    monkeypatch.setattr(decoding, "_compare_row", rounding)
    model = tiny("Llama").requires_grad_(True)
    choice = choose_decoder(model, "auto", BF16, packed=True)
    assert len(set(seeds)) == len(seeds) <= 8
    assert choice.name == (OWN if num_rounded == 8 else FAST)
    assert (decoder_of(model) is None) == (num_rounded == 8)
    assert num_rounded < 8 or choice.reason == "it rounds, and by too much on 7 other rows"


def test_an_error_moves_every_row_in_16_bits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = pieces.gate
    monkeypatch.setattr(
        decoding, "FastDecoder", lambda *how: _with_kernels(FastDecoder(*how), gate=lambda *it: gate(*it) * 1.02)
    )
    choice = choose_decoder(tiny("Llama").requires_grad_(True), "auto", BF16, packed=True)
    assert choice.name == OWN
    assert "on 7 other rows" in choice.reason


def _with_kernels(decoder: FastDecoder, **kernels: Any) -> FastDecoder:
    decoder.kernels = replace(decoder.kernels, **kernels)
    return decoder


@pytest.mark.parametrize("kind", ["a", "b"])
def test_a_wrong_gradient_alone_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtune.models.fast.linear import LinearGroup

    right = LinearGroup.parameter_gradients

    def wrong(self: LinearGroup, *arguments: Any) -> list[torch.Tensor]:
        found = zip(self._slots, right(self, *arguments), strict=True)
        return [-gradient if slot.kind == kind else gradient for slot, gradient in found]

    monkeypatch.setattr(LinearGroup, "parameter_gradients", wrong)
    choice = choose_decoder(adapted(tiny("Llama"), filled=False), "auto", FP32, packed=True)
    assert choice.name == OWN
    assert "another gradient" in choice.reason


def test_other_models_are_refused_with_the_reason(tiny_gpt2: Path) -> None:
    gpt2 = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    assert "gpt2 isn't of the Llama family" in (decoder_fault(gpt2, FP32) or "")


def test_a_hook_is_refused() -> None:
    model: Any = tiny("Llama")
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert decoder_fault(model, FP32) == "a hook has to see layers.1.mlp"


def test_a_part_of_another_kind_is_refused() -> None:
    model: Any = tiny("Llama")
    model.model.layers[1].mlp.extra = nn.Linear(2, 2)
    assert "other parts than Llama's: extra" in (decoder_fault(model, FP32) or "")


def test_adapters_of_another_kind_are_refused() -> None:
    import peft

    config = peft.LoraConfig(r=2, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny("Llama"), config)
    assert "variant of LoRA" in (decoder_fault(model, FP32) or "")
