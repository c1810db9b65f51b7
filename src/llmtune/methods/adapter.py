"""LoRA adapters through PEFT: made, named, saved and put back."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmtune.config.method import AdapterConfig
from llmtune.errors import ConfigError, ModelError
from llmtune.methods.dropout import AdapterDropout
from llmtune.models.adapter_files import WEIGHTS_FILE
from llmtune.models.token_rows import unwrapped, use_token_rows
from llmtune.seeding import derived_seed


def add_adapter(
    base: PreTrainedModel,
    config: AdapterConfig,
    seed: int,
    new_ids: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> PeftModel:
    """A PEFT model whose adapters alone train, and the rows of new tokens.

    Args:
        base: the frozen model, quantised or not.
        config: rank, scale, dropout and targets.
        seed: equal seeds give equal adapters; torch's global random state isn't moved.
        new_ids: tokens whose rows of the embeddings train, and of an output head that isn't tied to them.
        dtype: type of all that trains.

    Raises:
        ConfigError: a name in `method.target_modules` is no linear layer of the model, or PEFT can't train rows of it.
    """
    targets = config.target_modules
    if targets != "all-linear":
        _check_targets(base, tuple(targets))
    rows = _matrices_of_tokens(base, config) if new_ids else []
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=_stores_transposed(base),
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices={name: list(new_ids) for name in rows} or None,
        revision=getattr(base.config, "_commit_hash", None),
    )
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "adapter"))
        model = peft.get_peft_model(base, lora, autocast_adapter_dtype=True)
    assert isinstance(model, PeftModel)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, LoraLayer) and config.dropout > 0:
            module.lora_dropout["default"] = AdapterDropout(config.dropout)
    if new_ids:
        _check_rows_train(model)
    use_token_rows(model)
    return model


def linear_layers(base: PreTrainedModel) -> list[str]:
    """Full names of the linear layers that can get an adapter; the output head only where it isn't tied."""
    head = base.get_output_embeddings() if base.config.get_text_config().tie_word_embeddings else None
    return [
        name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def adapter_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's own tensors, by the names that PEFT gives them in a file."""
    return get_peft_model_state_dict(_as_peft(model), save_embedding_layers=False)


def save_adapter(model: nn.Module, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, as PEFT reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = copy.copy(_as_peft(model).peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def restore_adapter(model: nn.Module, folder: Path) -> None:
    """Put saved adapter weights into a model of the same shape, bit for bit.

    Raises:
        ModelError: the file is missing, damaged, or holds other weights than the model has.
    """
    saved = _read(folder / WEIGHTS_FILE)
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter_weights(model).items()}
    if {name: tuple(tensor.shape) for name, tensor in saved.items()} != shapes:
        odd = sorted(set(saved) ^ set(shapes)) or [name for name in shapes if tuple(saved[name].shape) != shapes[name]]
        raise ModelError(
            f"the adapter in {folder} doesn't fit the model ({len(odd)} weights differ, such as {odd[0]}); "
            "it belongs to another base model, rank or target_modules"
        )
    set_peft_model_state_dict(_as_peft(model), saved)


def attach_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with a saved adapter in float32, in evaluation mode; nothing requires gradients.

    Raises:
        ModelError: the folder holds no adapter, or one of another model.
    """
    _read(folder / WEIGHTS_FILE)
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=False, autocast_adapter_dtype=True)
    except (ValueError, RuntimeError, KeyError, IndexError, OSError) as error:
        raise ModelError(f"the adapter in {folder} can't be put on {base.name_or_path}: {error}") from error
    use_token_rows(model)
    return model.eval()


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise ModelError(f"{path} isn't a readable adapter ({error})") from error


def _as_peft(model: nn.Module) -> PeftModel:
    assert isinstance(model, PeftModel), f"an adapter lives in a PeftModel, not in {type(model).__name__}"
    return model


def _stores_transposed(base: PreTrainedModel) -> bool:
    """Whether the architecture's layers are GPT-2's Conv1D, which hold [in, out].

    A quantised one remembers what it replaced: its adapter must load on the unquantised base too.
    """
    return any(isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D for module in base.modules())


def _matrices_of_tokens(base: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """Full names of the modules that have a row a token: the embeddings, and an output head that isn't tied to them.

    Raises:
        ConfigError: PEFT can't train rows of the head.
    """
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = {module: name for name, module in base.named_modules()}
    if getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"data.add_tokens: the output head of {base.name_or_path} has a bias, which PEFT leaves out where single "
            "tokens train; set method=full."
        )
    if base.config.get_text_config().tie_word_embeddings or head is None:
        return [names[embeddings]]
    targets = () if isinstance(config.target_modules, str) else config.target_modules
    if any(names[head] == target or names[head].endswith(f".{target}") for target in targets):
        raise ConfigError(
            f"data.add_tokens: trains rows of the output head, and method.target_modules puts an adapter on it; leave "
            f"{names[head]} out, or set method=full."
        )
    return [names[embeddings], names[head]]


def _check_rows_train(model: PeftModel) -> None:
    """Check that PEFT trains the rows of embeddings and head alike.

    Raises:
        ConfigError: it doesn't, as it takes a tied head for an untied one.
    """
    inner: Any = model.get_base_model()
    modules = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    if any(module is not None and unwrapped(module)[1] is None for module in modules):
        raise ConfigError(
            f"data.add_tokens: PEFT can't train single tokens of {inner.name_or_path}, as it doesn't see that the "
            "output head is tied to the embeddings; set method=full."
        )


def _check_targets(base: PreTrainedModel, targets: tuple[str, ...]) -> None:
    names = linear_layers(base)
    unknown = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if unknown:
        known: Any = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        raise ConfigError(
            [
                f"method.target_modules: {target} is no linear layer of {base.name_or_path}; known: {known}; "
                "or set all-linear"
                for target in unknown
            ]
        )
