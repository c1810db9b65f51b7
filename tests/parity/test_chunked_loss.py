"""Cross-entropy by chunks: numbers, gradients, what is held in memory, and who has to do without."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmtune.models import chunked_loss
from llmtune.models.chunked_loss import OutputHead, chunked_cross_entropy
from llmtune.models.token_loss import CHUNKED, WHOLE, choose_loss, set_loss, token_losses

pytestmark = pytest.mark.fast

N, D, V = 23, 16, 101
TOKENS = 30


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", 4 * V)


def make_inputs(dtype, *, trains=True, bias=True, scale=1.0, softcap=None):
    """Hidden states, a head and targets; equal for equal arguments."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(trains)
    shift = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(trains) if bias else None
    return hidden, OutputHead(weight, shift, scale, softcap), torch.randint(0, V, (N,), generator=generator)


def plain(hidden, head, targets):
    logits = F.linear(hidden, head.weight, head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, reduction="none")


def with_gradients(function, hidden, head, targets):
    """Losses, and the gradients of an unevenly weighted sum of them."""
    wanted = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None and tensor.requires_grad]
    losses = function(hidden, head, targets)
    weights = torch.linspace(0.5, 2.0, losses.numel(), dtype=losses.dtype)
    return losses.detach(), torch.autograd.grad((losses * weights).sum(), wanted)


CASES = {
    "trained": {},
    "frozen": {"trains": False},
    "without bias": {"bias": False},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 2.0, "bias": False},
    "frozen, scaled and capped": {"trains": False, "scale": 3.0, "softcap": 5.0},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_losses_and_gradients_are_those_of_all_logits_at_once(case, dtype, tolerance):
    inputs = make_inputs(dtype, **CASES[case])
    expected, expected_gradients = with_gradients(plain, *inputs)
    losses, gradients = with_gradients(chunked_cross_entropy, *inputs)
    assert losses.dtype == dtype
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    assert len(gradients) == len(expected_gradients)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert float((gradient - wanted).norm()) <= tolerance * float(wanted.norm())
    with torch.inference_mode():
        torch.testing.assert_close(chunked_cross_entropy(*inputs), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("trains", [True, False])
def test_gradients_are_those_of_finite_differences(trains):
    hidden, head, targets = make_inputs(torch.float64, trains=trains, scale=0.5, softcap=3.0)

    def losses(hidden, weight, bias):
        return chunked_cross_entropy(hidden, OutputHead(weight, bias, head.scale, head.softcap), targets)

    assert torch.autograd.gradcheck(losses, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("trains", [True, False])
def test_under_autocast_products_are_bf16_and_sums_float32(trains):
    inputs = make_inputs(torch.float32, trains=trains)
    exact, exact_gradients = with_gradients(plain, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, theirs = with_gradients(plain, *inputs)
        losses, gradients = with_gradients(chunked_cross_entropy, *inputs)
    torch.testing.assert_close(losses, expected)
    assert losses.dtype == torch.float32
    assert not torch.equal(losses, exact)
    for gradient, their, true in zip(gradients, theirs, exact_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - true).norm()) <= 1.2 * float((their - true).norm())


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation gives back."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("trains", [True, False])
def test_no_tensor_holds_more_than_a_chunk_of_logits(trains):
    inputs = make_inputs(torch.float32, trains=trains)
    with Largest() as chunked:
        with_gradients(chunked_cross_entropy, *inputs)
    with Largest() as whole:
        with_gradients(plain, *inputs)
    assert chunked.elements == max(4 * V, V * D)
    assert whole.elements == N * V


class Scaling(LlamaForCausalLM):
    """Halves its logits in a way that no name of its config tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output


def make_model(kind=LlamaForCausalLM):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return kind(LlamaConfig(vocab_size=V, initializer_range=0.2, tie_word_embeddings=False, **shape)).eval()


def losses_of(model):
    ids = torch.randint(3, V, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(TOKENS)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    supervised = (positions[0, 1:], ids[0, 1:])
    return token_losses(
        model, input_ids=ids, position_ids=positions, attention_mask=mask, lengths=(TOKENS,), supervised=supervised
    )


def test_adapters_in_the_decoder_go_by_chunks():
    model = get_peft_model(
        make_model(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    assert choose_loss(model).name == CHUNKED
    norms = []
    for name in (CHUNKED, WHOLE):
        set_loss(model, name)
        model.zero_grad()
        losses_of(model).sum().backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] > 1e-3


def hooked(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


OTHERS = {
    "an adapter on the head": (
        lambda: get_peft_model(make_model(), LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)),
        "its output head is a Linear, not a plain linear layer",
    ),
    "a trained copy of the head": (
        lambda: get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])),
        "its output head is a ModulesToSaveWrapper, not a plain linear layer",
    ),
    "a hook": (lambda: hooked(make_model()), "a hook has to see the whole forward pass"),
    "an unknown factor": (lambda: make_model(Scaling), "losses by chunks differ from the model's own"),
    "no transformers model": (lambda: nn.Linear(2, 2), "Linear has no decoder that can be called without its head"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others_compute_their_own_logits_and_say_why(case):
    build, reason = OTHERS[case]
    choice = choose_loss(build())
    assert choice.name == WHOLE
    assert choice.reason == reason


def test_a_hook_set_later_is_still_called():
    model = make_model()
    before = losses_of(model)
    assert choose_loss(model).name == CHUNKED
    assert not torch.allclose(losses_of(hooked(model)), before)


def test_a_fixed_choice_stays_and_what_cannot_be_is_refused():
    model = make_model()
    set_loss(model, WHOLE)
    assert choose_loss(model).name == WHOLE
    with pytest.raises(ValueError, match=r"'fused' is no way to compute losses; .*'chunked cross-entropy'"):
        set_loss(model, "fused")
    with pytest.raises(ValueError, match=r"by chunks: a hook has to see the whole forward pass"):
        set_loss(hooked(model), CHUNKED)


def test_a_model_in_float64_has_losses_in_float64():
    model = make_model().double()
    for name in (CHUNKED, WHOLE):
        set_loss(model, name)
        assert losses_of(model).dtype == torch.float64


def test_evaluation_first_chooses_the_same(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert choose_loss(model).name == CHUNKED
