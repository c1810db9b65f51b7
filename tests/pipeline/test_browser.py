"""The page of scripts/examples/browser in a real browser, against onnxruntime in Python on the same export."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import onnx_ir
import pytest

from llmtune.export.graphs.onnx_blocks import Widths, quantise

ASSETS = Path(__file__).parents[1] / "assets"
PAGE = Path(__file__).parents[2] / "scripts/examples/browser"
PLAIN = "Once upon a time there was naïve 猫, a 🙂 and  two   spaces"
QUESTION = "What's in <|im_end|> and\nnot in Grüße?"
NUM_TOKENS = 40
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader"]
IN_PYTHON = """
import json, sys
from argparse import Namespace
from pathlib import Path
from run import prompt_ids, write
from runtime import Runtime

runtime = Runtime(Path())
prompt = prompt_ids(runtime, Namespace(prompt=sys.argv[1], chat=sys.argv[2] == "1", ids=None))
ids = list(write(runtime, prompt, int(sys.argv[3]), 0.0, 1))
print(json.dumps({"prompt": prompt, "ids": ids, "text": runtime.text.decode(ids)}))
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("npm"), reason="npm isn't there, which fetches what the page imports"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is there"),
]


class Browser:
    """A headless chromium with one page, spoken to through pipes in the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        from_us, self._to_it = os.pipe()
        self._from_it, from_it = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", *SOFTWARE_GPU]
        # The protocol's pipes are its file descriptors 3 and 4.
        command = f'exec "$@" 3<&{from_us} 4>&{from_it}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", str(CHROMIUM), *flags, f"--user-data-dir={profile}"],
            pass_fds=(from_us, from_it),
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(from_it)
        self._numbers = count(1)
        self._heard = b""
        self._session: dict[str, str] = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def answer(self, address: str, seconds: float = 60) -> dict[str, str]:
        """Open an address and wait for its answer: the data attributes, and `shown` and `line` as a person sees it."""
        self._call("Page.navigate", url=address)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self._evaluate(
                "(() => { const of = (id) => document.querySelector(id); const answer = of('#answer');"
                "return answer && location.href === " + json.dumps(address) + " && JSON.stringify({...answer.dataset,"
                "shown: answer.textContent, line: of('#line').textContent}) })()"
            )
            read = json.loads(found) if found else {}
            if read.get("state") in ("done", "failed"):
                return read
            time.sleep(0.1)
        raise TimeoutError(f"no answer of {address} in {seconds} s")

    def close(self) -> None:
        self._session = {}
        self._call("Browser.close")
        self._process.wait(20)
        os.close(self._to_it)
        os.close(self._from_it)

    def _evaluate(self, expression: str) -> Any:
        return self._call("Runtime.evaluate", expression=expression)["result"].get("value")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._heard:
                part = os.read(self._from_it, 65536)
                assert part, "chromium ended"
                self._heard += part
            one, self._heard = self._heard.split(b"\0", 1)
            told = json.loads(one)
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A copy of the page with its npm packages."""
    folder = tmp_path_factory.mktemp("browser") / "page"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules", "model"))
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm can't fetch the page's packages: {done.stderr.strip().splitlines()[0]}")
    return folder


@pytest.fixture(scope="module", params=["serve.py", "http.server"])
def server(request, site):
    """The page's own server, which lets it use threads, and Python's plain one: name and address."""
    own = [str(site / "serve.py"), "0"]
    plain = ["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(site)]
    command = [sys.executable, *(own if request.param == "serve.py" else plain)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://[0-9.:]+", process.stdout.readline())
        assert found
        yield request.param, found[0]
        process.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def export(tmp_path_factory, site) -> Path:
    """A tiny trained model as llmtune exports it, beside the page as `model`."""
    folder = tmp_path_factory.mktemp("run")
    words = [f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}", "data.max_seq_len=64"]
    sizes = ["data.num_examples=32", "train.max_steps=60", "train.learning_rate=0.01", "export.path=out"]
    command = [sys.executable, "-m", "llmtune", "train", "export", *words, *sizes, "export.formats=[onnx]"]
    subprocess.run(command, cwd=folder, check=True)
    shutil.copytree(folder / "out" / "onnx", site / "model")
    return site / "model"


def in_python(folder: Path, prompt: str, *, chat: bool) -> dict[str, Any]:
    """What the export's own scripts read and write, with onnxruntime."""
    command = [sys.executable, "-c", IN_PYTHON, prompt, str(int(chat)), str(NUM_TOKENS)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ids(written: str) -> list[int]:
    return [int(part) for part in written.split()]


@pytest.mark.parametrize(("kind", "prompt"), [("text", PLAIN), ("chat", QUESTION)])
def test_it_reads_and_writes_what_onnxruntime_does_in_python(browser, server, export, kind, prompt):
    name, address = server
    wishes = {"kind": kind, "prompt": prompt, "tokens": NUM_TOKENS, "threads": 2, "run": 1}
    read = browser.answer(f"{address}/?{urlencode(wishes)}")
    expected = in_python(export, prompt, chat=kind == "chat")
    assert read["state"] == "done", read["line"]
    assert ids(read["promptIds"]) == expected["prompt"]
    assert ids(read["ids"]) == expected["ids"]
    assert len(set(expected["ids"])) > 1, "one token again and again would hide mistakes"
    assert read["shown"] == expected["text"]
    assert (read["backend"], read["file"], read["why"]) == ("wasm", "onnx/model.onnx", "length")
    assert read["threads"] == {"serve.py": "2", "http.server": "1"}[name]


def test_it_stops_at_every_end_token(browser, server, export, site):
    """Two tokens that the model writes later are named as ends: either stops it."""
    settings = json.loads((export / "generation_config.json").read_text())
    written = in_python(export, PLAIN, chat=False)["ids"]
    firsts = [number for number, token in enumerate(written) if token not in written[:number]][1:3]
    for place in firsts:
        folder = site / f"ends_{place}"
        shutil.copytree(export, folder, dirs_exist_ok=True)
        changed = {**settings, "eos_token_id": [settings["pad_token_id"], written[place]]}
        (folder / "generation_config.json").write_text(json.dumps(changed))
        wishes = {"model": folder.name, "prompt": PLAIN, "tokens": NUM_TOKENS, "run": 1}
        read = browser.answer(f"{server[1]}/?{urlencode(wishes)}")
        assert (read["state"], read["why"]) == ("done", "end")
        assert ids(read["ids"]) == written[:place]


@pytest.mark.parametrize(("bits", "name"), [(8, "model_quantized.onnx"), (4, "model_q4.onnx")])
def test_packed_weights_are_unpacked_once(browser, server, export, site, bits, name):
    """The page multiplies in float32; onnxruntime does so in Python where nothing lets it round activations."""
    folder = site / f"bits_{bits}"
    if not folder.exists():
        shutil.copytree(export, folder)
        graph = onnx_ir.load(folder / "onnx/model.onnx")
        quantise(graph, Widths(layers=bits, ends=8))
        for node in graph.graph:
            if node.op_type == "MatMulNBits":
                node.attributes["accuracy_level"] = onnx_ir.AttrInt64("accuracy_level", 0)
        onnx_ir.save(graph, folder / "onnx" / name)
        (folder / "onnx/model.onnx").unlink()
    wishes = {"model": folder.name, "kind": "chat", "prompt": QUESTION, "tokens": NUM_TOKENS, "run": 1}
    read = browser.answer(f"{server[1]}/?{urlencode(wishes)}")
    assert (read["state"], read["file"]) == ("done", f"onnx/{name}"), read["line"]
    assert ids(read["ids"]) == in_python(folder, QUESTION, chat=True)["ids"]


def test_webgpu_writes_the_same(browser, server, export):
    wishes = {"kind": "chat", "prompt": QUESTION, "tokens": NUM_TOKENS, "backend": "webgpu", "run": 1}
    read = browser.answer(f"{server[1]}/?{urlencode(wishes)}")
    if "has no WebGPU" in read["line"]:
        pytest.skip("this chromium offers no WebGPU here, not even in software")
    assert (read["state"], read["backend"]) == ("done", "webgpu"), read["line"]
    assert ids(read["ids"]) == in_python(export, QUESTION, chat=True)["ids"]


def test_a_folder_that_is_no_export_is_named(browser, server, export, site):
    assert "/nowhere/config.json can't be read (404 " in browser.answer(f"{server[1]}/?model=nowhere&run=1")["line"]
    shutil.copytree(export, site / "no_graph", ignore=shutil.ignore_patterns("onnx"), dirs_exist_ok=True)
    read = browser.answer(f"{server[1]}/?model=no_graph&run=1")
    assert read["state"] == "failed"
    assert read["line"].startswith("/no_graph/ has none of onnx/model.onnx, ")
