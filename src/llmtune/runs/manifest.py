"""The manifest: what a run's stages read, chose and wrote."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune.errors import RunError

FORMAT_VERSION = 1


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader finds the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Manifest:
    """A run's `manifest.json`: sections by name, stages with status and results among them.

    Args:
        path: the file; it need not exist yet.

    Raises:
        RunError: the file is damaged, or of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = {"format_version": FORMAT_VERSION, "stages": {}}
        if path.exists():
            try:
                self._content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RunError(f"{path} is damaged ({error}); the run can't be read from it") from error
            if self._content["format_version"] > FORMAT_VERSION:
                raise RunError(
                    f"{path} has format version {self._content['format_version']}, this llmtune reads up to "
                    f"{FORMAT_VERSION}; use the llmtune that wrote it, or a newer one"
                )

    def section(self, name: str) -> dict[str, Any]:
        """A section's content; empty where it was never recorded."""
        return self._content.get(name, {})

    def record(self, name: str, content: Mapping[str, Any]) -> None:
        """Set entries of a section and save."""
        self._content[name] = {**self.section(name), **content}
        write_json(self._path, self._content)

    def stage(self, name: str) -> dict[str, Any]:
        """A stage's results; empty unless the stage finished."""
        return self._content["stages"].get(name, {})

    def finish_stage(self, name: str, results: Mapping[str, Any]) -> None:
        """Mark a stage as finished with its results (plain JSON values) and save."""
        self._content["stages"][name] = dict(results)
        write_json(self._path, self._content)
