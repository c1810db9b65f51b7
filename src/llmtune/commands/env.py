"""`env`: versions, device, precision, disk, store and Hub; what is wrong, each with its cure."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.text import Text

from llmtune.commands.env_devices import check_4bit, check_devices, check_precision
from llmtune.commands.env_disk import check_disk, check_embedded_model
from llmtune.commands.env_finding import Finding, Places
from llmtune.commands.env_packages import check_packages
from llmtune.commands.env_services import check_hub, check_store
from llmtune.config.paths import cache_folder
from llmtune.config.validate import nearest
from llmtune.errors import ConfigError
from llmtune.logs import show, silence_libraries

CHECKS: dict[str, tuple[Callable[[Places], Finding], ...]] = {
    "packages": (check_packages,),
    "computing": (check_devices, check_precision, check_4bit),
    "places": (check_disk, check_embedded_model),
    "services": (check_store, check_hub),
}
"""Title to the checks beneath it."""
_KEYS = ("runs_dir", "cache_dir", "tracking.uri")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"env: {message}")


def run(arguments: Sequence[str]) -> int:
    """Show what is here and what is wrong; the exit status: 0 where nothing is.

    Args:
        arguments: what was typed after `env`.

    Raises:
        ConfigError: what was typed makes no sense.
    """
    places, as_json = parse_places(arguments)
    silence_libraries()
    if sys.stderr.isatty():
        print("looking (some seconds) …", file=sys.stderr)
    found = {title: [isolated(check, places) for check in checks] for title, checks in CHECKS.items()}
    problems = list(dict.fromkeys(line for findings in found.values() for each in findings for line in each.problems))
    if as_json:
        facts = {title: dict(fact for each in findings for fact in each.facts) for title, findings in found.items()}
        print(json.dumps({**facts, "problems": problems}, indent=2, ensure_ascii=False))
    else:
        show(_page(found, problems))
    return 1 if problems else 0


def parse_places(arguments: Sequence[str]) -> tuple[Places, bool]:
    """Where to look, and whether the answer is JSON.

    Raises:
        ConfigError: with every word that makes no sense.
    """
    parser = _Parser(prog="llmtune env", add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    flags, rest = parser.parse_known_args(arguments)
    typed, problems = dict[str, str](), []
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            hint = nearest(key, [*_KEYS, "--json"])
            problems.append(f"{word}: env takes {', '.join(f'{known}=…' for known in _KEYS)} and --json.{hint}")
        typed[key] = value
    if problems:
        raise ConfigError(problems)
    runs_dir = Path(typed.get("runs_dir", "runs")).expanduser()
    return Places(runs_dir, cache_folder(typed.get("cache_dir")), typed.get("tracking.uri")), flags.json


def isolated(check: Callable[[Places], Finding], places: Places) -> Finding:
    """What the check finds; one that raises becomes a sentence."""
    try:
        return check(places)
    except (Exception, SystemExit) as error:  # the environment may be broken in any way
        name = check.__name__.removeprefix("check_").replace("_", " ")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        return Finding(problems=[f"{name}: could not be looked at ({type(error).__name__}: {reason}); mend that first"])


def _page(found: dict[str, list[Finding]], problems: Sequence[str]) -> Text:
    text = Text()
    width = max((len(name) for each in found.values() for finding in each for name, _ in finding.facts), default=0)
    for title, findings in found.items():
        text.append(f"{title}\n", style="bold")
        for name, value in (fact for finding in findings for fact in finding.facts):
            text.append(f"  {name:<{width}}  ", style="dim").append(f"{value}\n", style="default")
        text.append("\n")
    if not problems:
        return text.append("nothing is wrong", style="bold green")
    text.append("what is wrong", style="bold red")
    for number, problem in enumerate(problems, 1):
        what, _, cure = problem.rpartition("; ")
        text.append(f"\n  {number}. {what}", style="red").append(f"\n     {cure}" if what else cure)
    return text
