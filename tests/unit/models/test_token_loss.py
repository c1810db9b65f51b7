"""Which tokens get a loss, worked out by hand; what the model is asked for."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmtune.models.token_loss import supervised_positions, token_losses


class Recorder(nn.Module):
    """Answers logits that favour token 1 and remembers what it was called with."""

    def forward(self, **kwargs):
        self.called = kwargs
        kept = kwargs["logits_to_keep"]
        logits = torch.zeros(kwargs["input_ids"].shape[0], kept.numel(), 4)
        logits[..., 1] = 2.0
        return SimpleNamespace(logits=logits)


@pytest.mark.fast
def test_packed_first_tokens_are_never_predicted():
    labels = torch.tensor([[5, 6, 7, 8, -100, 9]])  # examples of 2, 3 and 1 tokens
    assert supervised_positions(labels, (2, 3, 1), packed=True).tolist() == [1, 3]
    assert labels.tolist() == [[5, 6, 7, 8, -100, 9]]
    # control: as a single example, the borders' tokens are predicted
    assert supervised_positions(labels, (6,), packed=True).tolist() == [1, 2, 3, 5]


@pytest.mark.fast
def test_padded_positions_are_flat_and_skip_column_zero():
    labels = torch.tensor([[5, 6, -100], [7, -100, 8]])
    assert supervised_positions(labels, (2, 3), packed=False).tolist() == [1, 5]


@pytest.mark.fast
def test_only_predicting_positions_are_projected():
    model = Recorder()
    ids = torch.tensor([[1, 1, 2, 3, 1]])
    labels = torch.tensor([[-100, -100, 1, -100, 3]])
    positions = torch.arange(5)[None]
    result = token_losses(
        model, input_ids=ids, labels=labels, position_ids=positions, attention_mask=None, lengths=(5,)
    )
    assert model.called["logits_to_keep"].tolist() == [1, 3]
    assert model.called["cu_seq_lens_q"].tolist() == [0, 5]
    assert model.called["use_cache"] is False
    assert result.positions.tolist() == [2, 4]
    likely = torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 3)
    unlikely = 1 / (torch.tensor(2.0).exp() + 3)
    torch.testing.assert_close(result.losses, torch.stack([-likely.log(), -unlikely.log()]))


@pytest.mark.fast
def test_nothing_supervised_is_empty_and_asks_nothing_of_the_model():
    model = Recorder()
    ids = torch.ones(1, 3, dtype=torch.int64)
    result = token_losses(
        model,
        input_ids=ids,
        labels=torch.full_like(ids, -100),
        position_ids=torch.arange(3)[None],
        attention_mask=None,
        lengths=(3,),
    )
    assert result.losses.shape == (0,) and result.positions.shape == (0,)
    assert not hasattr(model, "called")
