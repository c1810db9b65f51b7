"""Loss and gradients equal transformers' own: tied and untied heads, pad = eos, with and without chunks."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from llmtune.data.collate import supervised_tokens
from llmtune.models import chunked_loss
from llmtune.models.token_loss import CHUNKED, WHOLE, choose_loss, set_loss, token_loss_sum
from tiny_shapes import CAPPED, EOS, SHAPE, VOCABULARY

pytestmark = pytest.mark.fast

GPT2_SHAPE = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2_SHAPE |= {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS, "initializer_range": 0.2}
CONFIGS = {
    "llama": lambda tied: LlamaConfig(**SHAPE, tie_word_embeddings=tied),
    "gpt2": lambda tied: GPT2Config(**GPT2_SHAPE, tie_word_embeddings=tied),
    "qwen2": lambda tied: Qwen2Config(**SHAPE, tie_word_embeddings=tied),
    "qwen3": lambda tied: Qwen3Config(**SHAPE, tie_word_embeddings=tied),
    "gemma2": lambda tied: Gemma2Config(**SHAPE, **CAPPED, tie_word_embeddings=tied),
    "gemma3": lambda tied: Gemma3TextConfig(**SHAPE, **CAPPED, tie_word_embeddings=tied),
    "granite": lambda tied: GraniteConfig(**SHAPE, logits_scaling=0.5, tie_word_embeddings=tied),
    "cohere": lambda tied: CohereConfig(**SHAPE, logit_scale=2.0, tie_word_embeddings=tied),
}
LENGTHS = (12, 7, 17)


@pytest.fixture(params=["tied", "untied"])
def tied(request):
    return request.param == "tied"


@pytest.fixture(params=CONFIGS)
def model(request, tied, monkeypatch):
    """A random model of a few thousand weights, in evaluation mode; chunks of five positions."""
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param](tied), attn_implementation="eager").eval()


def make_batch():
    """Three padded rows that end in a trained end-of-text token, which is also what pads; half a prompt is masked."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), EOS)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        ids[row, : length - 1] = torch.randint(3, VOCABULARY, (length - 1,), generator=generator)
        labels[row, 3:length] = ids[row, 3:length]
        mask[row, :length] = True
    positions = torch.arange(max(LENGTHS)).expand(len(LENGTHS), -1) * mask
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask}


def backward(model, loss):
    """The gradient of each parameter by name."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def norm(gradients):
    return float(torch.nn.utils.get_total_norm(list(gradients.values())))


def mean_loss(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    supervised = supervised_tokens(batch["labels"].numpy())
    return token_loss_sum(model, **inputs, lengths=LENGTHS, supervised=supervised) / supervised[0].numel()


def ours(model, name, batch):
    set_loss(model, name)
    loss = mean_loss(model, batch)
    return loss.detach(), backward(model, loss)


@pytest.mark.parametrize("name", [CHUNKED, WHOLE])
def test_loss_and_gradients_are_transformers_own(model, tied, name):
    batch = make_batch()
    theirs = model(**batch, use_cache=False).loss
    expected = backward(model, theirs)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

    loss, gradients = ours(model, name, batch)

    assert float(loss) == pytest.approx(float(theirs), rel=1e-6)
    assert norm(gradients) == pytest.approx(norm(expected), rel=1e-6)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-6 * norm(expected), msg=parameter)

    # controls: padding found by the token's id loses the trained end-of-text tokens; one label more is told apart
    by_id = batch["labels"].masked_fill(batch["input_ids"] == EOS, -100)
    one_more = batch["labels"].clone()
    one_more[0, 2] = batch["input_ids"][0, 2]
    for wrong in (by_id, one_more):
        assert float(ours(model, name, batch | {"labels": wrong})[0]) != pytest.approx(float(theirs), rel=1e-5)


def test_each_of_them_goes_by_chunks(model):
    assert choose_loss(model).name == CHUNKED


def test_control_a_forgotten_row_of_each_chunk_is_told_apart(model, monkeypatch):
    batch, spans = make_batch(), chunked_loss._spans
    expected, gradients = ours(model, WHOLE, batch)
    monkeypatch.setattr(
        chunked_loss, "_spans", lambda *given: (slice(s.start, max(s.start + 1, s.stop - 1)) for s in spans(*given))
    )
    loss, broken = ours(model, CHUNKED, batch)
    assert float(loss) != pytest.approx(float(expected), rel=1e-3)
    assert norm(broken) != pytest.approx(norm(gradients), rel=1e-3)


def test_gpt2_draws_the_same_dropout_with_chunks_and_without():
    torch.manual_seed(0)
    model, batch = AutoModelForCausalLM.from_config(GPT2Config(**GPT2_SHAPE)).train(), make_batch()

    def drawn(seed, name):
        set_loss(model, name)
        torch.manual_seed(seed)
        return float(mean_loss(model, batch))

    torch.manual_seed(11)
    theirs = float(model(**batch, use_cache=False).loss)
    assert drawn(11, CHUNKED) == pytest.approx(theirs, rel=1e-6)
    assert drawn(11, WHOLE) == pytest.approx(theirs, rel=1e-6)
    assert drawn(12, CHUNKED) != pytest.approx(theirs, rel=1e-4)  # control: another seed drops others
    model.eval()
    assert drawn(11, CHUNKED) == drawn(12, CHUNKED) != pytest.approx(theirs, rel=1e-4)


def test_choosing_draws_no_random_number_and_leaves_the_mode(model):
    model.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    choose_loss(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
