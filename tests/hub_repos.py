"""What the stand-in of the Hub holds: accounts, repositories, faults that it was told to make."""

import hashlib
from dataclasses import dataclass, field

LFS_ENDINGS = (".safetensors", ".parquet")


@dataclass
class Account:
    """Who a token belongs to."""

    name: str
    role: str = "write"
    organisations: tuple[str, ...] = ()
    has_access: tuple[str, ...] = ()
    """Gated repositories that may be read."""


@dataclass
class Repo:
    """A repository: its commits, oldest first, and the names that lead to them."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "files", branch: str = "main") -> str:
        """A new commit that adds files to the branch; its 40 digits."""
        everything = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        sha = hashlib.sha1(f"{self.id} {len(self.commits)} {sorted(everything)}".encode()).hexdigest()
        self.commits[sha] = everything
        self.refs[branch] = sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """How the next requests whose method and path fit are answered."""

    part: str
    how: str | int
    """A status, `hang`, `drop` (half of the file, then nothing), `corrupt` (one byte differs)."""
    times: int
    headers: dict[str, str] = field(default_factory=dict)


def git_oid(content: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def described(path: str, content: bytes) -> dict:
    """A file in a listing."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(LFS_ENDINGS):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
