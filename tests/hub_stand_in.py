"""A stand-in of the Hub's HTTP interface on this machine, for the real client; it can be told to misbehave."""

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LFS_ENDINGS = (".safetensors", ".parquet")
HANG_SECONDS = 30.0


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


class HubStandIn:
    """The server. `address` is what `HF_ENDPOINT` is set to."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.accounts: dict[str, Account] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.waits: list[float] = []
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening: further connections are refused."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add(self, kind: str, repo_id: str, files: dict[str, bytes] | Path, **how: bool) -> Repo:
        """A repository (`models` or `datasets`) with a first commit of files."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, **how)
        repo.commit(files)
        return repo

    def account(self, token: str, name: str, **how: Any) -> Account:
        """Someone whom the token names."""
        self.accounts[token] = Account(name, **how)
        return self.accounts[token]

    def fail(self, part: str, how: str | int, times: int = 1000, **headers: str) -> None:
        """Answer requests such as `GET /api/models/a/b` that contain `part` wrongly, so many times."""
        self.faults.append(Fault(part, how, times, {name.replace("_", "-"): value for name, value in headers.items()}))

    def fault(self, line: str) -> Fault | None:
        """The fault that is due for a request; it is counted."""
        for fault in self.faults:
            if fault.part in line and fault.times > 0:
                fault.times -= 1
                return fault
        return None


def git_oid(content: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def described(path: str, content: bytes) -> dict:
    """A file in a listing."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(LFS_ENDINGS):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, *about: Any) -> None:
        """A connection that broke off is meant."""


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunks()
        url = urlsplit(self.path)
        line = f"{self.command} {unquote(url.path)}"
        self.hub.requests.append(line)
        self.wrong = self.hub.fault(line)
        if self.wrong is not None and self.wrong.how == "hang":
            self.hub.closing.wait(HANG_SECONDS)
            self.close_connection = True
            return
        try:
            if self.wrong is not None and isinstance(self.wrong.how, int):
                raise _Refused(self.wrong.how)
            self._route([unquote(part) for part in url.path.strip("/").split("/")], parse_qs(url.query))
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            headers |= self.wrong.headers if self.wrong else {}
            self._json({"error": refused.message}, refused.status, headers)

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _route(self, parts: list[str], query: dict[str, list[str]]) -> None:
        match parts:
            case ["api", ("models" | "datasets") as kind, owner, name, *rest]:
                self._api(self._repo(kind, f"{owner}/{name}"), rest, query)
            case ["api", *rest]:
                self._service("/".join(rest))
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._file(self._repo("datasets", f"{owner}/{name}", content=True), revision, "/".join(path))
            case [owner, name, "resolve", revision, *path]:
                self._file(self._repo("models", f"{owner}/{name}", content=True), revision, "/".join(path))
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self._lfs_batch(self._repo("models", f"{owner}/{name.removesuffix('.git')}", write=True))
            case ["lfs", *rest]:
                self._lfs(rest)
            case _:
                raise _Refused(404)

    def _service(self, name: str) -> None:
        if name == "whoami-v2":
            self._whoami()
        elif name == "repos/create":
            self._create()
        elif name == "validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            raise _Refused(404)

    def _lfs(self, rest: list[str]) -> None:
        if rest == ["verify"]:
            asked = json.loads(self.body)
            if len(self.hub.stored.get(asked["oid"], b"")) != asked["size"]:
                raise _Refused(404)
        else:
            self.hub.stored[rest[0]] = self.body
        self._json({})

    @property
    def account(self) -> Account | None:
        """Who asks; None without a token."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.accounts:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return self.hub.accounts[token]

    def _owns(self, repo_id: str) -> bool:
        account, owner = self.account, repo_id.partition("/")[0]
        return account is not None and owner in (account.name, *account.organisations)

    def _repo(self, kind: str, repo_id: str, *, write: bool = False, content: bool = False) -> Repo:
        account, repo = self.account, self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self._owns(repo_id)):
            raise _Refused(404 if account else 401, "RepoNotFound", "Repository not found")
        if (
            content
            and repo.gated
            and not self._owns(repo_id)
            and repo_id not in (account.has_access if account else ())
        ):
            raise _Refused(403 if account else 401, "GatedRepo", f"Access to {repo_id} is restricted")
        if write and not (account and account.role == "write" and self._owns(repo_id)):
            raise _Refused(403, message="Forbidden: you must use a write token")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.find(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _whoami(self) -> None:
        account = self.account
        if account is None:
            raise _Refused(401, message="Invalid username or password.")
        organisations = [{"name": name, "roleInOrg": "write"} for name in account.organisations]
        auth = {"type": "access_token", "accessToken": {"displayName": "x", "role": account.role}}
        self._json({"type": "user", "name": account.name, "orgs": organisations, "auth": auth})

    def _create(self) -> None:
        asked, account = json.loads(self.body), self.account
        repo_id = f"{asked.get('organization') or (account.name if account else '')}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{repo_id}"}
        if not self._owns(repo_id) or account is None or account.role != "write":
            raise _Refused(403, message="You don't have the rights to create a model under this namespace")
        if ("models", repo_id) in self.hub.repos:
            self._json({**url, "error": "You already created this model repo"}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add("models", repo_id, {".gitattributes": b""}, private=private)
        self._json(url)

    def _api(self, repo: Repo, rest: list[str], query: dict[str, list[str]]) -> None:
        match rest:
            case []:
                self._info(repo, "main")
            case ["revision", revision]:
                self._info(repo, revision)
            case ["auth-check"]:
                self._repo(repo.kind, repo.id, content=True)
                self._json({})
            case ["tree", revision, *path]:
                self._tree(repo, revision, "/".join(path), recursive=query.get("recursive", [""])[0].lower() == "true")
            case ["paths-info", revision]:
                self._paths_info(repo, revision)
            case ["preupload", revision]:
                self._repo(repo.kind, repo.id, write=True)
                self._preupload(repo.commits[self._commit_of(repo, revision)])
            case ["commit", revision]:
                self._repo(repo.kind, repo.id, write=True)
                self._new_commit(repo, revision)
            case _:
                raise _Refused(404)

    def _info(self, repo: Repo, revision: str) -> None:
        sha = self._commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        told = {"id": repo.id, "sha": sha, "private": repo.private, "gated": "auto" if repo.gated else False}
        self._json({**told, "siblings": siblings, "cardData": {"license": "mit"}, "tags": [], "downloads": 0})

    def _tree(self, repo: Repo, revision: str, folder: str, *, recursive: bool) -> None:
        files = repo.commits[self._commit_of(repo, revision)]
        inside = {path: content for path, content in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise _Refused(404, "EntryNotFound", f"{folder} does not exist")
        entries, depth = {}, folder.count("/") + 1 if folder else 0
        for path, content in inside.items():
            parts = path.split("/")
            for end in range(depth + 1, len(parts) if recursive else min(len(parts), depth + 2)):
                parent = "/".join(parts[:end])
                entries[parent] = {"type": "directory", "path": parent, "size": 0, "oid": git_oid(parent.encode())}
            if recursive or len(parts) == depth + 1:
                entries[path] = described(path, content)
        self._json(list(entries.values()))

    def _paths_info(self, repo: Repo, revision: str) -> None:
        files = repo.commits[self._commit_of(repo, revision)]
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        self._json([described(path, files[path]) for path in paths if path in files])

    def _file(self, repo: Repo, revision: str, path: str) -> None:
        sha = self._commit_of(repo, revision)
        if path not in repo.commits[sha]:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": sha}
            self._json({"error": "Entry not found"}, 404, headers)
            return
        content = repo.commits[sha][path]
        entry = described(path, content)
        tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        status, how = 200, self.wrong.how if self.wrong and self.command == "GET" else None
        if how == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        self._send(status, content, headers, upto=len(content) // 2 if how == "drop" else None)

    def _preupload(self, files: dict[str, bytes]) -> None:
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS_ENDINGS) else "regular"
            entry = described(path, files[path]) if path in files else {}
            oid = entry.get("lfs", entry).get("oid")
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _lfs_batch(self, repo: Repo) -> None:
        answers = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.address}/lfs/{asked['oid']}"}
            verify = {"href": f"{self.hub.address}/lfs/verify"}
            actions = {} if asked["oid"] in self.hub.stored else {"actions": {"upload": upload, "verify": verify}}
            answers.append({**asked, **actions})
        self._json({"transfer": "basic", "objects": answers})

    def _new_commit(self, repo: Repo, revision: str) -> None:
        header, files = {}, {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        if self.wrong is not None and self.wrong.how == "corrupt":
            files = {path: content + b" " for path, content in files.items()}
        sha = repo.commit(files, header["summary"], revision)
        url = f"{self.hub.address}/{repo.id}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str], upto: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:upto])
        if upto is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hub_server() -> Iterator[HubStandIn]:
    """The stand-in, listening; for commands in processes of their own, which take `HF_ENDPOINT`."""
    server = HubStandIn()
    yield server
    server.close()


@pytest.fixture
def hub(hub_server, tmp_path, monkeypatch) -> HubStandIn:
    """The stand-in as this process's Hub, with an empty cache and no token."""
    import datasets
    from huggingface_hub import close_session, constants

    address, cache = hub_server.address, tmp_path / "hub"
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_ETAG_TIMEOUT": 1,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name, value in {
        "HF_ENDPOINT": address,
        "HUB_DATASETS_URL": address + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_CACHE": tmp_path / "datasets",
        "HF_UPDATE_DOWNLOAD_COUNTS": False,
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", hub_server.waits.append)
    close_session()
    return hub_server
