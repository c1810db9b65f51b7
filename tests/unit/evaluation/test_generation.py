import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llmtune.errors import UserError
from llmtune.evaluation.generation import GenerationSettings, generate_texts
from llmtune.models.attention import VARLEN, attention_of, set_attention
from llmtune.models.precision import Precision

pytestmark = pytest.mark.fast
PROMPTS = ["add 3 and 4:", "2 cats in the barn. who?", "reverse"]


@pytest.fixture
def loaded(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval(), tokenizer


def settings(**changes):
    given = {"max_new_tokens": 12, "precision": Precision("fp32", "cpu", "test"), "device": torch.device("cpu")}
    return GenerationSettings(**{**given, **changes})


def plain_greedy(model, tokenizer, prompt):
    """What transformers writes for one prompt alone."""
    encoded = tokenizer(prompt, return_tensors="pt")
    written = model.generate(
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        generation_config=GenerationConfig(
            max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        ),
    )
    return tokenizer.decode(written[0, encoded.input_ids.shape[1] :], skip_special_tokens=True)


def test_a_greedy_padded_batch_equals_transformers_prompt_by_prompt(loaded):
    model, tokenizer = loaded
    expected = [plain_greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    assert generate_texts(model, tokenizer, PROMPTS, settings()) == expected
    assert len(set(expected)) == 3


def test_ids_are_taken_as_they_are(loaded):
    model, tokenizer = loaded
    ids = tokenizer(PROMPTS[0])["input_ids"]
    assert generate_texts(model, tokenizer, [ids], settings()) == generate_texts(
        model, tokenizer, PROMPTS[:1], settings()
    )


def test_attention_mode_and_defaults_come_back_and_do_not_apply(loaded):
    model, tokenizer = loaded
    expected = generate_texts(model, tokenizer, PROMPTS, settings())
    set_attention(model, VARLEN)
    model.train()
    model.generation_config.repetition_penalty = 5.0
    own = model.generation_config
    assert generate_texts(model, tokenizer, PROMPTS, settings()) == expected
    assert model.generation_config is own
    assert attention_of(model) == VARLEN
    assert model.training


def test_samples_follow_from_the_seed_and_move_no_other_stream(loaded):
    model, tokenizer = loaded
    hot = settings(temperature=1.5, num_samples=3)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    texts = generate_texts(model, tokenizer, PROMPTS, hot)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert generate_texts(model, tokenizer, PROMPTS, hot) == texts
    assert len(texts) == 9 and len(set(texts[:3])) > 1
    assert generate_texts(model, tokenizer, PROMPTS, settings(temperature=1.5, num_samples=3, seed=2)) != texts


def test_top_k_one_is_greedy(loaded):
    model, tokenizer = loaded
    expected = generate_texts(model, tokenizer, PROMPTS, settings())
    assert generate_texts(model, tokenizer, PROMPTS, settings(temperature=1.0, top_k=1)) == expected
    assert generate_texts(model, tokenizer, PROMPTS, settings(temperature=1.0, top_p=1e-6)) == expected


def test_an_end_token_ends_a_text(loaded):
    model, tokenizer = loaded
    ids = tokenizer(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        likeliest = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [likeliest]
    long = generate_texts(model, tokenizer, PROMPTS[:1], settings())
    assert long == [tokenizer.decode([likeliest], skip_special_tokens=True)]


def test_more_rows_than_one_batch_holds(loaded):
    model, tokenizer = loaded
    texts = generate_texts(model, tokenizer, PROMPTS * 7, settings(max_new_tokens=3))
    assert texts == generate_texts(model, tokenizer, PROMPTS, settings(max_new_tokens=3)) * 7


def test_an_empty_prompt_and_no_prompt(loaded):
    model, tokenizer = loaded
    assert len(generate_texts(model, tokenizer, [""], settings())) == 1
    assert generate_texts(model, tokenizer, [], settings()) == []


def test_a_prompt_that_fills_the_model_is_refused_and_a_long_one_shortens_the_answer(loaded):
    model, tokenizer = loaded
    positions = model.config.max_position_embeddings
    with pytest.raises(UserError, match=f"{positions} tokens and the model reads {positions} at most"):
        generate_texts(model, tokenizer, [[5] * positions], settings())
    assert len(generate_texts(model, tokenizer, [[5] * (positions - 2)], settings())) == 1


def test_nothing_is_warned(loaded, recwarn, caplog, capfd):
    model, tokenizer = loaded
    model.generation_config.update(temperature=0.6, top_p=0.9, do_sample=True, max_length=20)
    generate_texts(model, tokenizer, PROMPTS, settings())
    generate_texts(model, tokenizer, PROMPTS, settings(temperature=0.7))
    assert [str(warning.message) for warning in recwarn] == []
    assert caplog.text == ""
    assert "[transformers]" not in capfd.readouterr().err
