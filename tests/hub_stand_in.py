"""A stand-in of the Hub's HTTP interface on this machine, for the real client; it can be told to misbehave."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hub_handler import Handler
from hub_repos import Account, Fault, Repo


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
        self._server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
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
