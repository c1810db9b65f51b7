import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from llmtune.errors import RunError
from llmtune.tracking.ui import serve_ui


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.fast
def test_a_port_that_is_taken_is_refused_with_its_cure():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=rf"port {port} can't be listened on .*; set tracking\.ui_port={port + 1}"):
            serve_ui("sqlite:////none.db", port)


@pytest.mark.fast
def test_a_tracking_server_has_its_own_pages(monkeypatch):
    said = []
    monkeypatch.setattr("llmtune.tracking.ui.say", said.append)
    assert serve_ui("https://me:pw@mlflow.example.org", 5000) == 0
    assert said == ["MLflow: https://mlflow.example.org"]


def test_pages_are_served_until_an_interrupt_and_nothing_is_left(tmp_path, free_port):
    code = (
        "import sys; from llmtune.tracking.ui import serve_ui\n"
        f"sys.exit(serve_ui('sqlite:///{tmp_path}/mlflow.db', {free_port}, [('side by side', 'http://a/#/b')]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        page = _page(free_port)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert lines[1:] == ["side by side: http://a/#/b\n", "Ctrl-C ends it\n"]
    assert b"<title>MLflow</title>" in page
    deadline = time.monotonic() + 10
    while _listens(free_port):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _page(port):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return answer.read()


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
