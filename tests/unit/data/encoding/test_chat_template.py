"""Templates are rendered as transformers renders them."""

import copy
import time

import pytest

import chat_templates
from chat_templates import CALL, TOOLS
from llmtune.data.encoding.chat_template import ChatTemplate, TemplateRefusal
from llmtune.data.encoding.description import describe_tokenizer

pytestmark = pytest.mark.fast

PLAIN = [{"role": "user", "content": " hi\n"}, {"role": "assistant", "content": "ho "}]
CONVERSATIONS = {
    "plain": PLAIN,
    "two exchanges": [*PLAIN, {"role": "user", "content": ""}, {"role": "assistant", "content": "{{ x }} <b>"}],
    "system": [{"role": "system", "content": "be brief"}, *PLAIN],
    "reasoning": [PLAIN[0], {"role": "assistant", "content": "ho", "reasoning_content": "hm"}, *PLAIN],
    "another name for reasoning": [PLAIN[0], {"role": "assistant", "content": "ho", "thinking": "hm"}],
    "thinking in the content": [PLAIN[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nho"}, *PLAIN],
    "keys without a value": [{**PLAIN[0], "name": None}, {**PLAIN[1], "tool_calls": None, "reasoning_content": None}],
    "a tool call": [
        PLAIN[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "cold", "tool_call_id": "1"},
        {"role": "tool", "content": "wet", "tool_call_id": "2"},
        PLAIN[1],
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, PLAIN[1]],
}


def rendered_or_refused(render):
    try:
        return render()
    except Exception:
        return None


SEEN = {"keys": "{% for m in messages %}{{ m }}{{ tools }}{{ documents }}{{ eos_token }}{{ bos_token }}{% endfor %}"}


@pytest.mark.parametrize("name", [*chat_templates.ALL, *SEEN])
def test_every_conversation_is_rendered_as_by_transformers(marker_tokenizer, name):
    tokenizer = copy.deepcopy(marker_tokenizer)
    tokenizer.chat_template = (chat_templates.ALL | SEEN)[name]
    template = ChatTemplate(tokenizer.chat_template, describe_tokenizer(tokenizer).template_tokens)
    num_rendered = 0
    for turns in CONVERSATIONS.values():
        for tools in (None, TOOLS):
            for prompt in (False, True):
                expected = rendered_or_refused(
                    lambda turns=turns, tools=tools, prompt=prompt: tokenizer.apply_chat_template(
                        turns, tools=tools, add_generation_prompt=prompt, tokenize=False
                    )
                )
                found = rendered_or_refused(
                    lambda turns=turns, tools=tools, prompt=prompt: template.render(turns, tools, prompt=prompt)
                )
                assert found == expected
                num_rendered += found is not None
    assert num_rendered >= 20


def test_markers_are_found_where_transformers_finds_them(marker_tokenizer):
    tokenizer = copy.deepcopy(marker_tokenizer)
    tokenizer.chat_template = chat_templates.MARKED
    turns = CONVERSATIONS["two exchanges"]
    found = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    text, spans = ChatTemplate(chat_templates.MARKED, {}).render_marked(turns)
    assert [text[start:end] for start, end in spans] == ["ho ", "{{ x }} <b>"]
    masked = [number for number, learnt in zip(found["input_ids"], found["assistant_masks"], strict=True) if learnt]
    assert tokenizer.decode(masked) == "ho {{ x }} <b>"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must\n alternate') }}", "refuses the conversation: roles must alternate"),
        ("{{ raise_exception('no ' + messages[0].content) }}", r"refuses the conversation \(TemplateError\)"),
        ("{{ messages[0].content.nothing.at_all }}", r"refuses the conversation \(UndefinedError\)"),
        ("{{ messages[0].content + 1 }}", r"refuses the conversation \(TypeError\)"),
        ("{{ messages[0].content.__class__.mro() }}", r"refuses the conversation \(SecurityError\)"),
        ("{% for i in range(10**7) %}x{% endfor %}", r"refuses the conversation \(OverflowError\)"),
    ],
)
def test_a_refusal_says_why_in_the_templates_words_only(source, reason):
    with pytest.raises(TemplateRefusal, match=reason) as refusal:
        ChatTemplate(source, {}).render([{"role": "user", "content": "secret"}])
    assert "secret" not in str(refusal.value)


def test_a_turns_text_is_never_run(marker_tokenizer):
    turns = [{"role": "user", "content": "{{ 1 + 1 }}{% raw %}"}]
    assert "{{ 1 + 1 }}{% raw %}" in ChatTemplate(chat_templates.CHATML, {}).render(turns)


def test_named_templates_are_told_apart(marker_tokenizer):
    tokenizer = copy.deepcopy(marker_tokenizer)
    tokenizer.chat_template = {"default": chat_templates.CHATML, "tool_use": chat_templates.QWEN25}
    description = describe_tokenizer(tokenizer)
    assert (description.chat_template, description.tool_template) == (chat_templates.CHATML, chat_templates.QWEN25)
    tokenizer.chat_template = chat_templates.GEMMA
    given = describe_tokenizer(tokenizer)
    assert (given.chat_template, given.tool_template) == (chat_templates.GEMMA, None)


def test_rendering_takes_no_longer_than_by_transformers(marker_tokenizer):
    tokenizer = copy.deepcopy(marker_tokenizer)
    tokenizer.chat_template = chat_templates.CHATML
    template = ChatTemplate(chat_templates.CHATML, {})

    def seconds(render):
        found = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                render()
            found.append(time.perf_counter() - start)
        return min(found)

    theirs = seconds(lambda: tokenizer.apply_chat_template(PLAIN, tokenize=False))
    assert seconds(lambda: template.render(PLAIN)) < theirs
