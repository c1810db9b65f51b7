"""What a person typed, taken apart: stages or a command, Hydra's options, and overrides in Hydra's grammar."""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from llmtune.config.resources import group_options
from llmtune.config.schema import groups, keys, verbatim_keys
from llmtune.config.validate import nearest
from llmtune.errors import ConfigError
from llmtune.flags import FLAGS, as_override

STAGES = ("prepare", "train", "evaluate", "export")
COMMANDS = ("generate", "ui")
"""Commands that compose a run's config."""
PLAIN_COMMANDS = ("compare", "runs", "env")
"""Commands that read the record or the machine, and take arguments of their own."""
_WORDS = (*STAGES, *COMMANDS, *PLAIN_COMMANDS)

_SWITCHES = {"-m": "--multirun", "-h": "--help"}
_SWITCHES |= {flag: flag for flag in ("--multirun", "--help", "--hydra-help", "--version")}
_WITH_VALUE = {"-c": "--cfg", "-cd": "--config-dir", "-i": "--info", "-sc": "--shell-completion", "-p": "--package"}
_WITH_VALUE |= {"-cn": "--config-name"}
_WITH_VALUE |= {flag: flag for flag in ("--cfg", "--config-dir", "--config-name", "--info", "--package")}
_WITH_VALUE |= {"--shell-completion": "--shell-completion"}
_PASSED_ON = ("--hydra-help", "--info", "--shell-completion")
_COMPLETION = re.compile(r"(install|query|uninstall)=(bash|fish|zsh)")
_FOREIGN = {
    **dict.fromkeys(("-r", "--run", "--checkpoint", "--adapter-path", "--resume", "--resume-from-checkpoint"), "run="),
    **dict.fromkeys(("--model-name", "--model-name-or-path", "--model-id", "--base-model"), "--model "),
    **dict.fromkeys(("--data", "--dataset", "--dataset-path", "--train-file", "--training-data"), "--train-data "),
    **dict.fromkeys(("--eval-file", "--validation-file", "--val-data", "--test-data"), "--eval-data "),
    **dict.fromkeys(("--lora-rank", "--rank", "--r"), "--lora-r "),
    **dict.fromkeys(("--max-tokens", "--max-new-tokens"), "--max-length "),
    **dict.fromkeys(("--max-seq-len", "--max-sequence-length", "--cutoff-len"), "--max-seq-length "),
    "--num-train-epochs": "--epochs ",
    "--per-device-train-batch-size": "--batch-size ",
    "--lr": "--learning-rate ",
    "--output-dir": "runs_dir=",
    "--config": "--config-name ",
}
"""Options of other tools, each with the start of what is typed here."""
_TEXT_ALWAYS = "generate.prompt"
"""The one text that may be the word null."""
_LISTS_OF_TEXTS = ("data.add_tokens",)
"""Lists whose entries are taken as they are typed."""
_NEVER_EMPTY = ("run", "method.adapter")
"""Besides the groups."""
_OVERRIDE = re.compile(r"(?P<prefix>\+{0,2})(?P<key>[A-Za-z_][\w./@-]*)=(?P<value>.*)", re.DOTALL)


@dataclass
class Arguments:
    """The command line, understood.

    Attributes:
        stages: stages asked for; empty where none or a command was named.
        command: `generate` or `ui`, else None.
        options: Hydra's options in their long form, those with a value as two entries.
        words: stages, commands and overrides as typed, flags turned into overrides.
        overrides: overrides in Hydra's grammar.
        typed: the groups and keys that were typed, each with its value as typed; without a text taken back by null.
    """

    stages: list[str] = field(default_factory=list)
    command: str | None = None
    options: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    typed: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> str | None:
        """The run reference after `run=`; None where none was typed."""
        return self.typed.get("run")

    @property
    def multirun(self) -> bool:
        """Whether a sweep was asked for."""
        return "--multirun" in self.options

    def option(self, name: str) -> str | None:
        """The value of an option in its long form; None where it wasn't typed."""
        return self.options[self.options.index(name) + 1] if name in self.options else None

    @property
    def hydra_only(self) -> bool:
        """Whether Hydra alone answers (its own help, its information)."""
        return any(option in _PASSED_ON for option in self.options)


def parse(arguments: Sequence[str]) -> Arguments:
    """Take the command line apart; options and words may stand anywhere among the overrides.

    Raises:
        ConfigError: with every word, option or value that makes no sense.
    """
    found, problems = Arguments(), list[str]()
    multirun = any(argument in ("-m", "--multirun") for argument in arguments)
    waiting = deque(arguments)
    while waiting:
        argument = waiting.popleft()
        if argument.partition("=")[0] in FLAGS:
            _take_flag(argument, waiting, found, problems)
        elif argument.startswith("-"):
            _take_option(argument, waiting, found, problems)
        else:
            found.words.append(argument)
    for word in found.words:
        if "=" in word or word.startswith("~"):
            _take_override(word, multirun, found, problems)
        else:
            _take_word(word, found, problems)
    if found.command:
        problems += [f"{found.command}: can't stand beside the stage {stage}." for stage in found.stages]
    if problems:
        raise ConfigError(problems)
    found.overrides = [*_source_of_data(found.typed), *found.overrides]
    found.stages.sort(key=STAGES.index)
    return found


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether `--help` or `-h` is there, and not as the value of a flag."""
    return any(argument in ("--help", "-h") for argument in _without_values(arguments))


def first_bare_word(arguments: Sequence[str]) -> str | None:
    """The first word that is neither an option nor an override nor the value of an option, known or not."""
    words = (argument for argument in _without_values(arguments) if not argument.startswith("-"))
    return next((word for word in words if "=" not in word and not word.startswith("~")), None)


def _without_values(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments without those that an option, known or not, takes as its value."""
    waiting = deque(arguments)
    while waiting:
        argument = waiting.popleft()
        yield argument
        if not argument.startswith("-") or "=" in argument or argument in _SWITCHES or not waiting:
            continue
        is_value = argument in {*FLAGS, *_WITH_VALUE} or not (waiting[0].startswith("-") or waiting[0] in _WORDS)
        if is_value:
            waiting.popleft()


def quoted(value: str) -> str:
    """The value as a quoted string of Hydra's grammar that parses to exactly this text."""
    escaped = re.sub(r"(\\*)'", lambda match: match.group(1) * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda match: match.group(1) * 2, escaped)
    escaped = re.sub(r"(\\*)\$\{", lambda match: match.group(1) * 2 + r"\${", escaped)
    return f"'{escaped}'"


def _take_flag(argument: str, waiting: deque[str], found: Arguments, problems: list[str]) -> None:
    """Put the override that a flag stands for among the words."""
    flag, equals, value = argument.partition("=")
    if not equals and (not waiting or waiting[0] in {*FLAGS, *_SWITCHES, *_WITH_VALUE}):
        as_text = waiting and FLAGS[flag] in verbatim_keys()
        cure = f" To take {waiting[0]} as the text, type {flag}={waiting[0]}." if as_text else ""
        problems.append(f"{flag}: needs a value, {flag} VALUE (it stands for {FLAGS[flag]}=VALUE).{cure}")
        return
    found.words.append(as_override(flag, value if equals else waiting.popleft()))


def _take_option(argument: str, waiting: deque[str], found: Arguments, problems: list[str]) -> None:
    option, equals, value = argument.partition("=")
    if option in _SWITCHES and not equals:
        found.options.append(_SWITCHES[option])
    elif option in _WITH_VALUE:
        value = value if equals or not waiting else waiting.popleft()
        if not value:
            problems.append(f"{option}: needs a value.")
        elif _WITH_VALUE[option] == "--shell-completion" and not _COMPLETION.fullmatch(value):
            problems.append(f"{option} {value}: must be install=SHELL or uninstall=SHELL; SHELL: bash, fish, zsh.")
        found.options += [_WITH_VALUE[option], value]
    else:
        problems.append(f"{option}: there is no such option.{_nearest_option(option)}")
        if not equals and waiting and not (waiting[0].startswith("-") or "=" in waiting[0] or waiting[0] in _WORDS):
            waiting.popleft()  # what was meant as its value


def _nearest_option(option: str) -> str:
    """What other tools' option is here, or the key of that name; else the nearest option or flag."""
    if option in _FOREIGN:
        return f" Type {_FOREIGN[option]}VALUE."
    name = option.lstrip("-").replace("-", "_")
    key = next((key.name for key in keys() if name in (key.name, key.name.rpartition(".")[2])), None)
    known = [name for name in (*_SWITCHES, *_WITH_VALUE, *FLAGS) if name.startswith("--")]
    return f" Type {key}=VALUE." if key else nearest(option, known)


def _source_of_data(typed: Mapping[str, str]) -> list[str]:
    """A file or a Hub id of examples brings the group's option with it."""
    if "data" in typed or "run" in typed:
        return []
    return ["data=files"] if "data.path" in typed else ["data=hub"] if "data.id" in typed else []


def _take_word(word: str, found: Arguments, problems: list[str]) -> None:
    if word in STAGES:
        if word not in found.stages:
            found.stages.append(word)
    elif word in COMMANDS:
        if found.command not in (None, word):
            problems.append(f"{word}: one command at a time, {found.command} was named too.")
        found.command = word
    elif word in PLAIN_COMMANDS:
        problems.append(f"{word}: stands first, and takes arguments of its own; see {word} --help.")
    else:
        problems.append(f"{word}: no stage or command.{nearest(word, list(_WORDS))} Known: {', '.join(_WORDS)}.")


def _take_override(argument: str, multirun: bool, found: Arguments, problems: list[str]) -> None:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or match["key"].startswith("hydra"):
        found.overrides.append(argument)
        return
    key, value = match["key"], match["value"]
    problems += _of_a_choice(key, value, found.typed.get(key), multirun=multirun)
    found.typed[key] = value
    if key == "run":
        return
    if key == "model" and multirun and "," in value and "/" in value:
        problems.append(
            f"model={value}: a sweep takes named models; give each Hub id or folder a file conf/model/NAME.yaml here "
            "(name, source, id or path) and sweep the names."
        )
    elif key in groups():
        found.overrides += model_overrides(value, multirun=multirun) if key == "model" else [f"{key}={value}"]
    elif key in verbatim_keys():
        if value == "???":
            problems.append(f"{key}=???: this text can't be taken; Hydra reserves it for a missing value.")
        if value == "null" and key in _nullable():
            del found.typed[key]
        found.overrides.append(f"++{key}={_verbatim(key, value, multirun)}")
    else:
        found.overrides.append(f"++{key}={_quoted_parts(value) if key in _LISTS_OF_TEXTS else value}")


def _of_a_choice(key: str, value: str, before: str | None, *, multirun: bool) -> Iterator[str]:
    """What is wrong with the value of a group, or of a key that names a run: it is empty, or it differs from `before`.

    Args:
        key: the group or key.
        value: as typed.
        before: what was typed for it further left; None for nothing.
        multirun: whether commas part the values of a sweep.
    """
    if not value.strip() and key in (*_NEVER_EMPTY, *groups()):
        yield f"{key}=: is empty; name one, or leave it out (an unset variable of the shell is empty too)."
    elif key in (*groups(), "run") and before and before != value and not (multirun and "," in f"{before}{value}"):
        both = f"for both type {key}=[{before.strip('[]')},{value.strip('[]')}]"
        yield f"{key} is typed twice, {before} and {value}; {both if key == 'experiment' else 'leave one out'}."


def _quoted_parts(value: str) -> str:
    """A list such as `[<|im_start|>,<|im_end|>]` with each text quoted; one with quotes or brackets in it stays."""
    match = re.fullmatch(r"\[([^\[\]'\"]+)\]", value)
    return f"[{','.join(quoted(part.strip()) for part in match[1].split(','))}]" if match else value


def _verbatim(key: str, value: str, multirun: bool) -> str:
    """Under multirun `[a,b]` is two values, each taken as typed; else the whole value is one text, or null."""
    parts = [value]
    if multirun and value.startswith("[") and value.endswith("]"):
        parts = [part.strip() for part in value[1:-1].split(",")]
    return ",".join(part if part == "null" and key in _nullable() else quoted(part) for part in parts)


@lru_cache
def _nullable() -> frozenset[str]:
    """Keys whose value is text or null."""
    return frozenset(key.name for key in keys() if key.verbatim and key.type.endswith(" or null")) - {_TEXT_ALWAYS}


def model_overrides(value: str, *, multirun: bool = False) -> list[str]:
    """Overrides for `model=X`: a named config; a Hub id or a folder where X has a slash or names one that is here."""
    if value in group_options("model") or (multirun and "," in value):
        return [f"model={value}"]
    if Path(value).is_dir() or value.startswith(("/", "./", "../", "~")) or value.endswith("/"):
        folder = Path(value).expanduser()
        return [
            "model=folder",
            f"++model.path={quoted(str(folder))}",
            f"++model.name={quoted(short_name(folder.name))}",
        ]
    if "/" in value:
        return [
            "model=hub",
            f"++model.id={quoted(value)}",
            f"++model.name={quoted(short_name(value.rpartition('/')[2]))}",
        ]
    return [f"model={value}"]


def short_name(name: str) -> str:
    """A name that is safe in a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"
