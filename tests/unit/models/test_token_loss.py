"""Which tokens get a loss, worked out by hand; what the model is asked for."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmtune.models.token_loss import token_loss_sum, token_losses


class Recorder(nn.Module):
    """Answers logits that favour token 1 and remembers what it was called with."""

    def forward(self, **kwargs):
        self.called = kwargs
        kept = kwargs["logits_to_keep"]
        logits = torch.zeros(kwargs["input_ids"].shape[0], kept.numel(), 4)
        logits[..., 1] = 2.0
        return SimpleNamespace(logits=logits)


@pytest.mark.fast
def test_only_predicting_positions_are_projected():
    model = Recorder()
    ids = torch.tensor([[1, 1, 2, 3, 1]])
    positions = torch.arange(5)[None]
    supervised = (torch.tensor([2, 4]), torch.tensor([1, 3]))
    losses = token_losses(
        model, input_ids=ids, position_ids=positions, attention_mask=None, lengths=(5,), supervised=supervised
    )
    assert model.called["logits_to_keep"].tolist() == [1, 3]
    assert model.called["cu_seq_lens_q"].tolist() == [0, 5]
    assert model.called["use_cache"] is False
    likely = torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 3)
    unlikely = 1 / (torch.tensor(2.0).exp() + 3)
    torch.testing.assert_close(losses, torch.stack([-likely.log(), -unlikely.log()]))
    total = token_loss_sum(
        model, input_ids=ids, position_ids=positions, attention_mask=None, lengths=(5,), supervised=supervised
    )
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(float(-likely.log() - unlikely.log()), rel=1e-6)


@pytest.mark.fast
def test_padded_rows_share_the_columns_that_predict():
    model = Recorder()
    supervised = (torch.tensor([1, 2, 5]), torch.tensor([1, 3, 1]))
    losses = token_losses(
        model,
        input_ids=torch.tensor([[1, 1, 3], [2, 3, 1]]),
        position_ids=torch.arange(3).expand(2, -1),
        attention_mask=torch.ones(2, 3, dtype=torch.bool),
        lengths=(3, 3),
        supervised=supervised,
    )
    assert model.called["logits_to_keep"].tolist() == [0, 1]
    assert losses[0] == losses[2] < losses[1]


@pytest.mark.fast
def test_nothing_supervised_is_empty_and_asks_nothing_of_the_model():
    model = Recorder()
    ids = torch.ones(1, 3, dtype=torch.int64)
    nothing = torch.zeros(0, dtype=torch.int64)
    losses, total = (
        compute(
            model,
            input_ids=ids,
            position_ids=torch.arange(3)[None],
            attention_mask=None,
            lengths=(3,),
            supervised=(nothing, nothing),
        )
        for compute in (token_losses, token_loss_sum)
    )
    assert losses.shape == (0,)
    assert total is None
    assert not hasattr(model, "called")
