"""`model`: which base model is specialised."""

from typing import Literal

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ModelConfig:
    """A base model: the embedded one, a folder, or an id on the Hugging Face Hub."""

    name: str
    """Short name, used in the names of runs."""
    source: Literal["embedded", "folder", "hub"]
    """Where the weights are: in an installed package, in the folder `path`, or on the Hub under `id`."""
    id: Text | None = None
    """Hub id such as `HuggingFaceTB/SmolLM2-135M`; only with `source: hub`."""
    revision: Text | None = None
    """Branch, tag or commit on the Hub; null takes the newest. Recorded as the commit that it resolved to."""
    path: Text | None = None
    """Folder in the Hugging Face format; only with `source: folder`."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run; needs `revision` to be a full commit hash."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention implementation: `auto` computes packed examples apart from each other without padding;
    `sdpa` and `eager` are transformers' own and train on padded rows."""
    decoder: Literal["auto", "transformers"] = "auto"
    """Who computes the blocks of packed rows: `auto` takes llmtune's own where the model is built like Llama and they
    give its loss and gradient, which is faster; `transformers` always takes the model's own."""
