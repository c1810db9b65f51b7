"""Completes a command line: stages, commands, groups, options, keys and flags, for the shells that Hydra knows.

Hydra's script, which `--shell-completion install=bash` prints, asks `llmtune -sc query=bash` for words that fit. Hydra
would stop at a stage or a flag, which it doesn't know, so the answer is given here.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from llmtune.arguments import COMMANDS, PLAIN_COMMANDS, STAGES
from llmtune.config.export import EXPORT_FORMATS
from llmtune.config.resources import group_options
from llmtune.config.schema import described_keys, groups, keys, verbatim_keys
from llmtune.flags import FLAGS
from llmtune.help_topics import COMMANDS as COMMAND_TOPICS

_OPTIONS = ("--multirun", "--cfg", "--config-dir", "--config-name", "--help", "--version", "--shell-completion")
_SET_BY_RUN = ("source_run", "source_weights")
"""Keys that `run=` sets and nobody types."""
_QUERIES = ("query=bash", "query=zsh", "query=fish")


def answer(typed: Sequence[str], environment: Mapping[str, str] = os.environ) -> str | None:
    """What to print where a shell asks for words; None where it doesn't ask.

    Args:
        typed: the arguments after the program's name.
        environment: holds the line so far as `COMP_LINE`, and in bash the cursor's place in it as `COMP_POINT`.
    """
    if len(typed) != 2 or typed[0] not in ("-sc", "--shell-completion") or typed[1] not in _QUERIES:
        return None
    line = environment.get("COMP_LINE", "")
    point = environment.get("COMP_POINT", "")
    found = suggestions(line[: int(point)] if point.isdecimal() else line)
    return ("\n" if typed[1] == "query=fish" else " ").join(found)


def suggestions(line: str) -> list[str]:
    """Words that may stand at the end of a line.

    Args:
        line: the line so far, the program's name included; its last word is the one to complete.
    """
    _, *words = [*line.split(), *([""] if line[-1:].isspace() or not line else [])] or [""]
    *before, word = words or [""]
    last = before[-1] if before else ""
    if last in FLAGS or last == "--cfg":
        values = ["job"] if last == "--cfg" else _values(FLAGS[last], word)
        return sorted(value for value in values if value.startswith(word))
    command = next((name for name in before if name in (*COMMANDS, *PLAIN_COMMANDS)), None)
    if word.startswith("-"):
        return sorted(option for option in _options(command) if option.startswith(word))
    plus = word[: len(word) - len(word.lstrip("+"))]
    key, equals, value = word.lstrip("+").partition("=")
    if equals:
        return [f"{plus}{key}={found}" for found in sorted(_values(key, value)) if found.startswith(value)]
    found = [f"{plus}{name}" for name in _names(key, before)] + ([] if plus else list(_first_words(before, command)))
    return sorted(name for name in set(found) if name.startswith(word))


def _options(command: str | None) -> Iterator[str]:
    if command in PLAIN_COMMANDS:
        yield from (*(name.split()[0] for name, _ in COMMAND_TOPICS[command].options), "--help")
    else:
        yield from (*_OPTIONS, *FLAGS)


def _first_words(before: Sequence[str], command: str | None) -> Iterator[str]:
    """Stages that weren't named yet, and commands where neither was."""
    if command is None:
        yield from (stage for stage in STAGES if stage not in before)
        if not any(stage in before for stage in STAGES):
            yield from (*COMMANDS, *PLAIN_COMMANDS)


def _names(word: str, before: Sequence[str]) -> Iterator[str]:
    """Groups, sections and keys; the keys of a section once its name stands."""
    if "." in word:
        chosen = _chosen(before)
        for key in described_keys(word.partition(".")[0]):
            if not key.names_shape and (key.group not in chosen or not key.shapes or chosen[key.group] in key.shapes):
                yield f"{key.name}="
        return
    for group in groups():
        if group == "experiment" or len(group_options(group)) > 1:
            yield f"{group}="
        if group != "experiment":
            yield f"{group}."
    yield from (f"{key.name}=" for key in described_keys("") if key.name not in _SET_BY_RUN)
    yield "run="


def _chosen(before: Sequence[str]) -> dict[str, str]:
    """Groups with the option that was typed for each, as `method=full` or `--method full`."""
    typed = [*before, *(f"{FLAGS[flag]}={value}" for flag, value in pairwise(before) if flag in FLAGS)]
    pairs = (word.lstrip("+").partition("=") for word in typed)
    return {key: value for key, equals, value in pairs if equals and key in groups() and "," not in value}


def _values(key: str, value: str) -> Iterator[str]:
    """What may stand after `KEY=`, or after a flag of that key."""
    head, comma, _ = value.rpartition(",")
    if key in groups():
        yield from (f"{head}{comma}{option}" for option in group_options(key))
        if key == "model":
            yield from _paths(value, folders_only=True)
    elif key == "run":
        yield "latest"
        yield from _paths(value, folders_only=True)
        yield from (str(path) for path in sorted(Path("runs").glob("*")) if (path / "config.yaml").is_file())
    elif key == "export.formats":
        yield from (EXPORT_FORMATS if not value.startswith("[") else (f"[{name}]" for name in EXPORT_FORMATS))
    else:
        found = next((known for known in keys() if known.name == key), None)
        if found is not None:
            yield from found.choices
        if key in verbatim_keys():
            yield from _paths(value)


def _paths(start: str, folders_only: bool = False) -> Iterator[str]:
    """Files and folders that begin as typed; names with spaces would come apart in the shell and are left out."""
    folder, _, name = start.rpartition("/")
    shown = f"{folder}/" if "/" in start else ""
    place = Path(shown or ".").expanduser()
    for path in place.iterdir() if place.is_dir() else ():
        if path.name.startswith(name) and not path.name.startswith(".") and " " not in path.name:
            if path.is_dir():
                yield f"{shown}{path.name}/"
            elif not folders_only:
                yield f"{shown}{path.name}"
