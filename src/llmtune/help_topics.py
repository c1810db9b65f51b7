"""What `llmtune STAGE --help` and `llmtune COMMAND --help` say, but for the keys, which are read from the schema."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A stage or a command in words."""

    summary: str
    """One line for the list on the main page."""
    usage: str
    """What may stand after `llmtune NAME`."""
    text: str
    """What it does."""
    reads: str
    """Where what it needs comes from."""
    writes: str
    """What is there afterwards."""
    groups: tuple[str, ...] = ()
    """Groups whose options and keys belong to it."""
    keys: tuple[str, ...] = ()
    """Further keys that it reads."""
    options: tuple[tuple[str, str], ...] = ()
    """Options of its own, each with its meaning."""
    examples: tuple[str, ...] = ()
    """Command lines that begin with `llmtune`."""


_STAGE_USAGE = "[GROUP=OPTION ...] [KEY=VALUE ...] [--FLAG VALUE ...] [OPTION ...]"

STAGES: Mapping[str, Topic] = {
    "prepare": Topic(
        summary="examples to tokens, split into training, validation and test set",
        usage=_STAGE_USAGE,
        text=(
            "Reads every example, names those that can't be read by file and line, cleans the rest, splits it by "
            "content into training, validation and test set, and turns it into tokens. Shows what the model will learn "
            "from, and what to look at before training. The same data with the same settings is prepared once and then "
            "taken from the cache."
        ),
        reads=(
            "data.path: a file, folder or glob (JSONL, JSON, TXT, CSV, Parquet; gzip, zstd), a data set of the Hub or "
            "of ours, or several; the model's tokenizer"
        ),
        writes="token tables in cache_dir; data_report.html, counts and digests in the run folder",
        groups=("data",),
        keys=("cache_dir",),
        examples=(
            "llmtune prepare --model gpt2 --train-data my.jsonl",
            "llmtune prepare data.path=my.jsonl data.eval_path=held_out.jsonl data.max_seq_len=1024",
            "llmtune prepare data.path=my.jsonl data.duplicates=near data.personal_data=mask",
            "llmtune prepare data=hub data.id=tatsu-lab/alpaca data.shape=instruction",
        ),
    ),
    "train": Topic(
        summary="tokens to weights",
        usage=_STAGE_USAGE,
        text=(
            "Trains the model by the method that you choose and shows first what it derived: trainable parameters, "
            "tokens a step, steps, precision, memory. Prepares the data first where that isn't done. With run=RUN it "
            "goes on exactly where that run stopped."
        ),
        reads="the prepared data, the base model; with run=, the run's newest checkpoint",
        writes="checkpoints, metrics by step and plots in the run folder; the same numbers in MLflow",
        groups=("method", "train", "hardware"),
        keys=("seed", "runs_dir"),
        examples=(
            "llmtune train --model gpt2 --train-data my.jsonl --method lora --epochs 3 --batch-size 4",
            "llmtune train method=qlora method.rank=8 data.path=my.jsonl train.learning_rate=1e-4",
            "llmtune train run=latest",
        ),
    ),
    "evaluate": Topic(
        summary="loss, perplexity and samples on the test set, beside those of the base model",
        usage=_STAGE_USAGE,
        text=(
            "Measures the tuned model, and the base model on the same examples: loss in nats per supervised token, "
            "perplexity, bits per byte, tokens per second. Writes answers of both to a few test prompts."
        ),
        reads="the test set, or the whole of data.eval_path; a run's trained weights, or a model or adapter as it is",
        writes="metrics, each example's loss, and samples in the run folder; the same numbers in MLflow",
        groups=("evaluate",),
        keys=("data.eval_path", "data.num_test_examples"),
        examples=(
            "llmtune evaluate run=latest",
            "llmtune evaluate --model-path runs/NAME --eval-data held_out.jsonl",
            "llmtune evaluate run=latest evaluate.base=false evaluate.num_samples=10",
        ),
    ),
    "export": Topic(
        summary="weights to a folder that other programs load, checked after reloading",
        usage=_STAGE_USAGE,
        text=(
            "Writes the tuned model in the formats that you name, each into a folder of its own, loads it again as "
            "others would, in a process of its own, and compares its answers with those of the model that was trained. "
            "A format that differs more than its bound fails. Beside the files stands a run.py that needs nothing of "
            "llmtune."
        ),
        reads="a run's trained weights and its base model",
        writes="export.path, or `exports` in the run folder; a model card in each format's folder",
        groups=("export",),
        examples=(
            "llmtune export run=latest",
            "llmtune export run=latest export.formats=[hf,onnx,gguf] export.path=shipped",
            "llmtune export --model-path runs/NAME --format onnx --output-path ./exported_model",
            "llmtune export run=latest export.register=my-model",
        ),
    ),
}
"""The stages in their order."""

COMMANDS: Mapping[str, Topic] = {
    "generate": Topic(
        summary="write text with a tuned model",
        usage="[run=RUN] [KEY=VALUE ...] [--FLAG VALUE ...]",
        text=(
            "Goes on from a prompt. Without run= it takes the newest trained run and names it; where there is none, "
            "the base model. The prompt is taken as you type it."
        ),
        reads="a run, a checkpoint in one, an MLflow run id, `latest`; or a model or PEFT adapter: folder or Hub id",
        writes="nothing but the text",
        groups=("generate",),
        examples=(
            'llmtune generate run=latest generate.prompt="Once upon a time"',
            'llmtune generate --model-path runs/NAME --prompt "def fibonacci(" --temperature 0',
            'llmtune generate run=latest --prompt "In a land where" --temperature 1.0 --num-samples 3',
        ),
    ),
    "compare": Topic(
        summary="which method is good enough, and what it costs: a sweep's runs with error bars",
        usage="[run=SWEEP | runs=[A,B,...]] [KEY=VALUE ...]",
        text=(
            "Compares the runs of a sweep, or any others, from their records: losses with 95 % intervals over "
            "seeds and examples, how much of full fine-tuning's gain each method reaches, costs, and a verdict. "
            "Every sweep ends with it; without run= it takes the newest sweep. Runs that can't be compared fairly "
            "are shown and not ranked, and the exit status is 1 then."
        ),
        reads="each test example's loss and the records of the runs; a sweep's folder or MLflow run, `latest`, runs",
        writes="comparison.html, .md and .json in the sweep's folder; its MLflow run",
        groups=("compare",),
        keys=("runs_dir", "tracking.uri"),
        examples=(
            "llmtune compare",
            "llmtune compare run=latest compare.margin=0.1 compare.price_per_hour=2.5",
            "llmtune compare runs=[runs/A,runs/B]",
        ),
    ),
    "runs": Topic(
        summary="list the runs: status, method, loss, time, place; follow a live one",
        usage="[KEY=VALUE ...] [OPTION ...]",
        text=(
            "Lists the runs of runs_dir, newest first. KEY=VALUE filters by any key of the config, typed as at the "
            "start of a run; status= and sweep= filter too. --follow shows a run that is going on in another terminal, "
            "line by line; Ctrl-C ends the watching, not the run."
        ),
        reads="the run folders of runs_dir",
        writes="nothing",
        keys=("runs_dir",),
        options=(
            ("--status S", "only runs of this status: finished, running, failed, killed, ..."),
            ("--method M", "only runs of this method; --model NAME: of this model"),
            ("--sort KEY", "by started (newest first), loss (lowest first), time (longest first) or name"),
            ("--limit N", "at most N runs"),
            ("--follow", "show a live run as it goes on: the newest, or run=RUN"),
            ("--json", "the same as JSON"),
        ),
        examples=(
            "llmtune runs",
            "llmtune runs method=lora --status finished --sort loss --limit 5",
            "llmtune runs --follow run=latest",
        ),
    ),
    "env": Topic(
        summary="versions, device, precision, 4-bit, disk, store, Hub: what is wrong and the cure",
        usage="[KEY=VALUE ...] [--json]",
        text=(
            "Looks at the machine as a run would find it: versions of the libraries, GPUs or CPU, the precision that "
            "train.precision=auto would take, whether 4-bit works, room on the disk, MLflow's store, the Hub. What is "
            "wrong comes with its cure, and the exit status is 1 then."
        ),
        reads="the machine and the environment",
        writes="nothing",
        keys=("runs_dir", "cache_dir", "tracking.uri"),
        options=(("--json", "the same as JSON"),),
        examples=("llmtune env", "llmtune env --json"),
    ),
    "ui": Topic(
        summary="open MLflow's pages on the recorded runs",
        usage="[KEY=VALUE ...]",
        text=(
            "Serves MLflow's pages on this machine until Ctrl-C and prints the links: all runs, and where there is a "
            "sweep, the page that shows its jobs side by side."
        ),
        reads="MLflow's store: mlflow.db in the working folder, tracking.uri or MLFLOW_TRACKING_URI",
        writes="nothing",
        keys=("tracking.uri", "tracking.ui_port", "tracking.experiment"),
        examples=("llmtune ui", "llmtune ui tracking.ui_port=5001"),
    ),
}

OPTIONS: tuple[tuple[str, str], ...] = (
    ("-m, --multirun", "every combination of comma-separated values, a process each"),
    ("--cfg job", "show the resolved config and stop"),
    ("--config-name FILE", "start from this config, e.g. runs/NAME/config.yaml of an earlier run"),
    ("--config-dir DIR", "another folder of config files, beside ./conf and ./experiments"),
    ("--shell-completion", 'eval "$(llmtune --shell-completion install=bash)" completes words on Tab'),
    ("--help, --version", "this page, or with a stage or command its own; --hydra-help: Hydra's"),
)
"""Options that every stage takes."""
