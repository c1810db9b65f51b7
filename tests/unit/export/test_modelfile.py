"""Ollama's Modelfile: its template says what training's says, or isn't there."""

import json
import shutil
import subprocess

import pytest
from transformers import AutoTokenizer

from chat_templates import ALL
from llmtune.export.gguf_files.modelfile import modelfile
from llmtune.export.gguf_files.turns import NotExpressible, turns_of

MORE_THAN_TEXT = {"mistral", "numbered"}
CONTENTS = ["What is 2 + 2?", "It is\n\n4 {{ really }}.", "Say \"it\" — 'é' \\ `x` </s>"]
GO_PROGRAM = """package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }
type Case struct { Template, System string; Messages []Message }

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	for _, one := range cases {
		parsed := template.Must(template.New("").Parse(one.Template))
		values := map[string]any{"System": one.System, "Messages": one.Messages}
		if err := parsed.Execute(os.Stdout, values); err != nil { panic(err) }
		os.Stdout.Write([]byte{0})
	}
}
"""
"""Renders as Ollama does: the system turn stands among the messages and in `.System` as well."""


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def conversations(with_system: bool):
    user, assistant, again = CONTENTS
    question = [{"role": "user", "content": user}]
    longer = [*question, {"role": "assistant", "content": assistant}, {"role": "user", "content": again}]
    system = [{"role": "system", "content": "Be brief."}]
    plain = [
        question,
        longer,
        [*longer, {"role": "assistant", "content": user}, {"role": "user", "content": assistant}],
    ]
    return plain + [system + turns for turns in plain] * with_system


def test_a_whole_modelfile(tokenizer):
    tokenizer.chat_template = ALL["smollm"]
    assert modelfile("model.gguf", tokenizer, [2, 0], 512, adds_bos=False) == (
        "# ollama create NAME -f Modelfile\n"
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ if not .System }}'
        '{{ "<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n" }}{{ end }}'
        "{{ range .Messages }}"
        '{{ if eq .Role "system" }}{{ "<|im_start|>system\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}'
        '{{ else if eq .Role "user" }}{{ "<|im_start|>user\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}'
        '{{ else if eq .Role "assistant" }}{{ "<|im_start|>assistant\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}'
        '{{ end }}{{ end }}{{ "<|im_start|>assistant\\n" }}"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|endoftext|>"\n'
        "PARAMETER num_ctx 512\n"
    )


@pytest.mark.parametrize("name", sorted(set(ALL) - MORE_THAN_TEXT))
def test_fixed_text_renders_as_the_chat_template_does(tokenizer, name):
    tokenizer.chat_template = ALL[name]
    turns = turns_of(tokenizer, adds_bos=False)
    for messages in conversations(with_system="system" in turns.around):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert turns.render(messages) == expected


@pytest.mark.parametrize("name", sorted(MORE_THAN_TEXT))
def test_a_template_that_does_more_is_left_out_and_the_file_says_why(tokenizer, name):
    tokenizer.chat_template = ALL[name]
    lines = modelfile("model.gguf", tokenizer, [2], 512, adds_bos=False).splitlines()
    assert lines[2].startswith("# There is no TEMPLATE here: training's chat template ")
    assert not any(line.startswith("TEMPLATE") for line in lines)
    assert lines[-2:] == ['PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 512"]


def test_a_template_that_counts_its_turns_is_found_out(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '#' if loop.length > 4 else '' }}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(NotExpressible, match=r"around a turn depending on where it stands|more than put fixed text"):
        turns_of(tokenizer, adds_bos=False)


def test_a_first_token_that_ollama_adds_itself_is_not_written_twice(tokenizer):
    tokenizer.chat_template = ALL["llama-3"]
    written = turns_of(tokenizer, adds_bos=False)
    added = turns_of(tokenizer, adds_bos=True)
    question = [{"role": "user", "content": "Hi."}]
    assert written.render(question).startswith("<|im_start|><|start_header_id|>user")  # <|im_start|> is its bos
    assert added.render(question) == written.render(question).removeprefix("<|im_start|>")
    tokenizer.chat_template = ALL["no end"]
    with pytest.raises(NotExpressible, match="begins no conversation with"):
        turns_of(tokenizer, adds_bos=True)


def test_what_differs_is_said(tokenizer):
    tokenizer.chat_template = ALL["gemma"]
    content = modelfile("model.gguf", tokenizer, [2], None, adds_bos=False)
    assert "# Training's chat template strips the spaces around what a turn says; Ollama keeps them.\n" in content
    assert "# The model was trained without system turns, so they are left out.\n" in content
    assert "if not .System" not in content, "the first token stands there whether or not a system turn is given"
    assert content.endswith("PARAMETER num_ctx 8192\n")


def test_without_a_chat_template_the_prompt_is_put_as_it_is(tokenizer):
    tokenizer.chat_template = None
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in modelfile("model.gguf", tokenizer, [2], 512, adds_bos=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="go isn't installed")
def test_go_renders_the_template_as_jinja_does(tokenizer, tmp_path):
    cases, expected = [], []
    for name in sorted(set(ALL) - MORE_THAN_TEXT):
        tokenizer.chat_template = ALL[name]
        turns = turns_of(tokenizer, adds_bos=False)
        for messages in conversations(with_system="system" in turns.around):
            system = "\n\n".join(one["content"] for one in messages if one["role"] == "system")
            cases.append({"Template": turns.go_template(), "System": system, "Messages": messages})
            expected.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    (tmp_path / "main.go").write_text(GO_PROGRAM)
    done = subprocess.run(
        ["go", "run", "main.go"], cwd=tmp_path, input=json.dumps(cases).encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    rendered = done.stdout.decode().split("\0")[:-1]
    assert len(rendered) == len(expected) > 40
    assert rendered == expected
