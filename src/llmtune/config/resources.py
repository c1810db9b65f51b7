"""Where the config files are: in the checkout, or in the installed package."""

from functools import lru_cache
from pathlib import Path
from typing import Any


def resource_dir(name: str) -> Path:
    """The folder `conf` or `experiments`: the checkout's where this is one, else the package's copy."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return package / name


def group_options(group: str) -> list[str]:
    """Names of a config group's options, the experiments' among them, the working folder's included."""
    return sorted({file.stem for folder in (_own(group), _ours(group)) for file in folder.glob("*.yaml")})


def option_file(group: str, option: str) -> Path | None:
    """An option's file, the working folder's first, as Hydra takes it; None where there is none."""
    files = (folder / f"{option}.yaml" for folder in (_own(group), _ours(group)))
    return next((file for file in files if file.is_file()), None)


def option_summary(group: str, option: str) -> str:
    """The first comment line of an option's file: what it is."""
    file = option_file(group, option)
    return _first_comment(file) if file else ""


def project_options(group: str) -> list[str]:
    """Names of a config group's options, without those of the working folder."""
    return sorted(file.stem for file in _ours(group).glob("*.yaml"))


def project_summary(group: str, option: str) -> str:
    """The first comment line of an option's file of the project, whatever the working folder holds."""
    return _first_comment(_ours(group) / f"{option}.yaml")


@lru_cache
def option_content(group: str, option: str) -> dict[str, Any]:
    """What an option's file of the project says, without interpolation; empty where there is no such file."""
    import yaml
    from omegaconf._utils import get_yaml_loader

    file = resource_dir("conf") / group / f"{option}.yaml"
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=get_yaml_loader()) if file.is_file() else None
    return content if isinstance(content, dict) else {}


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    comments = [line for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0].removeprefix("#").strip() if comments else ""


def _own(group: str) -> Path:
    return Path("experiments") if group == "experiment" else Path("conf") / group


def _ours(group: str) -> Path:
    return resource_dir("experiments") if group == "experiment" else resource_dir("conf") / group
