"""Rows whose columns have other names: what to type so that they are read."""

from collections.abc import Iterable
from typing import Any

from llmtune.config.data import RowConfig
from llmtune.config.row_columns import COLUMN, how_to_set

_QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "input", "user", "human", "q", "source")
_QUESTIONS += ("input_text", "context", "article", "document", "dialogue", "dialog", "passage", "title")
_ANSWERS = ("completion", "output", "answer", "response", "target", "reply", "solution", "assistant", "gpt", "a")
_ANSWERS += ("target_text", "output_text", "summary", "highlights", "answers")
_ABOUT = ("input", "context")
_SYSTEMS = ("system", "system_prompt", "system_message")
_CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns", "history")
_TEXTS = (
    "text",
    "content",
    "document",
    "body",
    "article",
    "passage",
    "dialogue",
    "dialog",
    "story",
    "code",
    "sentence",
)


def why_unknown(row: dict[str, Any], rows: RowConfig, shapes: str) -> str:
    """Why a row has none of the shapes that may be read, and the mapping to write where its columns tell.

    Args:
        row: a row that none of the shapes' columns fit.
        rows: how its source is read.
        shapes: those that may be read, in words.
    """
    columns = {_plain(column): column for column in row if isinstance(column, str) and row[column] is not None}
    if "chosen" in columns and "rejected" in columns:
        mapping = _preferred(row, columns)
        return f"the row is a preference pair, of which only one answer is learnt; {how_to_set(rows, mapping)}"
    mapping = _mapping(row, columns)
    if mapping:
        return f"the row has none of {shapes}; {how_to_set(rows, mapping)}"
    for given, missing in (("prompt", "completion"), ("instruction", "output")):
        for one, other in ((given, missing), (missing, given)):
            if one in row:
                return f"`{one}` stands without `{other}`; give both"
    by_hand = [{"text_column": COLUMN}, {"prompt_column": COLUMN, "completion_column": COLUMN}]
    return f"the row has none of {shapes}; {how_to_set(rows, *by_hand)}"


def _preferred(row: dict[str, Any], columns: dict[str, str]) -> dict[str, str]:
    chosen = columns["chosen"]
    question = _first(columns, _QUESTIONS)
    if isinstance(row[chosen], list | tuple):
        return {"messages_column": chosen}
    return {"text_column": chosen} if question is None else _pair(columns, question, chosen)


def _mapping(row: dict[str, Any], columns: dict[str, str]) -> dict[str, str]:
    talk = _first(
        columns, [name for name in _CONVERSATIONS if isinstance(row.get(columns.get(name, "")), list | tuple)]
    )
    if talk is not None:
        return {"messages_column": talk}
    flat = {name: column for name, column in columns.items() if not isinstance(row[column], list | tuple | dict)}
    question, answer = _first(flat, _QUESTIONS), _first(flat, _ANSWERS)
    if question is not None and answer is not None:
        return _pair(flat, question, answer)
    text = _first(columns, [name for name in _TEXTS if isinstance(row.get(columns.get(name, "")), str)])
    return {} if text is None else {"text_column": text}


def _pair(columns: dict[str, str], question: str, answer: str) -> dict[str, str]:
    """Keys for a question and its answer; those that already stand for their column are left out."""
    about = _first(columns, [name for name in _ABOUT if columns.get(name) != question])
    system = _first(columns, _SYSTEMS)
    if about is None and system is None and _plain(question) != "instruction":
        named = {"prompt": question, "completion": answer}
    else:
        named = {"instruction": question, "input": about, "output": answer, "system": system}
    return {f"{name}_column": column for name, column in named.items() if column is not None and column != name}


def _first(columns: dict[str, str], names: Iterable[str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _plain(column: str) -> str:
    return column.strip().casefold().replace(" ", "_").replace("-", "_")
