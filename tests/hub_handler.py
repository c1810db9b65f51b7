"""How the stand-in of the Hub answers: the routes of the Hub's HTTP interface that the real client takes."""

import base64
import json
import socket
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import LFS_ENDINGS, Account, Repo, described, git_oid

if TYPE_CHECKING:
    from hub_stand_in import HubStandIn

HANG_SECONDS = 30.0


class Refused(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    hub: "HubStandIn"
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
                raise Refused(self.wrong.how)
            self._route([unquote(part) for part in url.path.strip("/").split("/")], parse_qs(url.query))
        except Refused as refused:
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
                raise Refused(404)

    def _service(self, name: str) -> None:
        if name == "whoami-v2":
            self._whoami()
        elif name == "repos/create":
            self._create()
        elif name == "validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            raise Refused(404)

    def _lfs(self, rest: list[str]) -> None:
        if rest == ["verify"]:
            asked = json.loads(self.body)
            if len(self.hub.stored.get(asked["oid"], b"")) != asked["size"]:
                raise Refused(404)
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
            raise Refused(401, message="Invalid credentials in Authorization header")
        return self.hub.accounts[token]

    def _owns(self, repo_id: str) -> bool:
        account, owner = self.account, repo_id.partition("/")[0]
        return account is not None and owner in (account.name, *account.organisations)

    def _repo(self, kind: str, repo_id: str, *, write: bool = False, content: bool = False) -> Repo:
        account, repo = self.account, self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self._owns(repo_id)):
            raise Refused(404 if account else 401, "RepoNotFound", "Repository not found")
        if (
            content
            and repo.gated
            and not self._owns(repo_id)
            and repo_id not in (account.has_access if account else ())
        ):
            raise Refused(403 if account else 401, "GatedRepo", f"Access to {repo_id} is restricted")
        if write and not (account and account.role == "write" and self._owns(repo_id)):
            raise Refused(403, message="Forbidden: you must use a write token")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.find(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _whoami(self) -> None:
        account = self.account
        if account is None:
            raise Refused(401, message="Invalid username or password.")
        organisations = [{"name": name, "roleInOrg": "write"} for name in account.organisations]
        auth = {"type": "access_token", "accessToken": {"displayName": "x", "role": account.role}}
        self._json({"type": "user", "name": account.name, "orgs": organisations, "auth": auth})

    def _create(self) -> None:
        asked, account = json.loads(self.body), self.account
        repo_id = f"{asked.get('organization') or (account.name if account else '')}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{repo_id}"}
        if not self._owns(repo_id) or account is None or account.role != "write":
            raise Refused(403, message="You don't have the rights to create a model under this namespace")
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
                raise Refused(404)

    def _info(self, repo: Repo, revision: str) -> None:
        sha = self._commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        told = {"id": repo.id, "sha": sha, "private": repo.private, "gated": "auto" if repo.gated else False}
        self._json({**told, "siblings": siblings, "cardData": {"license": "mit"}, "tags": [], "downloads": 0})

    def _tree(self, repo: Repo, revision: str, folder: str, *, recursive: bool) -> None:
        files = repo.commits[self._commit_of(repo, revision)]
        inside = {path: content for path, content in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
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
