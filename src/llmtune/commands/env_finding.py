"""What a check of the environment finds: facts to show, and what is wrong with its cure."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Where a run would read and write."""

    runs_dir: Path = Path("runs")
    """`runs_dir`."""
    cache_dir: Path = Path()
    """Folder for prepared data and converted weights."""
    tracking_uri: str | None = None
    """`tracking.uri` as typed; None where it wasn't."""


@dataclass
class Finding:
    """What one check found."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    """Names and what is there."""
    problems: list[str] = field(default_factory=list)
    """A sentence each: what is wrong; what to do."""
