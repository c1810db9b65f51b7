"""A hook of MkDocs: lists the files of docs/decisions in the navigation, so that a new one needs no entry."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    folder = Path(config["docs_dir"])
    for entry in config["nav"]:
        if "Decisions" in entry:
            files = sorted(folder.glob("decisions/*.md"))
            entry["Decisions"] += [file.relative_to(folder).as_posix() for file in files]
    return config
