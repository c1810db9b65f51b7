"""What a data section leads to: files, folders, globs, mixtures; what the record says of them."""

import gzip
import hashlib
import json
import pickle
import subprocess
import sys

import pytest

from llmtune.config.data import EmbeddedConfig, FilesConfig, MixtureConfig, SourceConfig
from llmtune.config.row_columns import EvalRowConfig
from llmtune.data.reading.sources import open_eval_sources, open_sources
from llmtune.errors import DataError

pytestmark = pytest.mark.fast

ROW = '{"text": "a"}\n'


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def texts(source):
    return [(block.path, entry.content["text"]) for block in source.blocks() for entry in block.entries()]


@pytest.fixture
def folder(tmp_path):
    """A folder with data, what belongs beside it, and what doesn't."""
    root = tmp_path / "data"
    (root / "b" / ".cache").mkdir(parents=True)
    for name in ("b/2.jsonl", "b/10.jsonl", "a.jsonl", ".hidden.jsonl", "b/.cache/x.jsonl"):
        (root / name).write_text(json.dumps({"text": name}))
    (root / "z.txt").write_text("z.txt")
    (root / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}'))
    (root / "README.md").write_text("about")
    (root / "LICENSE").write_text("terms")
    (root / "notes.md").write_text("no example")
    (root / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "_SUCCESS").write_text("")
    (root / "empty.jsonl").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.jsonl").write_text(ROW)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    return root


def test_a_folder_is_all_its_readable_files_in_order_and_what_is_left_out_is_said(folder, opened, capsys):
    source = opened(folder)
    found = [("a.jsonl", "a.jsonl"), ("b/10.jsonl", "b/10.jsonl"), ("b/2.jsonl", "b/2.jsonl"), ("c.jsonl.gz", "c")]
    assert texts(source) == [(f"{folder}/{name}", text) for name, text in [*found, ("z.txt", "z.txt")]]
    assert capsys.readouterr().out == (
        f"data.path={folder}: left out .hidden.jsonl, LICENSE, README.md, _SUCCESS, b/.cache/x.jsonl and 4 more\n"
    )
    assert source.name == source.origin["path"] == str(folder)
    assert source.origin["files"][3] == {
        "path": f"{folder}/c.jsonl.gz",
        "format": "jsonl",
        "compression": "gzip",
        "sha256": hashlib.sha256((folder / "c.jsonl.gz").read_bytes()).hexdigest(),
        "bytes": (folder / "c.jsonl.gz").stat().st_size,
    }


def test_a_glob_is_the_files_that_fit(folder, opened):
    assert texts(opened(f"{folder}/*.jsonl")) == [(f"{folder}/a.jsonl", "a.jsonl")]
    assert [text for _, text in texts(opened(f"{folder}/**/[0-9]*.jsonl"))] == ["b/10.jsonl", "b/2.jsonl"]
    (folder / "odd[1].jsonl").write_text('{"text": "odd"}')
    assert texts(opened(f"{folder}/odd[1].jsonl")) == [(f"{folder}/odd[1].jsonl", "odd")]


def test_a_bad_file_among_others_is_refused_where_its_name_makes_it_one_of_them(folder, refusal):
    (folder / "b" / "3.jsonl").write_bytes('{"text": "ä"}'.encode("utf-16"))
    assert refusal(folder).startswith("F/b/3.jsonl:1: the file is UTF-16")


def test_the_digest_follows_content_order_and_kind_and_not_the_place(tmp_path, folder, opened):
    digest = opened(folder).digest
    folder.rename(tmp_path / "moved")
    assert opened(tmp_path / "moved").digest == digest
    (tmp_path / "moved" / "README.md").write_text("more about")
    assert opened(tmp_path / "moved").digest == digest
    (tmp_path / "moved" / "a.jsonl").rename(tmp_path / "moved" / "a1.jsonl")
    assert opened(tmp_path / "moved").digest != digest, "the rows are named by it"
    (tmp_path / "moved" / "a1.jsonl").rename(tmp_path / "moved" / "y.jsonl")
    assert opened(tmp_path / "moved").digest != digest

    (tmp_path / "one.jsonl").write_text(ROW)
    (tmp_path / "two.jsonl").write_text(ROW)
    one = opened(tmp_path / "one.jsonl")
    assert one.digest == opened(tmp_path / "two.jsonl").digest != opened(tmp_path / "one.jsonl", format="txt").digest
    assert one.origin["sha256"] == sha256(ROW)
    (tmp_path / "two.jsonl").write_text(ROW + ROW)
    assert one.digest != opened(tmp_path / "two.jsonl").digest


def test_what_is_not_there_is_named_with_the_nearest(tmp_path, folder, refusal):
    assert refusal(f"{folder}/a.jsnl") == f"data.path=F: there is no such file; did you mean {folder}/a.jsonl?"
    assert refusal(tmp_path / "dat") == "data.path=F: there is no such file; did you mean Fa?"
    assert refusal(tmp_path / "nowhere" / "x") == (
        "data.path=F: there is no such file; set data.path to a file that is there"
    )
    assert refusal(f"{folder}/*.xyz") == (
        "data.path=F: no file fits this glob; name a file, or a folder with files of examples"
    )
    assert "not a glob" in refusal(f"{folder}/**x/*.jsonl") or sys.version_info >= (3, 13)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("about")
    assert refusal(tmp_path / "bare") == (
        "data.path=F: the folder holds no file that can be read (README.md left out); name a file, or a folder with "
        "files of examples"
    )
    (tmp_path / "bare" / "notes.md").write_text("x")
    assert "the folder holds no file that can be read" in refusal(tmp_path / "bare")
    assert refusal("/dev/null") == "data.path=F: neither a file nor a folder; store the rows in a file"


def test_a_file_that_may_not_be_read_is_told(tmp_path, refusal, monkeypatch):
    (tmp_path / "a.jsonl").write_text(ROW)

    def denied(file, asked):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("llmtune.data.reading.files.kind_of", denied)
    assert refusal(tmp_path / "a.jsonl").startswith("F: the file can't be read: permission denied: change who may")


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("change", ["grows", "goes"])
def test_a_file_that_changes_before_or_while_it_is_read_is_refused(tmp_path, opened, when, change):
    file = tmp_path / "a.jsonl"
    file.write_text(ROW)
    source = opened(file)
    blocks = source.blocks()
    if when == "while":
        next(blocks)
    file.unlink() if change == "goes" else file.write_text(ROW * 2)
    with pytest.raises(DataError) as caught:
        list(blocks)
    why = {"grows": "the file changed while it was read; type the command", "goes": "the file can't be read: No such"}
    assert str(caught.value).startswith(f"{file}: {why[change]}")


def test_a_mixture_has_a_source_an_entry_with_its_weight_and_key(tmp_path):
    (tmp_path / "a.jsonl").write_text(ROW)
    (tmp_path / "b.txt").write_text("b")
    entries = [
        SourceConfig(path=str(tmp_path / "a.jsonl"), weight=2.5, licence="MIT"),
        SourceConfig(path=str(tmp_path / "b.txt"), text_column="body", shape="text"),
    ]
    a, b = open_sources(MixtureConfig(sources=tuple(entries)), tmp_path / "c")
    assert (a.weight, a.origin["licence"], b.weight, b.origin["licence"]) == (2.5, "MIT", 1.0, None)
    assert (a.rows, b.rows) == tuple(entries)
    assert [entry.content for block in b.blocks() for entry in block.entries()] == [{"body": "b"}]
    missing = MixtureConfig(sources=(entries[0], SourceConfig(path=str(tmp_path / "b.txd"))))
    with pytest.raises(DataError, match=r"^data\.sources\[1\]\.path=.*b\.txd: there is no such file; did you mean"):
        open_sources(missing, tmp_path / "c")
    (tmp_path / "c.md").write_text("x")
    unknown = MixtureConfig(sources=(SourceConfig(path=str(tmp_path / "c.md")),))
    with pytest.raises(DataError, match=r"the format; set data\.sources\[0\]\.format to jsonl, json, txt, csv or parq"):
        open_sources(unknown, tmp_path / "c")


def test_the_test_file_is_a_source_of_its_own(tmp_path, folder):
    assert open_sources(FilesConfig(), tmp_path) == open_eval_sources(FilesConfig(), tmp_path) == []
    config = FilesConfig(eval_path=str(folder / "a.jsonl"), prompt_column="q", licence="MIT")
    (source,) = open_eval_sources(config, tmp_path / "c")
    assert texts(source) == [(f"{folder}/a.jsonl", "a.jsonl")]
    assert source.rows == EvalRowConfig(prompt_column="q")
    (plain,) = open_eval_sources(EmbeddedConfig(eval_path=str(folder)), tmp_path / "c")
    assert (plain.rows, len(plain.origin["files"])) == (EvalRowConfig(keys_in="nowhere"), 5)
    with pytest.raises(DataError, match=r"^data\.eval_path=.*the format; rename the file: known endings are \.jsonl,"):
        open_eval_sources(FilesConfig(eval_path=str(folder / "notes.md")), tmp_path / "c")


@pytest.mark.parametrize(
    ("sources", "rows"),
    [
        (
            [{"prompt_column": "q", "licence": "MIT"}, {"prompt_column": "q"}],
            {"prompt_column": "q", "keys_in": "sources"},
        ),
        (
            [{"shape": "text", "group_column": "g"}, {"shape": "text"}],
            {"shape": "text", "group_column": "g", "keys_in": "sources"},
        ),
        ([{"group_column": "g"}, {"group_column": "h"}], {"keys_in": "sources"}),
        ([{"prompt_column": "q"}, {}], {"keys_in": "nowhere"}),
        ([], {"keys_in": "nowhere"}),
    ],
)
def test_the_test_file_of_a_mixture_is_read_as_its_sources_where_all_are_alike(tmp_path, sources, rows):
    (tmp_path / "a.jsonl").write_text(ROW)
    config = MixtureConfig(
        sources=tuple(SourceConfig(path="x", weight=number + 1, **keys) for number, keys in enumerate(sources)),
        eval_path=str(tmp_path / "a.jsonl"),
    )
    (source,) = open_eval_sources(config, tmp_path / "c")
    assert source.rows == EvalRowConfig(**rows)


def test_a_link_that_leads_nowhere_says_so(tmp_path, refusal):
    (tmp_path / "dead.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    cure = "; mend the link, or set data.path to the file itself"
    assert refusal(tmp_path / "dead.jsonl") == "data.path=F: this is a link to gone.jsonl, which isn't there" + cure
    assert refusal(tmp_path / "loop.jsonl") == "data.path=F: this link leads back to itself" + cure


def test_an_ending_alone_makes_no_name_like_another(tmp_path, refusal):
    (tmp_path / "pc.jsonl").write_text(ROW)
    assert refusal(tmp_path / "nope.jsonl").endswith("; set data.path to a file that is there")
    assert refusal(tmp_path / "pcs.json").endswith("did you mean " + str(tmp_path / "pc.jsonl") + "?")
    assert refusal(tmp_path / "pc.jsonl" / "x").endswith(f"; {tmp_path}/pc.jsonl is a file, not a folder")
    assert refusal("~nobody-of-this-name/x") == "data.path=F: there is no such user; write the path without ~"


def test_blocks_travel_to_other_processes(folder, opened):
    (folder / "t.csv").write_text("text\nt\n")
    for block in opened(folder).blocks():
        copy = pickle.loads(pickle.dumps(block))
        assert (copy.path, list(copy.entries())) == (block.path, list(block.entries()))


def test_a_worker_loads_no_heavy_library():
    code = (
        "import sys, llmtune.data.reading.sources; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'huggingface_hub') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
