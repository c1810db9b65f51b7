"""The configuration reference: every group, option and key as a page of Markdown, read from schemas and files."""

import re
from collections.abc import Iterable, Iterator, Mapping

from llmtune.config.resources import project_options, project_summary
from llmtune.config.schema import Key, default_option, described_keys, group_meaning, groups, shapes_to_choose

_HEAD = """\
# Configuration

<!-- Written by `make reference` from the dataclasses in src/llmtune/config and the files in conf; don't edit. -->

Every run has one config. It starts from `conf/config.yaml`, which takes one option of each group below; what you type
changes it:

- `GROUP=OPTION` picks another option, a file of `conf/GROUP/`. `+GROUP=OPTION` means the same.
- `KEY=VALUE` sets one key. A key's name is the group's and its own, as in `train.num_epochs=5`.
- `--cfg job` shows the config that your command has, and stops.

A key that doesn't exist, a value of the wrong type and a combination that can't work are refused before anything is
loaded, all at once, with the nearest known name.

Defaults are written as in YAML. `null` means that nothing is set; the meaning says what applies then. Where a key has
the type `text`, what follows the first `=` is taken as you type it, whatever characters it holds (with `-m`,
`[a,b]` are two texts).
"""


def reference_page(flags: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        flags: each flag and the key or group that it stands for.
    """
    parts = [_HEAD, *(_group(name) for name in groups()), _top(), _flags(flags)]
    return "\n".join(parts)


def _group(group: str) -> str:
    lines = [f"## {group}", "", group_meaning(group), ""]
    if group == "experiment":
        lines += [
            "A file of `experiments/`, the project's or the one where you work; see [Your own YAML](own-yaml.md).",
            "",
        ]
    lines += [*_options(group), "", *_table(described_keys(group))]
    return "\n".join(lines).rstrip("\n") + "\n"


def _options(group: str) -> Iterator[str]:
    names, default = project_options(group), default_option(group)
    if len(names) == 1 and group != "experiment":
        yield f"One option: `{names[0]}`."
        return
    yield f"| `{group}=` | what it is |"
    yield "|---|---|"
    for name in names:
        yield f"| `{name}`{' (default)' if name == default else ''} | {_cell(project_summary(group, name))} |"


def _table(keys: Iterable[Key]) -> Iterator[str]:
    rows = list(keys)
    if not rows:
        return
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key in rows:
        yield f"| `{key.name}` | {_cell(key.type)} | {_default(key)} | {_cell(_where(key) + key.meaning)} |"


def _default(key: Key) -> str:
    if not key.default or key.default.startswith("that of ") or " (" in key.default:
        return _cell(key.default)
    return f"`{_cell(key.default)}`"


def _where(key: Key) -> str:
    """Which shapes of the group have the key, where not all have it."""
    if set(shapes_to_choose(key.group)) <= set(key.shapes):
        return ""
    return f"Only for {' and '.join(filter(None, (', '.join(key.shapes[:-1]), key.shapes[-1])))}. "


def _top() -> str:
    return "\n".join(["## Keys of the whole run", "", *_table(described_keys("")), ""])


def _flags(flags: Mapping[str, str]) -> str:
    lines = [
        "## Flags",
        "",
        "Some keys have a flag too. `--epochs 5`, `--epochs=5` and `train.num_epochs=5` are one.",
        "",
    ]
    lines += ["| flag | stands for |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{flag}` | `{key}` |" for flag, key in flags.items()), ""])


def _cell(text: str) -> str:
    """The text for a cell of a table, its addresses as links."""
    return re.sub(r"(?<![<(])(https://[^\s)>]+)", r"<\1>", text.replace("|", "\\|"))
