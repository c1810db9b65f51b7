import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from llmtune.errors import DataError
from llmtune.evaluation.perplexity import evaluate_loss, plan_batches, write_predictions
from llmtune.models.attention import VARLEN, set_attention

pytestmark = pytest.mark.fast


class FixedLogits(nn.Module):
    """Gives token 7 the probability 1/2 and each of the other 8 tokens 1/16, whatever it reads."""

    def forward(self, input_ids, logits_to_keep, **kwargs):
        logits = torch.zeros(*input_ids.shape, 9)
        logits[..., 7] = math.log(8)
        return type("Output", (), {"logits": logits[:, logits_to_keep]})


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_loss_perplexity_and_bits_per_byte_by_hand(list_table, loss_settings):
    # Supervised: 7 7 1 (the first token is predicted by nothing), then 1 alone; 2 x ln 2 + 2 x ln 16 = 10 ln 2 nats.
    table = list_table([([5, 7, 7, 1], 0, 3), ([7, 7, 7, 1], 3, 2)])
    report = evaluate_loss(FixedLogits(), table, loss_settings())
    assert report.loss == pytest.approx(10 * math.log(2) / 4)
    assert report.perplexity == pytest.approx(2**2.5)
    assert report.bits_per_byte == pytest.approx(10 / 5)
    assert report.loss_sums == pytest.approx([6 * math.log(2), 4 * math.log(2)])
    assert (report.num_examples, report.num_tokens, report.num_supervised_tokens) == (2, 8, 4)
    assert report.tokens_per_second == pytest.approx(8 / report.seconds)


def test_every_example_has_the_loss_that_transformers_gives_it(tiny_model, ragged_table, loss_settings):
    model = load(tiny_model)
    report = evaluate_loss(model, ragged_table, loss_settings())
    for index in range(len(ragged_table)):
        count = ragged_table.num_supervised_tokens[index]
        if count == 0:
            assert report.loss_sums[index] == 0
            continue
        ids = torch.from_numpy(ragged_table.input_ids(index)).long()[None]
        labels = torch.from_numpy(ragged_table.labels(index)).long()[None]
        with torch.no_grad():
            expected = model(input_ids=ids, labels=labels).loss.item()
        assert report.loss_sums[index] / count == pytest.approx(expected, rel=1e-5)
    assert report.loss == pytest.approx(report.loss_sums.sum() / ragged_table.num_supervised_tokens.sum())


def test_packed_and_padded_rows_of_any_size_give_the_same_losses(tiny_model, ragged_table, loss_settings):
    model = load(tiny_model)
    expected = evaluate_loss(model, ragged_table, loss_settings(batch_tokens=1)).loss_sums
    padded = evaluate_loss(model, ragged_table, loss_settings(batch_tokens=100)).loss_sums
    set_attention(model, VARLEN)
    packed = evaluate_loss(model, ragged_table, loss_settings(batch_tokens=100, packed=True)).loss_sums
    assert padded == pytest.approx(expected, rel=1e-5)
    assert packed == pytest.approx(expected, rel=1e-5)


def test_an_attention_that_lets_packed_examples_see_each_other_would_show(tiny_llama, ragged_table, loss_settings):
    model = load(tiny_llama)
    model.set_attn_implementation("eager")  # without a mask of its own, it attends across borders
    alone = evaluate_loss(model, ragged_table, loss_settings(batch_tokens=1)).loss_sums
    model.forward = _with_all_ones_mask(model.forward)
    leaking = evaluate_loss(model, ragged_table, loss_settings(batch_tokens=100, packed=True)).loss_sums
    assert leaking != pytest.approx(alone, rel=1e-2)


def _with_all_ones_mask(forward):
    def masked(input_ids, attention_mask, **kwargs):
        return forward(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **kwargs)

    return masked


def test_dropout_is_off_inside_and_the_mode_comes_back(tiny_gpt2, ragged_table, loss_settings):
    model = load(tiny_gpt2)
    expected = evaluate_loss(model, ragged_table, loss_settings())
    assert not model.training
    model.train()
    again = evaluate_loss(model, ragged_table, loss_settings())
    assert model.training
    assert np.array_equal(expected.loss_sums, again.loss_sums)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_comes_back_after_an_error(ragged_table, loss_settings):
    model = nn.Linear(1, 1).train()
    with pytest.raises(TypeError):
        evaluate_loss(model, ragged_table, loss_settings())
    assert model.training


def test_a_split_without_supervised_tokens_is_refused(list_table, loss_settings):
    with pytest.raises(DataError, match="1 examples have no supervised token"):
        evaluate_loss(FixedLogits(), list_table([([5, 6], 2, 0)]), loss_settings())


def test_each_process_computes_its_share_and_the_shares_are_all_there_is(
    ragged_table, loss_settings, monkeypatch, tiny_llama
):
    model = load(tiny_llama)
    settings = loss_settings(batch_tokens=12)
    expected = evaluate_loss(model, ragged_table, settings).loss_sums
    shares = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums, async_op: shares.append(sums.clone().numpy()))
    monkeypatch.setattr("llmtune.process_group.exchange", lambda start: start())
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        evaluate_loss(model, ragged_table, settings)
    first, second = (share[: len(expected)] for share in shares)  # behind them: whether a signal came
    assert not np.any((first != 0) & (second != 0))
    assert first.any() and second.any()
    assert first + second == pytest.approx(expected)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 10, 16, 1000])
def test_batches_hold_every_example_once_within_the_limit(packed, batch_tokens):
    lengths = np.array([3, 9, 1, 12, 7, 7, 2, 1])
    batches = plan_batches(lengths, batch_tokens, packed=packed)
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    for batch in batches:
        chosen = lengths[list(batch)]
        positions = chosen.sum() if packed else chosen.max() * len(batch)
        assert positions <= batch_tokens or len(batch) == 1


def test_no_examples_make_no_batches():
    assert plan_batches(np.array([], dtype=int), 8, packed=True) == []


def test_predictions_are_written_example_by_example(tmp_path, list_table, loss_settings):
    table = list_table([([5, 7, 7, 1], 0, 3), ([7, 7, 7, 1], 3, 2)])
    report = evaluate_loss(FixedLogits(), table, loss_settings())
    write_predictions(report, table, ["a", "b"], tmp_path / "predictions" / "base.parquet")
    rows = pq.read_table(tmp_path / "predictions" / "base.parquet").to_pylist()
    assert [row["example_id"] for row in rows] == ["example-0", "example-1"]
    assert [row["cluster"] for row in rows] == ["a", "b"]
    assert [row["num_tokens"] for row in rows] == [4, 4]
    assert [row["num_supervised_tokens"] for row in rows] == [3, 1]
    assert [row["num_supervised_bytes"] for row in rows] == [3, 2]
    assert [row["loss_sum"] for row in rows] == pytest.approx([6 * math.log(2), 4 * math.log(2)])
