"""Triton's kernels compute what the functions that they stand for do; so does the decoder on a GPU."""

from typing import Any

import pytest
import torch

from fast_models import FAMILY, adapted, apart, hidden_and_gradients, packed_row, tiny
from llmtune.models.attention import VARLEN, VARLEN_KERNEL, set_attention
from llmtune.models.cross_entropy import cross_entropy_with_gradient
from llmtune.models.decoding import FAST, choose_decoder
from llmtune.models.fast import pieces
from llmtune.models.fast.decoder import FastDecoder
from llmtune.models.fast.kernels import PLAIN, kernels_for
from llmtune.models.precision import Precision

pytestmark = pytest.mark.gpu

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
WITHIN = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def kernels() -> Any:
    found = kernels_for(torch.device("cuda"), torch.float32)
    assert found is not PLAIN
    return found


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def assert_close(found: Any, expected: Any, dtype: torch.dtype) -> None:
    leaves = zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (found, expected)), strict=True)
    for ours, theirs in leaves:
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            scale = float(theirs.double().abs().max())
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=WITHIN[dtype] * scale)


@TYPES
@pytest.mark.parametrize("features", [96, 576, 2048])
@pytest.mark.parametrize("wants_weight", [True, False])
def test_norms(dtype: torch.dtype, features: int, wants_weight: bool) -> None:
    x, delta, upstream, residual = (random(131, features, dtype=dtype) for _ in range(4))
    norm = pieces.Norm(random(features, dtype=dtype), 1e-5, 1.0)
    assert_close(kernels().normalise(x, norm, dtype), pieces.normalise(x, norm, dtype), dtype)
    found = kernels().add_and_normalise(x, delta, norm, dtype)
    assert_close(found, pieces.add_and_normalise(x, delta, norm, dtype), dtype)
    scale = pieces.normalise(x, norm, dtype)[1]
    for added in (None, residual):
        given = (upstream, x, scale, norm, added, wants_weight)
        assert_close(kernels().normalise_backward(*given), pieces.normalise_backward(*given), dtype)


@TYPES
@pytest.mark.parametrize("normed", [True, False])
def test_heads(dtype: torch.dtype, normed: bool) -> None:
    shape = pieces.HeadShape(6, 2, 48)
    projected = random(131, 10 * 48, dtype=dtype)
    angles = torch.rand(131, 1, 24, device="cuda").repeat(1, 1, 2) * 6
    rotary = pieces.Rotary(angles.cos().to(dtype), angles.sin().to(dtype))
    pair = (pieces.Norm(random(48, dtype=dtype), 1e-6, 0.0), pieces.Norm(random(48, dtype=dtype), 1e-6, 0.0))
    norms = pair if normed else None
    expected = pieces.split_heads(projected, shape, rotary, norms)
    assert_close(kernels().split_heads(projected.clone(), shape, rotary, norms), expected, dtype)
    upstream = tuple(torch.randn_like(states) for states in expected[:3])
    with_scales = tuple((norm, scale, True) for norm, scale in zip(pair, expected[3], strict=True)) if normed else ()
    given = (upstream, projected if normed else None, rotary, with_scales)
    assert_close(kernels().split_heads_backward(*given), pieces.split_heads_backward(*given), dtype)


@TYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates(dtype: torch.dtype, activation: str) -> None:
    gate_up, upstream = random(131, 2 * 1500, dtype=dtype), random(131, 1500, dtype=dtype)
    assert_close(kernels().gate(gate_up, activation), pieces.gate(gate_up, activation), dtype)
    expected = pieces.gate_backward(upstream, gate_up, activation)
    assert_close(kernels().gate_backward(upstream.clone(), gate_up.clone(), activation), expected, dtype)


@TYPES
def test_cross_entropy(dtype: torch.dtype) -> None:
    logits, targets = random(131, 49152, dtype=dtype) * 3, torch.randint(0, 49152, (131,), device="cuda")
    expected = cross_entropy_with_gradient(logits.clone(), targets)
    assert_close(kernels().cross_entropy_with_gradient(logits.clone(), targets), expected, dtype)
    targets[7] = -1
    losses, gradient = kernels().cross_entropy_with_gradient(logits.clone(), targets)
    assert float(losses[7]) == 0 and not bool(gradient[7].any())
    torch.testing.assert_close(losses[8:].double(), expected[0][8:].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_decoder_in_float32_gives_the_cpus_numbers(name: str, method: str) -> None:
    model: Any = tiny(name).requires_grad_(True) if method == "full" else adapted(tiny(name))
    decoder = FastDecoder(model, torch.float32)
    expected, gradients = hidden_and_gradients(model, decoder.final_hidden_states, packed_row())
    model.cuda()
    decoder = FastDecoder(model, torch.float32)
    found, fast = hidden_and_gradients(model, decoder.final_hidden_states, packed_row(device="cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert apart({key: value.cpu() for key, value in fast.items()}, gradients) < 1e-4


@pytest.mark.parametrize("lengths", [(11, 4, 30, 2, 25), (128, 128)])
def test_each_attention_kernel_gives_the_same_within_bf16(lengths: tuple[int, ...]) -> None:
    model = adapted(tiny("Llama", head_dim=64, max_position_embeddings=256)).cuda()
    row = packed_row(lengths, device="cuda")
    exact, exact_gradients = hidden_and_gradients(model, FastDecoder(model, torch.float32).final_hidden_states, row)
    errors = []
    for name in (VARLEN, VARLEN_KERNEL):
        set_attention(model, name)
        with torch.autocast("cuda", torch.bfloat16):
            decoder = FastDecoder(model, torch.bfloat16)
            found, gradients = hidden_and_gradients(model, decoder.final_hidden_states, row)
        errors.append((float((found.float() - exact).norm() / exact.norm()), apart(gradients, exact_gradients)))
    assert errors[1] == pytest.approx(errors[0], rel=0.5)
    assert errors[1][0] < 0.02


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_it_is_chosen_on_a_gpu(precision: Any) -> None:
    model = adapted(
        tiny("Llama", hidden_size=512, intermediate_size=1024, head_dim=64, initializer_range=0.02), filled=False
    ).cuda()
    set_attention(model, VARLEN_KERNEL if precision == "bf16" else VARLEN)
    choice = choose_decoder(model, "auto", Precision(precision, "cuda", "test"), packed=True)
    assert choice.name == FAST, choice.reason
