"""Every llmtune command line of the README and of docs composes, its example files and runs put in place."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from llmtune.arguments import PLAIN_COMMANDS, parse
from llmtune.cli import run
from llmtune.commands import compare
from llmtune.commands.env import parse_places
from llmtune.commands.run_request import parse_request
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.config.schema import keys
from llmtune.config.validate import flatten
from llmtune.runs.lookup import new_sweep_folder, start_run_folder
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.job import SweepJob
from llmtune.sweep.plan import SweepPlan, write_plan

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = (["llmtune"], ["python", "-m", "llmtune"])
FILE = re.compile(r"[\w./-]+\.(jsonl|json|txt|csv|parquet)")
RUN_KEYS = ("run", "method.adapter", "--model-path")


@dataclass(frozen=True)
class Documented:
    """A command line of a page, without the program's name."""

    page: str
    line: str
    words: tuple[str, ...]


def commands_in(page: str, text: str) -> Iterator[Documented]:
    """The llmtune command lines of a page's bash blocks."""
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue
            program = next((program for program in PROGRAMS if words[: len(program)] == program), None)
            if program:
                yield Documented(page, line.strip(), tuple(words[len(program) :]))


COMMANDS = [
    found
    for page in PAGES
    for found in commands_in(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"))
]


class Place:
    """A working folder with the files and the run that documents name."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.run = start_run_folder(config)
        RunStatusFile(self.run.status_file).start("7e12" + 28 * "0")
        checkpoint = self.run.checkpoint(100)
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "base_model_name_or_path": "x/y", "r": 16, "lora_alpha": 32, "lora_dropout": 0.1,'
            ' "target_modules": ["q_proj"]}',
            encoding="utf-8",
        )
        (checkpoint / "adapter_model.safetensors").touch()
        for link in (self.run.best_checkpoint, self.run.final_checkpoint):
            link.symlink_to(checkpoint.name)
        RunStatusFile(self.run.status_file).end("FINISHED")
        job = SweepJob(name="seed=1", folder=self.run, differences={}, command=[])
        sweep = new_sweep_folder(self.run.path.parent, datetime.now())
        write_plan(sweep, SweepPlan(stages=["train"], working_folder=folder, jobs=[job]))

    def filled(self, words: tuple[str, ...]) -> list[str]:
        """The words, with this folder's run for the documents' and with the files that they name."""
        found = []
        for before, word in zip(("", *words), words, strict=False):
            key, equals, value = word.partition("=")
            named = value if equals else word
            if (key if equals else before) in RUN_KEYS and named != "latest":
                named = self._run(named)
            elif named.startswith("runs/"):
                named = named.replace("runs/NAME", str(self.run.path))
            if FILE.fullmatch(named):
                shutil.copyfile(ASSETS / "examples.jsonl", self.folder / Path(named).name)
            found.append(f"{key}={named}" if equals else named)
        return found

    def _run(self, named: str) -> str:
        checkpoint = re.search(r"checkpoint-\w+", named)
        return str(self.run.checkpoints / checkpoint.group() if checkpoint else self.run.path)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    composed = compose(Composition(overrides=["data=embedded_code"]))
    assert isinstance(composed, RunConfig)
    return composed


@pytest.fixture
def place(config, tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, config)


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 60
    assert {"README.md", "docs/tutorial.md", "docs/commands.md", "docs/methods.md"} <= {each.page for each in COMMANDS}


@pytest.mark.parametrize(
    "documented", {each.words: each for each in COMMANDS}.values(), ids=lambda each: f"{each.page}: {each.line}"
)
def test_a_documented_command_composes(documented, place, capsys) -> None:
    words = place.filled(documented.words)
    if words and words[0] in PLAIN_COMMANDS:
        parse_plain = {"compare": compare.parse_request, "runs": parse_request, "env": parse_places}
        assert parse_plain[words[0]](words[1:]) is not None
        return
    if "--help" in words or "--cfg" in words:
        assert run(words) == 0
        return
    status = run([*words, "--cfg", "job"])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    composed = flatten(yaml.safe_load(shown.out))
    typed = parse(words).typed
    assert differing(typed, composed) == {}


def differing(typed: dict[str, str], composed: dict) -> dict[str, str]:
    """Keys that were typed with one value and don't have it."""
    known = {key.name for key in keys()} - {"method.adapter"}  # the run's adapter, by its folder
    single = {key: value for key, value in typed.items() if key in known and ("," not in value or "[" in value)}
    return {key: value for key, value in single.items() if not same(composed[key], value)}


def same(value: object, typed: str) -> bool:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(typed) == float(value)
    return str(value) in (typed, str(yaml.safe_load(typed)), str(Path(typed).absolute()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nllmtune train --epoch 3\n```\n", "--epoch: there is no such option"),
        ("```bash\nsource x\npython -m llmtune \\\n    data.path=my.jsonl method.rnak=2  # note\n```\n", "method.rnak"),
        ("  ```bash\n  llmtune train run=nowhere\n  ```\n", "nowhere"),
    ],
)
def test_a_wrong_command_is_noticed(text, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (documented,) = commands_in("page.md", text)
    assert run([*documented.words, "--cfg", "job"]) == 2
    assert message in capsys.readouterr().err


def test_a_value_that_is_lost_is_noticed() -> None:
    assert differing({"train.num_epochs": "5", "seed": "1"}, {"train.num_epochs": 3, "seed": 1}) == {
        "train.num_epochs": "5"
    }


def test_other_blocks_are_left_alone() -> None:
    assert (
        list(commands_in("page.md", '```text\nllmtune nonsense\n```\n```bash\nmake run\neval "$(llmtune)"\n```\n'))
        == []
    )
