"""Where the config files are: in the checkout, or in the installed package."""

from pathlib import Path


def resource_dir(name: str) -> Path:
    """The folder `conf` or `experiments`: the checkout's where this is one, else the package's copy."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return package / name


def group_options(group: str) -> list[str]:
    """Names of a config group's options, the experiments' among them, the working folder's included."""
    folders = [resource_dir("experiments"), Path("experiments")]
    if group != "experiment":
        folders = [resource_dir("conf") / group, Path("conf") / group]
    return sorted({file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")})


def option_summary(group: str, option: str) -> str:
    """The first comment line of an option's file: what it is."""
    folder = resource_dir("experiments") if group == "experiment" else resource_dir("conf") / group
    file = folder / f"{option}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    comments = [line for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0].removeprefix("#").strip() if comments else ""
