"""Python functions of packages that are installed with llmtune: real examples that need no network."""

import ast
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

from llmtune.data.reading.blocks import Entry, NoRow
from llmtune.data.reading.ready import ReadyBlock
from llmtune.data.records import Record
from llmtune.errors import DataError
from llmtune.logs import say
from llmtune.runs.file_digest import sha256_of_all

PACKAGES = {"sympy": "1.14.0", "networkx": "3.6.1"}
"""The packages, and the versions that published figures were measured on."""
LICENCE = "BSD-3-Clause"
_FEWEST_LINES, _MOST_LINES = 3, 60

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_Found = tuple[str | None, str | None, str | None]
"""Prompt, completion and text of an example."""


def embedded_blocks(form: str) -> list[ReadyBlock]:
    """Functions of the embedded packages' sources, which are parsed and never imported or run; a block a file.

    Args:
        form: "completion": documented functions, the prompt is signature and docstring, the completion is the body;
            "text": functions of 3 to 60 lines as plain text.

    Raises:
        DataError: one of the packages isn't installed.
    """
    blocks: list[ReadyBlock] = []
    for package in PACKAGES:
        root = package_folder(package).parent
        for file in source_files(package):
            path = file.relative_to(root)
            entries = tuple(_functions(root, path, form))
            if entries:
                blocks.append(ReadyBlock(path.as_posix(), entries))
    return blocks


def installed_packages() -> dict[str, str]:
    """The packages with their versions; another than the figures were measured on is said.

    Raises:
        DataError: one isn't installed.
    """
    packages = {package: importlib.metadata.version(package) for package in PACKAGES if package_folder(package)}
    for package, version in packages.items():
        if version != PACKAGES[package]:
            say(f"the embedded data has {package} {version}; figures for {PACKAGES[package]} don't hold for it")
    return packages


def embedded_digest() -> str:
    """Hex sha256 of the sources of the embedded packages."""
    roots = {package: package_folder(package).parent for package in PACKAGES}
    return sha256_of_all(
        (file.relative_to(root).as_posix(), file) for package, root in roots.items() for file in source_files(package)
    )


def package_folder(package: str) -> Path:
    """Folder of an installed package.

    Raises:
        DataError: it isn't installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"data=embedded reads the sources of {' and '.join(PACKAGES)}, but {package} isn't installed; "
            f"install it with: pip install {package}"
        )
    return Path(spec.submodule_search_locations[0])


def source_files(package: str) -> list[Path]:
    """The package's Python files without its tests, in the order of their names."""
    root = package_folder(package)
    files = (file.relative_to(root) for file in root.rglob("*.py"))
    kept = (file for file in files if "tests" not in file.parts and not file.name.startswith("test_"))
    return [root / file for file in sorted(kept, key=lambda file: file.as_posix())]


def _functions(root: Path, path: Path, form: str) -> Iterator[Entry]:
    """Examples out of one file; `path` is relative to `root`, the folder that holds the package."""
    module = ".".join(path.with_suffix("").parts)
    source = (root / path).read_text(encoding="utf-8")
    lines = source.split("\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    for node in _function_nodes(tree):
        make = _completion_example if form == "completion" else _text_example
        found = make(node, lines)
        if isinstance(found, str):
            yield NoRow(node.lineno, found, is_mistake=False)
        else:
            prompt, completion, text = found
            yield Record(path.as_posix(), node.lineno, text, prompt, completion, group=module)


def _function_nodes(node: ast.AST) -> Iterator[FunctionNode]:
    """Every function below `node`, methods and nested ones too, in order; expressions hold none."""
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, block, ()):
            if isinstance(child, FunctionNode):
                yield child
            yield from _function_nodes(child)


def _completion_example(node: FunctionNode, lines: list[str]) -> _Found | str:
    """Prompt and completion of a function, or why it makes no example.

    The line end between them starts the completion: most tokenizers join it with the indentation that follows.
    """
    if ast.get_docstring(node, clean=False) is None:
        return "no docstring"
    body = node.body[1:]
    if all(isinstance(statement, ast.Pass) for statement in body):
        return "empty body"
    docstring_end = node.body[0].end_lineno or node.lineno
    if node.body[0].lineno == node.lineno or body[0].lineno <= docstring_end:
        return "docstring and code on one line"
    prompt = _dedented(lines[node.lineno - 1 : docstring_end], node.col_offset)
    completion = _dedented(lines[docstring_end : node.end_lineno], node.col_offset).strip("\n")
    return prompt, f"\n{completion}", None


def _text_example(node: FunctionNode, lines: list[str]) -> _Found | str:
    """The text of a function, or why it makes no example."""
    num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if not _FEWEST_LINES <= num_lines <= _MOST_LINES:
        return f"not {_FEWEST_LINES} to {_MOST_LINES} lines"
    return None, None, _dedented(lines[node.lineno - 1 : node.end_lineno], node.col_offset)


def _dedented(lines: list[str], indent: int) -> str:
    """Lines without a method's outer indentation; text inside a string that starts further left stays as it is."""
    margin = " " * indent
    return "\n".join(line.rstrip("\r").removeprefix(margin) for line in lines)
