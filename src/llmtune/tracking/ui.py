"""MLflow's pages on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from llmtune.errors import RunError
from llmtune.logs import say
from llmtune.runs.status import without_credentials
from llmtune.signals import terminable

_HOST = "127.0.0.1"
_START_TIMEOUT_SECONDS = 120.0
_STOP_TIMEOUT_SECONDS = 5.0
_QUIET = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore:starlette.middleware.wsgi",
}


def serve_ui(uri: str, port: int, links: Sequence[tuple[str, str]] = ()) -> int:
    """Serve MLflow's pages on 127.0.0.1 until Ctrl-C; one worker, no telemetry, no pickles, no job execution.

    A store that is a tracking server has its pages already: the links are printed, and that's all.

    Args:
        uri: absolute tracking URI of the store.
        port: port that is listened on.
        links: what to print once the pages answer, as (label, link).

    Returns:
        The exit status: 0 after Ctrl-C.

    Raises:
        RunError: the port is taken, or the server ended before it answered.
    """
    if uri.startswith(("http://", "https://")):
        _say_links(links or [("MLflow", without_credentials(uri))])
        return 0
    _check_port(port)
    server = _start(uri, port)
    try:
        with terminable():
            _wait_until_it_answers(server, port)
            _say_links(links or [("MLflow", f"http://{_HOST}:{port}")])
            say("Ctrl-C ends it")
            return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def _say_links(links: Sequence[tuple[str, str]]) -> None:
    for label, link in links:
        say(f"{label}: {link}")


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise RunError(
                f"port {port} can't be listened on ({error.strerror}); set tracking.ui_port={port + 1}"
            ) from error


def _start(uri: str, port: int) -> subprocess.Popen[bytes]:
    options = ["--host", _HOST, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    environment = {**os.environ, **_QUIET, "MLFLOW_BACKEND_STORE_URI": uri}
    command = [sys.executable, "-m", "mlflow", "server", *options]
    say(f"starting MLflow's pages on port {port}, a few seconds")
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RunError(f"MLflow's server ended with exit status {server.returncode}; its message stands above")
        try:
            opener.open(f"http://{_HOST}:{port}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise RunError(f"MLflow's server did not answer on port {port} within {_START_TIMEOUT_SECONDS:.0f} s")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its worker, which stand in a process group of their own."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(_STOP_TIMEOUT_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            continue
