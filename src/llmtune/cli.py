"""The command line: what is typed is answered, or done, and its errors are told."""

import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

_INTERRUPTED = 130
_NEW_OBJECTS = 100_000
"""How many come up before Python looks for garbage among them. The modules that a run imports make a million objects,
which stay: looked at after every 700, Python's own setting, they take a fifth of the time until the first step."""


def main() -> None:
    """Run the command that `sys.argv` holds and exit with its status."""
    gc.set_threshold(_NEW_OBJECTS)
    try:
        _run_and_exit()
    except KeyboardInterrupt:  # while modules were imported
        print("llmtune: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _run_and_exit() -> NoReturn:
    from llmtune import process_group, signals

    try:
        status = run(sys.argv[1:])
    except SystemExit as ended:
        if not (signals.asked_twice() and isinstance(ended.code, int)):
            raise
        status = ended.code
    process_group.end(status)


def run(typed: Sequence[str]) -> int:
    """Do what was typed.

    Args:
        typed: the arguments after the program's name.

    Returns:
        The exit status: 0 only if everything asked for was done, 2 for the user's mistake, 130 when interrupted.
    """
    from llmtune.errors import Interrupted, as_llmtune_error, report, report_bug

    try:
        return _answer(list(typed))
    except Exception as error:
        told = as_llmtune_error(error)
        return report_bug() if told is None else report(told)
    except KeyboardInterrupt:
        return report(Interrupted("interrupted"))


def _answer(typed: list[str]) -> int:
    from importlib.metadata import version

    from llmtune.arguments import PLAIN_COMMANDS, asks_for_help, first_bare_word, parse
    from llmtune.completion import answer

    words = answer(typed)
    if words is not None:
        print(words)
        return 0
    if asks_for_help(typed):
        from llmtune.help_page import help_page

        print(help_page(first_bare_word(typed)))
        return 0
    if typed and typed[0] in PLAIN_COMMANDS:
        return _plain_command(typed[0], typed[1:])
    arguments = parse(typed)
    if "--version" in arguments.options:
        print(f"llmtune {version('llmtune')}")
        return 0
    from llmtune.session import perform

    return perform(arguments).status


def _plain_command(command: str, arguments: list[str]) -> int:
    from llmtune.commands import compare, env, runs

    commands = {"compare": compare, "runs": runs, "env": env}
    return commands[command].run(arguments)
