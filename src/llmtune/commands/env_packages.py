"""Which packages are there, and whether they are ones that llmtune works with."""

import platform
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from llmtune.commands.env_finding import Finding, Places
from llmtune.config.resources import resource_dir

SHOWN = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "mlflow", "hydra-core")


def check_packages(places: Places) -> Finding:
    """Versions of llmtune, Python and what the numbers depend on; what is missing or out of range."""
    finding = Finding([("llmtune", own_version()), ("Python", f"{platform.python_version()}, {platform.platform()}")])
    finding.facts += [(name, installed(name) or "not installed") for name in SHOWN]
    for requirement in map(Requirement, declared()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed(requirement.name)
        cure = f'pip install "{requirement.name}{requirement.specifier}"'
        if found is None:
            finding.problems.append(f"{requirement.name} isn't installed; run: {cure}")
        elif not requirement.specifier.contains(found, prereleases=True):
            finding.problems.append(
                f"{requirement.name} {found} is not one that llmtune works with ({requirement.specifier}); run: {cure}"
            )
    return finding


def installed(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def declared() -> Sequence[str]:
    """What llmtune says that it needs: as installed, else as the checkout's pyproject.toml says."""
    try:
        return requires("llmtune") or []
    except PackageNotFoundError:
        return _project()["dependencies"]


def own_version() -> str:
    """The version of llmtune."""
    return installed("llmtune") or f"{_project()['version']} (a checkout that isn't installed)"


def _project() -> dict:
    file = resource_dir("conf").parent / "pyproject.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["project"]
