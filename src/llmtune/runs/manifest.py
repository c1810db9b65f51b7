"""The manifest: what a run's stages read, chose and wrote."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtune.errors import RunError

FORMAT_VERSION = 1
CHECK_FILE = "parity.json"
"""The figures of an export's check, in its folder: only a finished export has it."""
_CHANGES = "changed_on_resume"
_SEAL = "own_sha256"


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader finds the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(as_json(content))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def as_json(content: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with its own sha256 in it, by which `read_sealed` knows it again."""
    write_json(path, {**content, _SEAL: _sha256(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        content = None
    if not isinstance(content, dict) or content.pop(_SEAL, None) != _sha256(content):
        raise ValueError(f"{path.name} isn't what was written")
    return content


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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

    def record(self, name: str, content: Mapping[str, Any], *, write: bool = True) -> None:
        """Set entries of a section, and save them but for `write=False`."""
        self._content[name] = {**self.section(name), **content}
        if write:
            write_json(self._path, self._content)

    def stage(self, name: str) -> dict[str, Any]:
        """A stage's results; empty unless the stage finished."""
        return self._content["stages"].get(name, {})

    def allow_changes(self, changes: Mapping[str, tuple[Any, Any]], stages: Sequence[str]) -> None:
        """Record that training goes on with another config, and take what it makes anew out of the finished stages.

        Args:
            changes: each key's value before and after.
            stages: those stages; their results are kept under `earlier_stages`.
        """
        known = self.section(_CHANGES)
        for key, (before, after) in changes.items():
            known[key] = [*known.get(key, []), {"before": before, "after": after, "step": None}]
        self._content[_CHANGES] = known
        done = {name: self._content["stages"].pop(name) for name in stages if name in self._content["stages"]}
        if done:
            self._content["earlier_stages"] = [*self._content.get("earlier_stages", []), done]
        write_json(self._path, self._content)

    def settle_changes(self, step: int, config: Mapping[str, Any], *, write: bool) -> None:
        """Give the changes that training now begins with their step.

        Args:
            step: steps done before them.
            config: the run's flat config; a change that didn't come into it, or was taken back, is forgotten.
            write: whether to save the file too.
        """
        settled = self.changes
        for key, entries in self.section(_CHANGES).items():
            new = [entry for entry in entries if entry["step"] is None]
            if new and new[0]["before"] != new[-1]["after"] == config.get(key):
                entry = {"before": new[0]["before"], "after": new[-1]["after"], "step": step}
                settled[key] = [*settled.get(key, []), entry]
        if settled != self.section(_CHANGES):
            self._content[_CHANGES] = settled
            if write:
                write_json(self._path, self._content)

    @property
    def changes(self) -> dict[str, list[dict[str, Any]]]:
        """What `resume_allow` let change: each key's values before and after, with the step after which."""
        known = {
            key: [entry for entry in entries if entry["step"] is not None]
            for key, entries in self.section(_CHANGES).items()
        }
        return {key: entries for key, entries in known.items() if entries}

    def finish_stage(self, name: str, results: Mapping[str, Any]) -> None:
        """Mark a stage as finished with its results (plain JSON values) and save."""
        self._content["stages"][name] = dict(results)
        write_json(self._path, self._content)


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def is_finished_export(result: Mapping[str, Any]) -> bool:
    """Whether a format's recorded result is where it was written, whole and with its check."""
    folder = Path(result["folder"])
    return (folder / CHECK_FILE).exists() and folder_bytes(folder) >= result["num_bytes"]
