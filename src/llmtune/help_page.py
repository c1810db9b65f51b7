"""The pages that `--help` shows: the whole program, a stage, a command or a config group."""

import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmtune.config.resources import group_options, option_summary, resource_dir
from llmtune.config.schema import Key, default_option, described_keys, group_meaning, groups, shapes_to_choose
from llmtune.config.validate import nearest
from llmtune.errors import ConfigError
from llmtune.flags import FLAGS
from llmtune.help_topics import COMMANDS, OPTIONS, STAGES, Topic

WIDTH = 100

_HEAD = """\
llmtune: fine-tune language models, and know which method is good enough for your data

It prepares your examples, trains by LoRA, QLoRA or in full, measures the result beside the base
model on examples that training never saw, and exports a model that other programs load. Every
number lands in a run folder and in MLflow.

usage: llmtune [STAGE ... | COMMAND] [GROUP=OPTION ...] [KEY=VALUE ...] [--FLAG VALUE ...]

Without data, run or experiment it runs the quick start: a small real model on real code, in a few
minutes on a CPU.
"""

_EXAMPLES = (
    "llmtune",
    "llmtune --model gpt2 --train-data my.jsonl --epochs 3",
    "llmtune train method=qlora model=Qwen/Qwen3-0.6B data.path=my.jsonl method.rank=8",
    "llmtune -m +method=lora,qlora,full seed=1,2,3 data.path=my.jsonl",
    'llmtune generate run=latest --prompt "Once upon a time"',
)

_READ_ON = (("llmtune train --help", "a stage, command or group: what it reads and writes, its keys"),)
_PAGES = (("tutorial.md", "your own file in five minutes"), ("configuration.md", "every group, option and key"))
"""Pages of a checkout; the installed package has none."""


def help_page(topic: str | None = None) -> str:
    """A page of at most 100 columns.

    Args:
        topic: a stage, a command or a config group; None is the whole program.

    Raises:
        ConfigError: there is no such topic.
    """
    topics = {**STAGES, **COMMANDS}
    if topic is None:
        lines = _main_page()
    elif topic in topics:
        lines = _topic_page(topic, topics[topic])
    elif topic in groups():
        lines = [f"{topic}: {group_meaning(topic)}", "", *_options(topic), *_keys(described_keys(topic))]
    else:
        known = list(dict.fromkeys((*topics, *groups())))
        raise ConfigError(f"{topic}: no stage, command or group.{nearest(topic, known)} Known: {', '.join(known)}.")
    return "\n".join(map(_as_started, lines)).rstrip()


def _main_page() -> list[str]:
    lines = [*_HEAD.splitlines(), "", "stages (none named: all four; a stage brings the unfinished ones that it needs)"]
    lines += [f"  {name:<10} {topic.summary}" for name, topic in STAGES.items()]
    lines += ["", "commands", *(f"  {name:<10} {topic.summary}" for name, topic in COMMANDS.items())]
    lines += ["", "groups (GROUP=OPTION or +GROUP=OPTION; * applies where you name none)"]
    single = [group for group in groups() if len(group_options(group)) == 1 and group != "experiment"]
    for group in groups():
        lines += () if group in single else _group(group)
    lines += [f"  {'  '.join(f'{group}:' for group in single)}  one option each"]
    lines += ["", "flags (each stands for a key; they mix with KEY=VALUE)", *_flags(FLAGS)]
    lines += ["", "options", *_definitions(OPTIONS, 22)]
    lines += ["", "examples", *(f"  {example}" for example in _EXAMPLES)]
    pages = [(str(_docs() / name), meaning) for name, meaning in _PAGES if (_docs() / name).is_file()]
    places = [(_as_started(f"  {place}"), meaning) for place, meaning in (*_READ_ON, *pages)]
    width = max(len(place) for place, _ in places)
    return [*lines, "", "read on", *(f"{place:<{width}}  {meaning}" for place, meaning in places)]


def _docs() -> Path:
    """The folder of the pages, as one would type it from here."""
    docs = resource_dir("conf").parent / "docs"
    return docs.relative_to(Path.cwd()) if docs.is_relative_to(Path.cwd()) else docs


def _topic_page(name: str, topic: Topic) -> list[str]:
    lines = [f"llmtune {name}: {topic.summary}", "", *_wrapped(topic.text), ""]
    lines += [f"usage: llmtune {name} {topic.usage}", ""]
    lines += _wrapped(topic.reads, "reads   ", " " * 8) + _wrapped(topic.writes, "writes  ", " " * 8)
    for group in topic.groups:
        lines += ["", f"{group}: {group_meaning(group)}", *_options(group), *_keys(described_keys(group))]
    others = [key for name in topic.keys for key in described_keys(name.rpartition(".")[0]) if key.name == name]
    if others:
        lines += ["", "also" if topic.groups else "keys", *_keys(others)]
    if topic.options:
        lines += ["", "options", *_definitions(topic.options, 14)]
    flags = [flag for flag, key in FLAGS.items() if _belongs(key, topic)]
    if flags:
        lines += ["", "flags", *_flags(flags)]
    return [*lines, "", "examples", *(f"  {example}" for example in topic.examples)]


def _belongs(key: str, topic: Topic) -> bool:
    return key in topic.groups or key.rpartition(".")[0] in topic.groups or key in topic.keys


def _group(group: str) -> Iterator[str]:
    """A group's options for the main page, each with its summary; of the many models the names alone."""
    marked, head = _marked(group), f"  {group}:"
    if group == "model":
        listed = "  ".join([*marked.values(), "or a Hub id (with a slash) or a folder"])
        yield from _wrapped(listed, f"{head:<14}", " " * 14)
        return
    width = max(map(len, marked.values())) + 2
    for name, shown in marked.items():
        start = f"{head if name == next(iter(marked)) else '':<14}{shown:<{width}}"
        yield from _wrapped(option_summary(group, name), start, " " * len(start))


def _options(group: str) -> Iterator[str]:
    """A group's options for a page of its own, as one types them."""
    marked = _marked(group)
    width = max(map(len, marked.values())) + len(group) + 3
    for name, shown in marked.items() if len(marked) > 1 else ():
        start = f"  {f'{group}={shown}':<{width}}"
        yield from _wrapped(option_summary(group, name), start, " " * len(start))


def _marked(group: str) -> dict[str, str]:
    """Each option's name, with a star at the one that applies where none is named."""
    return {name: f"{name}*" if name == default_option(group) else name for name in group_options(group)}


def _keys(found: Iterable[Key]) -> Iterator[str]:
    """Each key with its default as one would type it, its type, and its meaning beneath."""
    for key in found:
        if key.names_shape:
            continue
        plain = not key.default.startswith("that of ") and " (" not in key.default
        typed = f"  {key.name}={key.default if plain else ''}"
        default = "" if plain else f"; by default {key.default}"
        shapes = f"  (only {', '.join(key.shapes)})" if set(shapes_to_choose(key.group)) - set(key.shapes) else ""
        yield from _wrapped(f"{key.type}{default}{shapes}", f"{typed:<44}", " " * 44)
        yield from _wrapped(key.meaning, " " * 6, " " * 6)


def _flags(flags: Iterable[str]) -> Iterator[str]:
    """Flags with their keys in two columns, read downwards."""
    cells = [f"{flag:<16}{FLAGS[flag]}" if len(flag) < 16 else f"{flag} {FLAGS[flag]}" for flag in flags]
    half = (len(cells) + 1) // 2
    width = max(map(len, cells[:half])) + 2
    for left, right in zip(cells[:half], [*cells[half:], ""], strict=False):
        yield f"  {left:<{width}}{right}".rstrip()


def _definitions(pairs: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    for name, meaning in pairs:
        yield from _wrapped(meaning, f"  {name:<{width}}", " " * (width + 2))


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    found = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return found or [first.rstrip()]


def _as_started(line: str) -> str:
    """The line with the command as it was typed: `llmtune`, or `python -m llmtune`."""
    if Path(sys.argv[0]).parts[-2:] != ("llmtune", "__main__.py"):
        return line
    for start in ("usage: llmtune ", "  llmtune "):
        if line.startswith(start) or line == start.rstrip():
            return line.replace("llmtune", "python -m llmtune", 1)
    return line
