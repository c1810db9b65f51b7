"""Rows become records: which shape a row has, what is read of it, and why one can't be read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtune.config.data import RowConfig
from llmtune.config.row_columns import COLUMN, EvalRowConfig, as_typed, how_to_set, named_columns
from llmtune.data.reading.blocks import Entry, Row
from llmtune.data.records import Record
from llmtune.data.shaping.forms import Form, forms_in_words, forms_of
from llmtune.data.shaping.lookalikes import why_unknown
from llmtune.data.shaping.outcome import Unusable
from llmtune.data.shaping.tools import tools_in
from llmtune.data.shaping.turns import turns_in
from llmtune.data.shaping.values import Fault, is_blank, kind_of, optional_text_in, text_in, why_not_text

_MOST_LAYOUTS = 1000
MOST_UNREAD = 200
"""Names of unread columns that are kept, so that rows whose keys never repeat don't fill the memory."""
_LONGEST_NAME = 80


@dataclass(slots=True)
class _Layout:
    """What rows of the same columns have in common."""

    forms: tuple[Form, ...]
    """Those whose columns the rows have."""
    unread: dict[str, list[Any]] = field(default_factory=dict)
    """By the form's words, the columns that it doesn't read and that were null in every row so far."""


class RowShaper:
    """Turns the rows of one source into records.

    Args:
        rows: how they are read.
        path: how records name the source.
    """

    def __init__(self, rows: RowConfig, path: str) -> None:
        self.unread_columns: set[str] = set()
        """Columns seen and not used; a key of a turn as `messages.KEY`."""
        self.columns: Counter[str] = Counter()
        """Records by the columns that they were made of, in words."""
        self._rows = rows
        self._path = path
        self._forms = forms_of(rows)
        self._layouts: dict[tuple[Any, ...], _Layout] = {}

    def __call__(self, entry: Entry) -> Record | Unusable:
        """The example that a row holds, or why it holds none."""
        if isinstance(entry, Row):
            try:
                return self._record(entry.line, entry.content)
            except Fault as fault:
                return Unusable(entry.line, fault.reason, fault.is_mistake)
        if isinstance(entry, Record):
            return entry
        return Unusable(entry.line, entry.reason, entry.is_mistake)

    def _record(self, line: int, row: Any) -> Record:
        if not isinstance(row, dict):
            raise Fault(f"a row must be an object with {forms_in_words(self._forms)}, this is {kind_of(row)}")
        names = tuple(row)
        layout = self._layouts.get(names) or self._lay_out(names)
        forms = layout.forms
        form = forms[0] if len(forms) == 1 else self._choose(row, forms)
        unread = layout.unread.get(form.words)
        if unread is None:
            used = {*form.columns, *form.optional, self._rows.group_column}
            unread = layout.unread[form.words] = [name for name in names if name not in used]
        if unread:
            self._note_unread(row, unread)
        fields = self._fields(row, form)
        if self._rows.group_column is not None:
            fields["group"] = _group(row, self._rows)
        self.columns[form.words] += 1
        return Record(self._path, line, **fields)

    def _fields(self, row: dict[str, Any], form: Form) -> dict[str, Any]:
        if form.shape == "text":
            return {"text": _learnt(row, form)}
        if form.shape == "messages":
            return self._conversation(row, form)
        prompt = text_in(row, form.columns[0])
        completion = _learnt(row, form)
        if form.shape == "completion":
            return {"prompt": prompt, "completion": completion}
        about, system = (optional_text_in(row, column) for column in form.optional)
        if about is not None:
            prompt = f"{prompt}\n\n{about}" if prompt else about
        return {"prompt": prompt, "completion": completion, "is_instruction": True, "system": system}

    def _conversation(self, row: dict[str, Any], form: Form) -> dict[str, Any]:
        column = form.columns[0]
        if row[column] is None:
            raise Fault(f"`{column}` is null; give it turns or leave the row out")
        turns = turns_in(row[column], column, lambda key: self._note(f"{column}.{key}"))
        system_column, tools_column = form.optional
        system = optional_text_in(row, system_column) if system_column in row else None
        if system is not None and turns[0]["role"] in ("system", "developer"):
            if turns[0]["content"] != system:
                raise Fault(f"`{system_column}` stands beside another system turn in `{column}`; keep one of them")
        elif system is not None:
            turns = ({"role": "system", "content": system}, *turns)
        return {"messages": turns, "tools": tools_in(row, tools_column) if tools_column in row else None}

    def _lay_out(self, names: tuple[Any, ...]) -> _Layout:
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        present = set(names)
        layout = _Layout(tuple(form for form in self._forms if present.issuperset(form.columns)))
        self._layouts[names] = layout
        return layout

    def _choose(self, row: dict[str, Any], forms: tuple[Form, ...]) -> Form:
        """The form to read a row in whose columns fit several, or none."""
        if not forms:
            raise Fault(self._why_no_form(row))
        filled = [form for form in forms if all(row[column] is not None for column in form.columns)]
        fitting: dict[str, Form] = {}
        for form in filled:
            if row[form.columns[-1]] != "":
                fitting.setdefault(form.shape, form)
        if len(fitting) > 1:
            choices = [{"shape": shape} for shape in fitting]
            raise Fault(f"the row's columns fit several shapes; {how_to_set(self._rows, *choices)}")
        return next(iter([*fitting.values(), *filled, *forms]))

    def _why_no_form(self, row: dict[str, Any]) -> str:
        if len({form.shape for form in self._forms}) > 1:
            return why_unknown(row, self._rows, forms_in_words(self._forms))
        form = self._forms[0]
        column, key = next(pair for pair in zip(form.columns, form.keys, strict=True) if pair[0] not in row)
        if key in named_columns(self._rows):
            return f"the row has no `{column}`, which {as_typed(self._rows, {key: column})} names"
        others = "".join(f" or `{other.columns[0]}`" for other in self._forms[1:])
        return f"the row has no `{column}`{others}; {how_to_set(self._rows, {key: COLUMN})}"

    def _note_unread(self, row: dict[str, Any], names: list[Any]) -> None:
        """Note the columns that hold something, and take them out of the list."""
        for name in [name for name in names if row[name] is not None]:
            self._note(str(name))
            names.remove(name)

    def _note(self, name: str) -> None:
        if len(self.unread_columns) < MOST_UNREAD:
            self.unread_columns.add(name[:_LONGEST_NAME].encode("utf-8", "replace").decode())


def shape_of(record: Record) -> str:
    """The shape of a record in words."""
    if record.messages is not None:
        return "messages"
    if record.text is not None:
        return "text"
    return "instruction" if record.is_instruction else "prompt and completion"


def as_row(record: Record) -> dict[str, Any]:
    """A record as plain JSON that is read back as the same record; its group, where it has one, as `group`."""
    if record.messages is not None:
        row: dict[str, Any] = {"messages": [dict(turn) for turn in record.messages]}
        row |= {"tools": [dict(tool) for tool in record.tools]} if record.tools else {}
    elif record.text is not None:
        row = {"text": record.text}
    elif record.is_instruction:
        row = {"instruction": record.prompt, "output": record.completion}
        row |= {"system": record.system} if record.system is not None else {}
    else:
        row = {"prompt": record.prompt, "completion": record.completion}
    return row if record.group is None else row | {"group": record.group}


def why_shape(counts: Mapping[str, int], rows: RowConfig) -> str:
    """Which shape the rows of a source were taken for, and why.

    Args:
        counts: `RowShaper.columns` over all of them.
        rows: how they were read.
    """
    asked = ({} if rows.shape == "auto" else {"shape": rows.shape}) | named_columns(rows)
    decided = as_typed(rows, asked) if asked else ""
    return "; ".join(filter(None, [decided, _seen(counts)])) or "the source itself gives the examples"


def _seen(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return f"every row has {next(iter(counts))}"
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = [f"{count:,} {words}" for words, count in ranked]
    found[:1] = [f"{count:,} {'row has' if count == 1 else 'rows have'} {words}" for words, count in ranked[:1]]
    return f"{', '.join(found[:-1])} and {found[-1]}" if found else ""


def _learnt(row: dict[str, Any], form: Form) -> str:
    column = form.columns[-1]
    text = text_in(row, column)
    if is_blank(text):
        raise Fault(f"empty {column}", is_mistake=False)
    return text


def _group(row: dict[str, Any], rows: RowConfig) -> str | None:
    column = rows.group_column or ""
    if column not in row and isinstance(rows, EvalRowConfig):
        return None
    if column not in row:
        raise Fault(f"the row has no `{column}`, which {as_typed(rows, {'group_column': column})} names")
    value = row[column]
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or kind_of(value) == "NaN":
        raise Fault(f"`{column}` must be text or a number, not {kind_of(value)}")
    if isinstance(value, str) and (reason := why_not_text(value)):
        raise Fault(f"`{column}` {reason}")
    return f"{value}"
