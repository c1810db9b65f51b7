"""How large a unit of code may be, and what no file may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

SOURCE = Path(__file__).parents[2] / "src"
FILES = sorted(SOURCE.rglob("*.py"))

MAX_FILE_LINES = 400
MAX_CLASS_LINES = 250
MAX_FUNCTION_LINES = 50
MAX_LOOP_LINES = 60
MAX_NESTING = 3
LOOP_FUNCTIONS = {("training/loop.py", "train"), ("training/loop.py", "train_step")}

DRAWERS = {"utils.py", "helpers.py", "misc.py", "common.py"}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_NAMES = {"torch.load", "torch.save"} | {f"yaml.{name}" for name in ("Loader", "FullLoader", "UnsafeLoader")}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def nesting(node: ast.AST) -> int:
    """Deepest stack of blocks below `node`; an `elif` is as deep as its `if`, nested functions start anew."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        children = [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        is_elif = isinstance(node, ast.If) and field == "orelse" and len(children) == 1
        for child in children:
            if isinstance(child, FUNCTIONS):
                continue
            own = isinstance(child, BLOCKS) and not (is_elif and isinstance(child, ast.If))
            deepest = max(deepest, nesting(child) + own)
    return deepest


def too_large(path: str, source: str) -> Iterator[str]:
    """Every unit in `source` that is larger than the limits, in words."""
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        yield f"{path}: {lines} lines, at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and num_lines(node) > MAX_CLASS_LINES:
            yield f"{path}:{node.lineno} class {node.name}: {num_lines(node)} lines, at most {MAX_CLASS_LINES}"
        if not isinstance(node, FUNCTIONS):
            continue
        in_loop = any(path.endswith(file) and node.name == name for file, name in LOOP_FUNCTIONS)
        limit = MAX_LOOP_LINES if in_loop else MAX_FUNCTION_LINES
        if num_lines(node) > limit:
            yield f"{path}:{node.lineno} {node.name}: {num_lines(node)} lines, at most {limit}"
        if (depth := nesting(node)) > MAX_NESTING:
            yield f"{path}:{node.lineno} {node.name}: {depth} blocks deep, at most {MAX_NESTING}"


def unsafe(path: str, source: str) -> Iterator[str]:
    """Every import or call in `source` that reads or writes pickles, or loads YAML that may build objects."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_NAMES:
                yield f"{path}:{node.lineno} {name}"


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_units_are_small() -> None:
    found = [line for path in FILES for line in too_large(relative(path), path.read_text(encoding="utf-8"))]
    assert len(FILES) > 30
    assert found == []


def test_nothing_reads_or_writes_pickles() -> None:
    assert [line for path in FILES for line in unsafe(relative(path), path.read_text(encoding="utf-8"))] == []


def test_every_file_is_named_for_what_it_does() -> None:
    assert [relative(path) for path in FILES if path.name in DRAWERS] == []


def test_init_files_are_empty_but_for_the_package() -> None:
    package = SOURCE / "llmtune" / "__init__.py"
    assert [relative(p) for p in FILES if p.name == "__init__.py" and p != package and p.read_text().strip()] == []


def test_plugin_folder_is_a_namespace_package() -> None:
    assert not (SOURCE / "hydra_plugins" / "__init__.py").exists()


def function(body_lines: int, name: str = "f") -> str:
    return f"def {name}():\n" + "    x = 1\n" * body_lines


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("a.py", "x = 1\n" * 401, "a.py: 401 lines, at most 400"),
        ("a.py", "class A:\n" + "    x = 1\n" * 250, "a.py:1 class A: 251 lines, at most 250"),
        ("a.py", function(50), "a.py:1 f: 51 lines, at most 50"),
        ("llmtune/training/loop.py", function(60, "train"), "llmtune/training/loop.py:1 train: 61 lines, at most 60"),
        (
            "a.py",
            "def f():\n if a:\n  for b in c:\n   with d:\n    while e:\n     pass\n",
            "a.py:1 f: 4 blocks deep, at most 3",
        ),
    ],
)
def test_a_unit_over_a_limit_is_found(path: str, source: str, message: str) -> None:
    assert list(too_large(path, source)) == [message]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a.py", "x = 1\n" * 400),
        ("a.py", function(49)),
        ("llmtune/training/loop.py", function(59, "train_step")),
        ("a.py", "def f():\n if a:\n  b\n elif c:\n  d\n elif e:\n  g\n elif h:\n  i\n elif j:\n  k\n"),
    ],
)
def test_a_unit_at_a_limit_passes(path: str, source: str) -> None:
    assert list(too_large(path, source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "torch.save(a, b)",
        "yaml.load(a, yaml.Loader)",
    ],
)
def test_an_unsafe_loader_is_found(source: str) -> None:
    assert list(unsafe("a.py", source)) != []


def test_safe_loaders_pass() -> None:
    assert list(unsafe("a.py", "from safetensors.torch import load_file\nyaml.safe_load(a)\nimport json\n")) == []
