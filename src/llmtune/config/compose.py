"""Hydra's groups and overrides to checked configs, one or a sweep's."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from llmtune.config.guard import check_holds_no_secret, guarded
from llmtune.config.resources import group_options, resource_dir
from llmtune.config.run import RunConfig
from llmtune.config.sweep_axes import left_out, take_out_lacking, without
from llmtune.config.validate import nearest, to_run_config, unreadable
from llmtune.errors import ConfigError

RunJobs = Callable[[list[RunConfig], list[list[str]]], list[int]]
_OPTION = re.compile(r"(In '(?P<file>[^']+)': )?Could not (find|load) '(?P<group>[\w/]+)/(?P<name>[^'/]+)'")
"""Hydra's words on an option that isn't there, and the file whose defaults name it."""
_HYDRAS_OWN = ("hydra", "defaults")
_ON_ITS_HELP_PAGE = (
    *("hydra/launcher=process", "hydra/hydra_logging=none", "hydra/job_logging=none"),
    *("hydra.output_subdir=null", "hydra.run.dir=."),
)
"""What `conf/config.yaml` sets of Hydra's section, which Hydra leaves out where it shows its own help."""


@dataclass
class Composition:
    """What to compose: Hydra's arguments, the config to start from, and what is put in at the end.

    Attributes:
        hydra_options: Hydra's own options, such as `--multirun`.
        overrides: overrides in Hydra's grammar.
        saved: a run's config that takes the place of the defaults; groups among the overrides replace its sections.
        finish: puts into each typed config what is known from elsewhere, before combinations are checked.
        begun: whether `saved` is of a run that the work goes on from, see `check_combinations`.
    """

    hydra_options: Sequence[str] = ()
    overrides: Sequence[str] = ()
    saved: Mapping[str, Any] | None = None
    finish: Callable[[RunConfig], RunConfig] | None = None
    begun: bool = False


@dataclass
class _Capture:
    """Hydra's task function: keeps the composed config, or passes a sweep's jobs on."""

    run_jobs_with: RunJobs | None
    composition: Composition
    composed: DictConfig | None = None
    statuses: list[int] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> None:
        self.composed = config

    def run_jobs(self, configs: list[DictConfig], overrides: list[list[str]]) -> list[int]:
        assert self.run_jobs_with is not None
        taken = take_out_lacking(configs)
        overrides = [without(typed, keys) for typed, keys in zip(overrides, taken, strict=True)]
        jobs_with: dict[str, list[str]] = {}
        checked: list[RunConfig] = []
        for config, name in zip(configs, _what_differs(overrides), strict=True):
            try:
                checked.append(_checked(config, self.composition))
            except ConfigError as error:
                for problem in error.problems:
                    jobs_with.setdefault(problem, []).append(name)
        if jobs_with:
            raise ConfigError([_of_jobs(problem, names, len(configs)) for problem, names in jobs_with.items()])
        for sentence in left_out(configs, taken):
            print(f"llmtune: {sentence}", file=sys.stderr)
        statuses = self.run_jobs_with(checked, overrides)
        self.statuses += statuses
        return statuses


def _what_differs(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Each job's overrides that not all jobs have."""
    common = set.intersection(*map(set, overrides)) if overrides else set()
    return [" ".join(override.lstrip("+") for override in job if override not in common) for job in overrides]


def _of_jobs(problem: str, names: Sequence[str], num_jobs: int) -> str:
    """A problem with the jobs that have it, where it isn't all of them."""
    if len(names) == num_jobs:
        return problem
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{problem} (job {names[0]}{more})"


def compose(composition: Composition, run_jobs: RunJobs | None = None) -> RunConfig | list[int]:
    """Compose and check.

    Args:
        composition: what to compose.
        run_jobs: called with the checked configs of a sweep and each one's overrides; returns their exit statuses.

    Returns:
        The config; for a sweep the jobs' exit statuses.

    Raises:
        ConfigError: unknown options or keys, wrong values, impossible combinations.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from llmtune.config.search_path import register

    register()
    name = "config" if composition.saved is None else _store_saved(composition.saved, composition.overrides)
    capture = _Capture(run_jobs, composition)
    arguments, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    scratch = tempfile.TemporaryDirectory()
    sweep_dir = f"hydra.sweep.dir='{scratch.name}'"
    fixed = _ON_ITS_HELP_PAGE if "--hydra-help" in composition.hydra_options else ()
    sys.argv = ["llmtune", *composition.hydra_options, *composition.overrides, *fixed, sweep_dir]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main = hydra.main(config_path=str(resource_dir("conf")), config_name=name, version_base="1.3")
        with guarded():
            main(capture)()
        return capture.statuses if capture.composed is None else _checked(capture.composed, composition)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(_translated(error)) from None
    finally:
        sys.argv = arguments
        scratch.cleanup()
        GlobalHydra.instance().clear()
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _checked(composed: DictConfig, composition: Composition) -> RunConfig:
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    content = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    check_holds_no_secret(content)
    own_content = {str(key): value for key, value in content.items()}
    return to_run_config(own_content, composition.finish, begun=composition.begun)


def _store_saved(saved: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Register a run's config as Hydra's primary one and return its name.

    Raises:
        ConfigError: it holds what only Hydra's own files may.
    """
    from hydra.core.config_store import ConfigStore

    from llmtune.config.schema import groups

    foreign = [f"{key}: a saved config can't hold it; take it out of the file." for key in _HYDRAS_OWN if key in saved]
    if foreign:
        raise ConfigError(foreign)
    chosen = {override.partition("=")[0] for override in overrides}
    kept = {key: _escaped(value) for key, value in saved.items() if key not in chosen}
    options: list[Any] = ["_self_", *({group: None} for group in groups())]
    launcher = [{"override hydra/launcher": "process"}]
    launcher += [{f"override hydra/{name}_logging": "none"} for name in ("hydra", "job")]
    base = OmegaConf.load(Path(resource_dir("conf")) / "config.yaml")
    node = {"defaults": options + launcher, "hydra": OmegaConf.to_container(base.hydra), **kept}
    ConfigStore.instance().store(name="saved_run", node=OmegaConf.create(node), provider="llmtune")
    return "saved_run"


def _escaped(value: Any) -> Any:
    """The value with `${` made plain text for OmegaConf."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match.group(1) * 2 + r"\${", value)
    return value


def _translated(error: Exception) -> str:
    """Hydra's message as one sentence with the nearest known name."""
    text = str(error).strip()
    if isinstance(error, YAMLError | UnicodeDecodeError):
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        return unreadable(mark.name if mark else "a file of the config", error)
    option = _OPTION.search(text)
    if option is not None:
        group, name, file = option["group"], option["name"], option["file"] or ""
        known = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE) or group_options(group)
        where = f"{file.replace('experiment/', 'experiments/')}.yaml: " if "/" in file else ""
        return f"{where}{group}={name}: there is no such option.{nearest(name, known)} Known: {', '.join(known)}."
    if "Cannot merge DictConfig with ListConfig" in text:
        named = re.search(r"In '([^']+)'", text)
        where = f"{named[1].replace('experiment/', 'experiments/')}.yaml: " if named and "/" in named[1] else ""
        return (
            f"{where}a mapping stands where a list belongs; data.sources is a list, whose entries begin with a dash: "
            "`- {path: a.jsonl, weight: 2}`."
        )
    ambiguous = re.search(r"Ambiguous value for argument '\+{0,2}(?P<argument>[^']+)'", text)
    if ambiguous is not None:
        return f"{ambiguous['argument']}: several values are a sweep; add -m (or quote the value if it is one text)."
    if (
        "LexerNoViableAlt" in text
        or "no viable alternative" in text
        or "mismatched input" in text
        or "token recog" in text
    ):
        return f"{text.splitlines()[0].rstrip('.')}. Quote a value that holds special characters: KEY=\"'value'\"."
    return text
