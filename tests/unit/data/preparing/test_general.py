"""General text as tokens: which pieces, of what length, and what belongs together."""

import hashlib
import json

import pytest

from llmtune.config.data import FilesConfig
from llmtune.data.preparing.general import prepare_general
from llmtune.data.preparing.prepared import prepare_data
from llmtune.data.reading import descriptions
from llmtune.errors import DataError

pytestmark = pytest.mark.fast


def test_pieces_of_installed_text_are_supervised_but_for_their_first_token(plain_tokenizer, tmp_path):
    found = prepare_general(None, 6, 64, (plain_tokenizer, "t"), tmp_path)
    assert found is not None and len(found.table) == 6
    texts = {block.path: block.rows[0].text for block in descriptions.description_blocks(6)}
    for index in range(6):
        ids = found.table.input_ids(index).tolist()
        assert len(ids) == 64  # cut
        assert sum(text.startswith(plain_tokenizer.decode(ids)) for text in texts.values()) == 1
        assert found.table.num_supervised_tokens[index] == 63
    assert len(set(found.clusters)) == 6
    assert found.digest == found.table.tokens_digest()
    again = prepare_general(None, 6, 512, (plain_tokenizer, "t"), tmp_path)
    assert again is not None and again.digest != found.digest and again.table.num_tokens.max() == 512
    assert prepare_general(None, 6, 9999, (plain_tokenizer, "t"), tmp_path).table.num_tokens.max() == 512


def test_a_file_of_text_is_cut_into_pieces_that_lie_all_over_it(plain_tokenizer, tmp_path, write):
    path = write("own.jsonl", "".join(json.dumps({"text": f"{letter * 300}."}) + "\n" for letter in "abcdefgh"))
    found = prepare_general(path, 4, 100, (plain_tokenizer, "t"), tmp_path)
    assert found is not None and found.source == path
    texts = [plain_tokenizer.decode(found.table.input_ids(index).tolist()) for index in range(4)]
    assert len({text[0] for text in texts}) == 4 and len(set(found.clusters)) == 4
    whole = prepare_general(path, 999, 100, (plain_tokenizer, "t"), tmp_path)
    assert whole is not None and len(whole.table) > 24  # windows of a row belong together
    assert len(set(whole.clusters)) == 8


@pytest.mark.parametrize(("name", "content"), [("no.jsonl", None), ("empty.jsonl", ""), ("odd.jsonl", '{"a": 1}\n')])
def test_a_file_that_cannot_be_taken_is_named_with_its_key(name, content, plain_tokenizer, tmp_path, write):
    path = str(tmp_path / name) if content is None else write(name, content)
    with pytest.raises(DataError) as caught:
        prepare_general(path, 4, 100, (plain_tokenizer, "t"), tmp_path)
    assert "evaluate.general_path" in str(caught.value) and name in str(caught.value)
    assert "data.eval_path" not in str(caught.value)


def test_none_where_no_package_describes_itself(plain_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(descriptions, "PACKAGES", ("no-such-package",))
    assert prepare_general(None, 4, 100, (plain_tokenizer, "t"), tmp_path) is None


def test_test_examples_of_one_group_or_row_have_the_name_of_its_first(plain_tokenizer, tmp_path, write):
    rows = [{"text": f"{number:03} " * 20, "author": f"author {number // 5}"} for number in range(20)]
    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    plain = {"eval_path": path, "find_near_duplicates": False, "max_seq_len": 50, "overlong": "split"}
    for column, size in (("author", 4), (None, 20)):
        data = prepare_data(FilesConfig(group_column=column, path=path, **plain), plain_tokenizer, "t", tmp_path)
        clusters = data.test_clusters()
        assert len(clusters) == len(data.test) == 40 and len(set(clusters)) == size
        by_line = [(int(data.test.source(index).rpartition(":")[2]) - 1) for index in range(40)]
        groups = [line // 5 if column else line for line in by_line]
        assert len(set(zip(groups, clusters, strict=True))) == size
        assert clusters == [data.test.example_id(groups.index(group)).partition("-")[0] for group in groups]


def test_split_digests_stand_in_the_report(plain_tokenizer, chat_tokenizer, tmp_path, write):
    path = write("a.jsonl", "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(60)))
    config = FilesConfig(path=path, find_near_duplicates=False)
    data, other = (prepare_data(config, one, "t", tmp_path) for one in (plain_tokenizer, chat_tokenizer))
    for name in ("train", "validation", "test"):
        split, theirs = data.report["splits"][name], other.report["splits"][name]
        assert split["tokens_sha256"] == data.split(name).tokens_digest() != theirs["tokens_sha256"]
        assert split["content_sha256"] == theirs["content_sha256"]
        order = b"".join(data.split(name).content_hashes().tolist())
        assert split["content_sha256"] == hashlib.sha256(order).hexdigest()
