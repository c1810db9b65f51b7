"""The C++ example writes what `runtime.py` of the same export writes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmtune.export.companions import write_scripts
from llmtune.export.torchscript import TorchScriptFormat
from tuned_models import train_and_describe

EXAMPLE = Path(__file__).parent.parent.parent / "scripts" / "examples" / "torchscript_cpp"
START = [5, 6, 7, 8]
NUM_TOKENS = 30
WRITE = f"""
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runtime import Runtime
runtime = Runtime(Path(sys.argv[1]), device="cpu")
tokens = [int(runtime.start([{START}], [{[1] * len(START)}])[0, -1].argmax())]
while len(tokens) < {NUM_TOKENS}:
    tokens.append(int(runtime.step(tokens[-1:])[0].argmax()))
print(*tokens)
"""
MISSING = [name for name in ("cmake", "g++") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"it is compiled with cmake and g++, and there is no {MISSING}"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The example, built as its README says."""
    build = tmp_path_factory.mktemp("build")
    where = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (
        ["cmake", "-S", str(EXAMPLE), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", where],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "write"


def ids_of(command: list[str]) -> list[int]:
    """The token ids that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [int(token) for token in done.stdout.split()]


@pytest.mark.parametrize("model_name", ["tiny_llama", "tiny_gpt2"])
def test_it_writes_the_same_tokens_as_python(assets, examples_file, tmp_path, program, model_name):
    context = train_and_describe(assets / model_name, "lora", examples_file, tmp_path)
    folder = tmp_path / "torchscript"
    folder.mkdir()
    TorchScriptFormat().write(context, folder)
    write_scripts("torchscript", folder)
    found = ids_of([str(program), str(folder / "model.ts"), str(NUM_TOKENS), *map(str, START)])
    assert len(found) == NUM_TOKENS
    assert found == ids_of([sys.executable, "-c", WRITE, str(folder)])
    assert len(set(found)) > 3, "a text of one token would say nothing"


def test_it_says_what_is_wrong(program, tmp_path):
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "usage: write MODEL.ts NUM_NEW_TOKENS ID [ID ...]" in done.stderr
    command = [str(program), str(tmp_path / "none.ts"), "3", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "none.ts" in done.stderr
