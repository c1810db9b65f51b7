"""The ways to prepare data that `bench_prepare.py` compares."""

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

IGNORED = -100
LIBRARY_BATCH = 1000
TEST_SHARE = 0.1
ANSWER = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)
Examples = Iterable[tuple[Sequence[int], Sequence[int] | None]]


class Contender:
    """One way to prepare the data. `run` is what is timed."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(arguments.tokenizer)
        self.kind: str = arguments.kind
        self.file: Path = arguments.file
        self.cores: int = arguments.cores
        self.scratch = scratch

    def run(self) -> Any:
        """Prepare the file."""
        raise NotImplementedError

    def examples(self, result: Any) -> Examples:
        """Ids and labels of what `run` gave; labels None where it has none to compare."""
        raise NotImplementedError


class Ours(Contender):
    """`prepare_data` with the work that the others do."""

    checks = False

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        super().__init__(arguments, scratch)
        from llmtune.config.data import FilesConfig
        from llmtune.data.preparing.prepared import prepare_data

        others: dict[str, Any] = {}
        if not self.checks:
            others = {"find_near_duplicates": False, "outliers": "ignore", "personal_data": "ignore"}
        self.config = FilesConfig(
            path=str(self.file), max_seq_len=2**20, num_workers=self.cores if self.cores > 1 else 0, **others
        )
        self.prepare = prepare_data

    def run(self) -> Any:
        """Scan, decide, write."""
        return self.prepare(self.config, self.tokenizer, "of the benchmark", self.scratch / "cache")

    def examples(self, result: Any) -> Examples:
        """Those of every split."""
        for name in ("train", "validation", "test"):
            table = result.split(name)
            yield from ((table.input_ids(index), table.labels(index)) for index in range(len(table)))


class OursAllChecks(Ours):
    """`prepare_data` as it is by default."""

    checks = True


class DatasetsMap(Contender):
    """`datasets` as its documentation has it: batched, a process a core."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        super().__init__(arguments, scratch)
        import datasets

        datasets.disable_progress_bars()
        self.datasets = datasets
        self.encode = {"text": self._encode_text, "completion": self._encode_pair, "chat": self._encode_chat}[self.kind]

    def load(self) -> Any:
        """The file's rows."""
        cache = str(self.scratch / "datasets")
        return self.datasets.load_dataset("json", data_files=str(self.file), split="train", cache_dir=cache)

    def run(self) -> Any:
        """Map, drop duplicates, split."""
        rows = self.load()
        table = rows.map(
            self.encode, batched=True, num_proc=self.cores if self.cores > 1 else None, remove_columns=rows.column_names
        )
        hashes = np.array(table["content_hash"])
        first = np.sort(np.unique(hashes, return_index=True)[1])
        is_test = np.array([int(found[:8], 16) for found in hashes[first]]) < TEST_SHARE * 2**32
        return [table.select(first[is_test]), table.select(first[~is_test])]

    def examples(self, result: Any) -> Examples:
        """Those of both splits."""
        for split in result:
            for row in split:
                yield row["input_ids"], row["labels"]

    def _ids(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, **options)

    def _encode_text(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        end = [self.tokenizer.eos_token_id]
        ids = [found + end for found in self._ids(batch["text"])["input_ids"]]
        return {"input_ids": ids, "labels": ids, "content_hash": [_hash(text) for text in batch["text"]]}

    def _encode_pair(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        end = [self.tokenizer.eos_token_id]
        prompts = self._ids(batch["prompt"])["input_ids"]
        completions = [found + end for found in self._ids(batch["completion"])["input_ids"]]
        pairs = list(zip(prompts, completions, strict=True))
        texts = zip(batch["prompt"], batch["completion"], strict=True)
        return {
            "input_ids": [prompt + completion for prompt, completion in pairs],
            "labels": [[IGNORED] * len(prompt) + completion for prompt, completion in pairs],
            "content_hash": [_hash(json.dumps(pair)) for pair in texts],
        }

    def _encode_chat(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = self.tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        found = self._ids(texts, return_offsets_mapping=True)
        labels = []
        for text, ids, offsets in zip(texts, found["input_ids"], found["offset_mapping"], strict=True):
            starts = np.array([start for start, _ in offsets])
            answers = [match.span(1) for match in ANSWER.finditer(text)]
            trained = np.any([(starts >= start) & (starts < end) for start, end in answers], axis=0)
            labels.append(np.where(trained, ids, IGNORED).tolist())
        hashes = [_hash(json.dumps(messages)) for messages in batch["messages"]]
        return {"input_ids": found["input_ids"], "labels": labels, "content_hash": hashes}


class Library(Contender):
    """The `tokenizers` library alone, which uses all cores by itself."""

    def run(self) -> Any:
        """Tokenise."""
        backend, end = self.tokenizer.backend_tokenizer, [self.tokenizer.eos_token_id]

        def encoded(texts: list[str]) -> list[list[int]]:
            return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

        ids: list[list[int]] = []
        with self.file.open("rb") as lines:
            while rows := [json.loads(line) for line in islice(lines, LIBRARY_BATCH)]:
                if self.kind == "chat":
                    chats = [row["messages"] for row in rows]
                    ids += encoded(self.tokenizer.apply_chat_template(chats, tokenize=False))
                elif self.kind == "text":
                    ids += [found + end for found in encoded([row["text"] for row in rows])]
                else:
                    found = encoded([text for row in rows for text in (row["prompt"], row["completion"])])
                    ids += [one + other + end for one, other in zip(found[::2], found[1::2], strict=True)]
        return ids

    def examples(self, result: Any) -> Examples:
        """The ids alone."""
        return ((ids, None) for ids in result)


class Trl(DatasetsMap):
    """What SFTTrainer does with a data set before it trains; no hashes, duplicates or splits."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        super().__init__(arguments, scratch)
        self.prepare: Any = import_module("trl").SFTTrainer._prepare_dataset

    def run(self) -> Any:
        """Add end tokens, tokenise, make labels."""
        trains_answers = "{% generation" in (self.tokenizer.chat_template or "")
        settings = SimpleNamespace(
            dataset_num_proc=self.cores if self.cores > 1 else None,
            dataset_text_field="text",
            assistant_only_loss=self.kind == "chat" and trains_answers,
            max_length=None,
            shuffle_dataset=False,
        )
        trainer = SimpleNamespace(_tokenizer=self.tokenizer, chat_template=None, completion_only_loss=True)
        return [self.prepare(trainer, self.load(), self.tokenizer, settings, False, None, "train")]

    def examples(self, result: Any) -> Examples:
        """The ids alone."""
        return ((ids, None) for ids, _ in super().examples(result))


CONTENDERS: dict[str, Callable[[argparse.Namespace, Path], Contender]] = {
    "ours": Ours,
    "ours with checks": OursAllChecks,
    "datasets.map": DatasetsMap,
    "library": Library,
    "TRL": Trl,
}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
