"""Ollama's `Modelfile`: which file, how a conversation is put to it, where an answer ends."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llmtune.export.gguf_files.turns import NotExpressible, stop_texts, turns_of

_LONGEST_CONTEXT = 8192
"""Ollama sets room aside for a text of this length; a user who needs more sets num_ctx."""


def modelfile(
    file_name: str,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    max_positions: int | None,
    *,
    adds_bos: bool,
) -> str:
    """The content of a `Modelfile`.

    Args:
        file_name: the GGUF file beside it.
        tokenizer: the run's.
        ends: tokens that end an answer.
        max_positions: the longest text in tokens; None where the model names no limit.
        adds_bos: whether a first token is put before every text.
    """
    lines = ["# ollama create NAME -f Modelfile", f"FROM ./{file_name}", *_template(tokenizer, adds_bos=adds_bos)]
    lines += [f'PARAMETER stop "{_quoted(text)}"' for text in stop_texts(tokenizer, ends)]
    lines.append(f"PARAMETER num_ctx {min(max_positions or _LONGEST_CONTEXT, _LONGEST_CONTEXT)}")
    return "\n".join(lines) + "\n"


def _template(tokenizer: PreTrainedTokenizerBase, *, adds_bos: bool) -> list[str]:
    if not isinstance(tokenizer.chat_template, str):
        return ["# The model was trained without a chat template, so a prompt goes to it as it is.", _quote(".Prompt")]
    try:
        turns = turns_of(tokenizer, adds_bos=adds_bos)
    except NotExpressible as reason:
        return [
            f"# There is no TEMPLATE here: training's chat template {_one_line(reason)}.",
            "# Render conversations with run.py, or with the Jinja template inside the GGUF file.",
        ]
    notes = []
    if turns.strips:
        notes.append("# Training's chat template strips the spaces around what a turn says; Ollama keeps them.")
    if "system" not in turns.around:
        notes.append("# The model was trained without system turns, so they are left out.")
    return [*notes, f'TEMPLATE """{turns.go_template()}"""']


def _quote(field: str) -> str:
    return f'TEMPLATE """{{{{ {field} }}}}"""'


def _one_line(reason: Exception) -> str:
    return " ".join(str(reason).split())


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
