"""The page that `--help` shows."""

from llmtune.config.resources import group_options, option_summary
from llmtune.config.schema import groups

_HEAD = """\
llmtune: fine-tune language models, and know which method is good enough for your data

usage: python -m llmtune [STAGE ... | COMMAND] [GROUP=OPTION ...] [KEY=VALUE ...] [OPTION ...]

Without data, run or experiment it runs the quick start: a small real model on real code, in a few minutes on a CPU.

stages (none named: all four; a stage brings the unfinished ones that it needs)
  prepare    examples to tokens, split into training, validation and test set
  train      tokens to weights
  evaluate   loss, perplexity and samples on the test set, beside those of the base model
  export     weights to a folder that other programs load, checked after reloading

commands
  generate   write text:  generate run=latest generate.prompt="Once upon a time"
  ui         open MLflow's pages on the recorded runs
"""

_TAIL = """\
options
  -m, --multirun      every combination of comma-separated values, a process each, one MLflow parent
  --cfg job           show the resolved config and stop
  --config-dir DIR    another folder of config files
  --help              this page;  --hydra-help: more options

keys: any of the config that `--cfg job` shows. An unknown one is refused with the nearest known one.

examples
  python -m llmtune
  python -m llmtune method=qlora model=Qwen/Qwen3-0.6B data.path=my.jsonl
  python -m llmtune train method=lora method.rank=8 train.num_epochs=1 data.path=my.jsonl
  python -m llmtune -m +method=lora,qlora,full seed=1,2,3 data.path=my.jsonl
  python -m llmtune train run=latest"""


def help_page() -> str:
    """The page: what llmtune does, stages and commands, groups with their options, examples."""
    lines = [_HEAD, "groups (GROUP=OPTION or +GROUP=OPTION)"]
    for group in groups():
        options = group_options(group)
        if len(options) == 1 and group != "experiment":
            lines.append(f"  {group}: {options[0]}")
            continue
        lines.append(f"  {group}:")
        lines += [f"    {option:<24}{option_summary(group, option)}".rstrip() for option in options]
    return "\n".join([*lines, "", _TAIL])
