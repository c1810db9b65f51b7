"""Cross-entropy by chunks: numbers, gradients, what is computed and held in memory, and who has to do without."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmtune.models import chunked_loss
from llmtune.models.chunked_loss import OutputHead, chunked_cross_entropy, chunked_cross_entropy_sum
from llmtune.models.token_loss import CHUNKED, WHOLE, choose_loss, set_loss, token_loss_sum, token_losses

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


def plain_sum(hidden, head, targets):
    return plain(hidden, head, targets).sum(dtype=torch.float64)


def with_gradients(function, hidden, head, targets, factor=0.37):
    """A sum of losses, and the gradients of a factor times it."""
    wanted = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None and tensor.requires_grad]
    total = function(hidden, head, targets)
    return total.detach(), torch.autograd.grad(total * factor, wanted)


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
    expected, expected_gradients = with_gradients(plain_sum, *inputs)
    total, gradients = with_gradients(chunked_cross_entropy_sum, *inputs)
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, expected, rtol=tolerance, atol=0)
    assert len(gradients) == len(expected_gradients)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        assert float((gradient - wanted).norm()) <= tolerance * float(wanted.norm())
    losses = chunked_cross_entropy(*inputs)
    assert losses.dtype == dtype and not losses.requires_grad
    torch.testing.assert_close(losses, plain(*inputs).detach(), rtol=tolerance, atol=tolerance)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            without = chunked_cross_entropy_sum(*inputs)
        torch.testing.assert_close(without, expected, rtol=tolerance, atol=0)
        assert not without.requires_grad


@pytest.mark.parametrize("trains", [True, False])
def test_gradients_are_those_of_finite_differences(trains):
    hidden, head, targets = make_inputs(torch.float64, trains=trains, scale=0.5, softcap=3.0)
    _, gradients = with_gradients(chunked_cross_entropy_sum, hidden, head, targets, factor=1.0)
    learnt = [hidden, head.weight, head.bias] if trains else [hidden]
    generator = torch.Generator().manual_seed(3)
    for tensor, gradient in zip(learnt, gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                tensor.add_(direction, alpha=step)
                ends.append(float(chunked_cross_entropy(hidden, head, targets).sum()))
                tensor.sub_(direction, alpha=step)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-7)


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_what_learns_alone_has_the_gradient_that_it_has_in_company(wanted):
    inputs = make_inputs(torch.float64)
    _, gradients = with_gradients(chunked_cross_entropy_sum, *inputs)
    hidden, head, _ = inputs
    tensors = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    expected = dict(zip(tensors, gradients, strict=True))[wanted]
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == wanted)
    (alone,) = with_gradients(chunked_cross_entropy_sum, *inputs)[1]
    torch.testing.assert_close(alone, expected, rtol=0, atol=0)


def test_a_second_backward_pass_is_refused():
    total = chunked_cross_entropy_sum(*make_inputs(torch.float32))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("trains", [True, False])
def test_under_autocast_products_are_bf16_and_sums_float32(trains):
    inputs = make_inputs(torch.float32, trains=trains)
    _, exact_gradients = with_gradients(plain_sum, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, theirs = with_gradients(plain_sum, *inputs)
        total, gradients = with_gradients(chunked_cross_entropy_sum, *inputs)
        losses = chunked_cross_entropy(*inputs)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.sum(dtype=torch.float64), expected, rtol=1e-6, atol=0)
    assert losses.dtype == torch.float32
    assert not torch.equal(losses, plain(*inputs))
    for gradient, their, true in zip(gradients, theirs, exact_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - true).norm()) <= 1.2 * float((their - true).norm())


class Watch(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation gives back, and the products it sees."""

    elements = 0

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "mm" in func._schema.name:
            self.products.append(tuple(result.shape))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("trains", [True, False])
def test_logits_are_computed_once_and_no_tensor_holds_more_than_a_chunk_of_them(trains):
    inputs = make_inputs(torch.float32, trains=trains)
    with Watch() as chunked:
        with_gradients(chunked_cross_entropy_sum, *inputs)
    with Watch() as whole:
        with_gradients(plain_sum, *inputs)
    assert chunked.elements == max(4 * V, V * D)
    assert whole.elements == N * V
    logits, of_hidden, of_weight = (
        [shape for shape in chunked.products if shape[0] <= 4 and shape[1] == V],
        [shape for shape in chunked.products if shape[0] <= 4 and shape[1] == D],
        [shape for shape in chunked.products if shape == (V, D)],
    )
    assert sum(rows for rows, _ in logits) == sum(rows for rows, _ in of_hidden) == N, "each position's logits once"
    assert len(of_weight) == (len(logits) if trains else 0)
    assert len(chunked.products) == len(logits) + len(of_hidden) + len(of_weight)


@pytest.mark.parametrize("trains", [True, False])
def test_the_factor_from_above_is_not_rounded_to_bf16(trains):
    inputs = make_inputs(torch.float32, trains=trains)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_gradients = with_gradients(chunked_cross_entropy_sum, *inputs, factor=1.0)[1]
        thirds = with_gradients(chunked_cross_entropy_sum, *inputs, factor=1 / 3)[1]  # in bf16 0.2 % too large
    for gradient, third in zip(plain_gradients, thirds, strict=True):
        assert float(third.norm() / gradient.norm()) == pytest.approx(1 / 3, rel=5e-4)


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


def inputs_of_a_row():
    ids = torch.randint(3, V, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(TOKENS)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    supervised = (positions[0, 1:], ids[0, 1:])
    names = ("input_ids", "position_ids", "attention_mask", "lengths", "supervised")
    return dict(zip(names, (ids, positions, mask, (TOKENS,), supervised), strict=True))


def losses_of(model):
    return token_losses(model, **inputs_of_a_row())


def test_adapters_in_the_decoder_go_by_chunks():
    model = get_peft_model(
        make_model(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    assert choose_loss(model).name == CHUNKED
    norms = []
    for name in (CHUNKED, WHOLE):
        set_loss(model, name)
        model.zero_grad()
        token_loss_sum(model, **inputs_of_a_row()).backward()
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


def skewed_losses(losses, of_hidden):
    losses.mul_(1.01)


def skewed_gradients(losses, of_hidden):
    of_hidden.mul_(1.01)


@pytest.mark.parametrize(("skew", "what"), [(skewed_losses, "losses"), (skewed_gradients, "gradients")])
def test_a_sum_whose_numbers_are_others_is_not_chosen(skew, what, monkeypatch):
    def broken(head, inputs, targets, into, original=chunked_loss._add_gradients):
        losses = original(head, inputs, targets, into)
        skew(losses, into[0])
        return losses

    monkeypatch.setattr(chunked_loss, "_add_gradients", broken)
    choice = choose_loss(make_model())
    assert (choice.name, choice.reason) == (WHOLE, f"{what} by chunks differ from the model's own")


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
