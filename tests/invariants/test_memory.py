"""What is held at once: logits of a chunk in training, of one batch in evaluation, however many examples there are."""

import pytest
import torch
from tiny_training import CPU
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from llmtune.data.collate import collate
from llmtune.evaluation import perplexity
from llmtune.evaluation.perplexity import LossSettings, evaluate_loss
from llmtune.models import chunked_loss
from llmtune.models.attention import VARLEN, set_attention
from llmtune.models.precision import Precision
from llmtune.models.token_loss import CHUNKED, WHOLE, set_loss, token_loss_sum, token_losses

VOCABULARY = 384
LENGTH = 40


def peak_bytes(work):
    """Bytes of tensors that `work` held at most at once, beyond those that there were, as torch's allocator counts."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


class EqualRows:
    """Any number of examples of one length; stands for a TokenTable."""

    def __init__(self, count, length=LENGTH, vocabulary=VOCABULARY):
        generator = torch.Generator().manual_seed(1)
        self._ids = torch.randint(3, vocabulary, (count, length), generator=generator).int().numpy()
        self.num_tokens = (self._ids > 0).sum(axis=1)
        self.num_supervised_tokens = self.num_supervised_bytes = self.num_tokens - 1

    def __len__(self):
        return len(self._ids)

    def input_ids(self, index):
        return self._ids[index]

    labels = input_ids


@pytest.mark.fast
def test_the_counter_sees_what_is_held_and_not_what_is_let_go():
    def work(keep):
        kept = []
        for _ in range(8):
            block = torch.ones(1024)
            if keep:
                kept.append(block)
            del block

    assert peak_bytes(lambda: work(False)) == 4096
    assert peak_bytes(lambda: work(True)) == 8 * 4096


@pytest.mark.fast
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_evaluation_holds_the_same_for_64_and_512_examples(tiny_model, packed, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    if packed:
        set_attention(model, VARLEN)
    how = LossSettings(
        batch_tokens=640, packed=packed, pad_token_id=2, precision=Precision("fp32", "cpu", "test"), device=CPU
    )

    def peak(count):
        table = EqualRows(count)
        return peak_bytes(lambda: evaluate_loss(model, table, how)) - 8 * count  # a loss of 8 bytes each is wanted

    peak(64)  # the first pass chooses how losses are computed
    few, many = peak(64), peak(512)
    assert many == few < 64 * LENGTH * VOCABULARY * 4

    # control: logits that are kept add up
    kept = []

    def keeping(model, input_ids, position_ids, attention_mask, original=token_losses, **inputs):
        kept.append(model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits)
        return original(model, input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, **inputs)

    monkeypatch.setattr(perplexity, "token_losses", keeping)
    few = peak(64)
    kept.clear()
    assert peak(512) > 4 * few


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(
    ("vocabulary", "chunk"),
    [pytest.param(4096, 1 << 17, marks=pytest.mark.fast), (49152, chunked_loss.CHUNK_ELEMENTS)],
    ids=["small", "as it is"],
)
def test_a_step_never_holds_the_logits_of_a_micro_batch(trains, vocabulary, chunk, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **shape))
    model.lm_head.requires_grad_(trains)
    set_attention(model, VARLEN)
    table = EqualRows(32, length=64, vocabulary=vocabulary)
    batch = collate(table, range(32), packed=True, pad_token_id=2)
    logits = 4 * len(batch.targets) * vocabulary

    def peak(name):
        set_loss(model, name)
        model.zero_grad(set_to_none=True)
        return peak_bytes(lambda: token_loss_sum(model, **batch.inputs).backward())

    chunked, whole = peak(CHUNKED), peak(WHOLE)
    print(f"vocabulary {vocabulary}: {chunked / logits:.3f} of the logits by chunks, {whole / logits:.2f} at once")
    assert chunked < 0.15 * logits
    assert chunked < 2 * chunk * 4 + 2 * vocabulary * 8 * 4 + 64 * len(batch.targets) * 8 * 4
    assert whole > 1.9 * logits  # control
