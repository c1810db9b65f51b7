"""What is learnt: the assistant's words and end-of-turn tokens, told by position; where none is supervised, nothing."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import FULL, LORA, Setup, make_parts
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from llmtune.config.data import FilesConfig
from llmtune.data.collate import collate
from llmtune.data.preparing.prepared import prepare_data
from llmtune.errors import DataError
from llmtune.training.loop import train_step
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.fast

SPLITS = ("train", "validation", "test")
START = "<s>"
ALIKE = {"find_near_duplicates": False}
"""The rows differ by a number, and are examples of their own."""


@pytest.fixture
def tokenizer(tiny_llama):
    """Pads with its end-of-turn token; its template has no generation markers."""
    found = AutoTokenizer.from_pretrained(tiny_llama)
    assert found.pad_token_id == found.eos_token_id
    assert "generation %}" not in found.chat_template
    return found


def starting(tokenizer):
    """The same tokenizer, which puts a start token before every text, as its template does before a conversation."""
    found = copy.deepcopy(tokenizer)
    found.add_special_tokens({"bos_token": START})
    number = found.convert_tokens_to_ids(START)
    found.backend_tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[(START, number)])
    found.chat_template = "{{ bos_token }}" + found.chat_template
    return found


def conversations(folder: Path) -> str:
    """60 conversations of one to three exchanges, of very different lengths."""
    rows = []
    for number in range(60):
        turns = []
        for turn in range(1 + number % 3):
            turns.append({"role": "user", "content": f"what is {number} and {turn}?"})
            turns.append({"role": "assistant", "content": f"it is {'so ' * (number % 7)}{number + turn}"})
        rows.append({"messages": turns})
    path = folder / "chats.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def rows_of(data):
    """Each example's ids and labels, of all splits."""
    for name in SPLITS:
        table = data.split(name)
        for index in range(len(table)):
            yield table.input_ids(index), table.labels(index)


def prepared(folder, tokenizer, **options):
    return prepare_data(FilesConfig(path=conversations(folder), **ALIKE, **options), tokenizer, "t", folder / "cache")


def test_every_turn_of_the_assistant_is_learnt_with_its_end_and_no_other(tokenizer, tmp_path):
    end, num_turns, num_learnt_ends, num_ends = tokenizer.eos_token_id, 0, 0, 0
    for ids, labels in rows_of(prepared(tmp_path, tokenizer)):
        learnt = labels != -100
        assert (labels[learnt] == ids[learnt]).all()
        pieces = tokenizer.decode(labels[learnt].tolist()).split("<|im_end|>")
        assert pieces.pop() == ""
        assert all(piece.startswith("it is ") and piece[-1].isdigit() for piece in pieces)
        num_turns += len(pieces)
        num_learnt_ends += int((labels == end).sum())
        num_ends += int((ids == end).sum())
    assert num_turns == num_learnt_ends == 20 * (1 + 2 + 3)
    assert num_ends == 2 * num_turns, "the user's turns end with the same token, which isn't learnt"


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_padding_is_masked_by_position_though_it_is_the_end_of_turn_token(tokenizer, tmp_path, packed):
    table, end = prepared(tmp_path, tokenizer).train, tokenizer.eos_token_id
    batch = collate(table, range(9), packed=packed, pad_token_id=end)
    expected = [table.labels(index) for index in range(9)]
    assert batch.targets.tolist() == np.concatenate([labels[labels != -100] for labels in expected]).tolist()
    assert batch.input_ids.reshape(-1)[batch.predicted].tolist() == batch.targets.tolist()
    assert len(batch.targets) == int(table.num_supervised_tokens[:9].sum())
    assert int((batch.targets == end).sum()) == sum(int((labels == end).sum()) for labels in expected) > 9
    if not packed:
        padding = ~batch.attention_mask.reshape(-1)
        assert int(padding.sum()) > 100
        assert (batch.input_ids.reshape(-1)[padding] == end).all()
        assert not padding[batch.predicted].any()
    # control: told by the token's id, no end of turn would be learnt
    by_id = batch.targets[batch.targets != tokenizer.pad_token_id]
    assert len(by_id) <= len(batch.targets) - 9


def test_the_start_token_stands_once_at_the_start_of_every_example(tokenizer, tmp_path):
    with_start = starting(tokenizer)
    number = with_start.convert_tokens_to_ids(START)
    text = tmp_path / "text.jsonl"
    rows = [{"prompt": f"{START * (n % 2)}count {n}", "completion": f" to {n}"} for n in range(40)]
    text.write_text("\n".join(json.dumps(row) for row in rows))
    pairs = prepare_data(FilesConfig(path=str(text), **ALIKE), with_start, "t", tmp_path / "cache")
    for data in (prepared(tmp_path, with_start), pairs):
        examples = list(rows_of(data))
        assert len(examples) >= 40
        assert all(np.flatnonzero(ids == number).tolist() == [0] and labels[0] == -100 for ids, labels in examples)
    # control: a rendered conversation that is tokenised as any other text starts twice
    rendered = with_start.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert with_start(rendered).input_ids[:2] == [number, number]


MASKED = {
    "prompts that fill the length": [{"prompt": "p" * 90, "completion": f" {n}"} for n in range(40)],
    "conversations that the assistant is silent in": [
        {"messages": [{"role": "user", "content": f"anybody {n}?"}]} for n in range(40)
    ],
    "answers beyond the length": [
        {"messages": [{"role": "user", "content": "u" * 90}, {"role": "assistant", "content": str(n)}]}
        for n in range(40)
    ],
}


@pytest.mark.parametrize("kind", MASKED)
def test_data_in_which_every_label_is_masked_are_refused(tokenizer, tmp_path, kind):
    path = tmp_path / "masked.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in MASKED[kind]))
    config = FilesConfig(path=str(path), max_seq_len=40, **ALIKE)
    with pytest.raises(DataError, match=r"no .*example.*(no supervised token|without an assistant turn)"):
        prepare_data(config, tokenizer, "t", tmp_path / "cache")
    # control: with one row that can be learnt from in every five, the others are left out and counted
    learnt = [{"prompt": "say", "completion": f" {n}"} for n in range(80)]
    path.write_text("\n".join(json.dumps(row) for row in [*MASKED[kind], *learnt]))
    rows = prepare_data(config, tokenizer, "t", tmp_path / "cache").report["rows"]
    assert (rows["in"], sum(rows["kept"].values()), sum(rows["dropped"].values())) == (120, 80, 40)


def mask_all(parts, index):
    """Make an example one of which no token is supervised."""
    parts.table._labels[index][:] = -100
    parts.table.num_supervised_tokens[index] = 0


def gradient_of_step(parts):
    found = {}
    for name, parameter in parts.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda leaf, name=name: found.__setitem__(name, leaf.grad.clone())
            )
    result = train_step(parts, TrainState())
    return float(result.loss), float(result.grad_norm), found


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_a_micro_batch_without_supervised_tokens_adds_nothing(tiny_model, method, packed):
    setup = Setup(method, micro_batch_size=1, gradient_accumulation_steps=8, packed=packed, num_examples=8)
    parts, whole = (make_parts(tiny_model, setup) for _ in range(2))
    for each in (parts, whole):
        silent = each.plan.step(0, 0).micro_batches[1]
        for index in silent:
            mask_all(each, index)
        for module in each.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    assert len(parts.plan.step(0, 0).micro_batches) > 2
    whole.plan = AtOnce(whole.plan)

    loss, norm, gradients = gradient_of_step(parts)
    expected_loss, expected_norm, expected = gradient_of_step(whole)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert norm == pytest.approx(expected_norm, rel=1e-6)
    assert gradients.keys() == expected.keys()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    # control: the mean of micro-batches' means has none for this one
    nothing = torch.nn.functional.cross_entropy(torch.zeros(1, 5), torch.tensor([-100]))
    assert torch.isnan(nothing)


class AtOnce:
    """The steps of another plan, each in one micro-batch of the examples that have something to learn."""

    def __init__(self, plan):
        self._plan = plan

    def step(self, global_step, rank):
        step = self._plan.step(global_step, rank)
        learnt = tuple(i for i in step.indices if self._plan._num_supervised_tokens[i])
        return type(step)(**{**vars(step), "micro_batches": (learnt,)})


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_a_step_without_supervised_tokens_has_loss_0_and_leaves_every_weight(tiny_llama, method):
    parts = make_parts(tiny_llama, Setup(method, num_examples=4))
    for index in range(4):
        mask_all(parts, index)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    result = train_step(parts, TrainState())
    assert (float(result.loss), float(result.grad_norm)) == (0.0, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.model.state_dict().items())
