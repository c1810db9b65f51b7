"""What a sweep varies: keys that only some of its jobs' options have, and keys that a file names."""

from collections.abc import Iterator, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from llmtune.config.schema import SHAPED, groups, known_names

_PARAMS = "hydra.sweeper.params"


def take_out_lacking(configs: Sequence[DictConfig]) -> list[set[str]]:
    """Take out of each job's config the keys that its option lacks and that another job's has.

    A key that no job's option has stays, to be refused.

    Args:
        configs: the composed config of each job.

    Returns:
        For each job the dotted keys that were taken out.
    """
    taken: list[set[str]] = [set() for _ in configs]
    for group, named_by in SHAPED.items():
        shapes = [_shape(config, f"{group}.{named_by}") or "" for config in configs]
        known = {shape: set(known_names(group, shape)) for shape in shapes}
        anywhere = set[str]().union(*known.values())
        for config, shape, out in zip(configs, shapes, taken, strict=True):
            if known[shape]:
                out.update(_take_out(config, group, anywhere - known[shape]))
    return taken


def _take_out(config: DictConfig, group: str, keys: set[str]) -> set[str]:
    """Take those of the dotted keys that the group's section has out of it; which they were."""
    found = {key for key in keys if key.partition(".")[2] in config[group]}
    with open_dict(config):
        for key in found:
            del config[group][key.partition(".")[2]]
    return found


def left_out(configs: Sequence[DictConfig], taken: Sequence[set[str]]) -> Iterator[str]:
    """A sentence for each option that keys were left out for.

    Args:
        configs: the composed config of each job.
        taken: what `take_out_lacking` returned.
    """
    found: dict[str, dict[str, None]] = {}
    for config, keys in zip(configs, taken, strict=True):
        for key in sorted(keys):
            group = key.partition(".")[0]
            option = f"{group}={_shape(config, f'{group}.{SHAPED[group]}')}"
            found.setdefault(option, {})[key] = None
    for option, keys in found.items():
        if len(keys) == 1:
            yield f"{next(iter(keys))} is left out for {option}, which has no such key"
        else:
            yield f"{', '.join(keys)} are left out for {option}, which has no such keys"


def without(overrides: Sequence[str], keys: set[str]) -> list[str]:
    """The overrides but for those of these keys."""
    return [override for override in overrides if override.lstrip("+").partition("=")[0] not in keys]


def take_as_typed(config: DictConfig) -> None:
    """Have the sweep's keys that a file names count as typed ones do.

    They may then set what an option's own file leaves out, and one that is typed too takes the place of the file's.

    Args:
        config: what Hydra composed; changed in place.
    """
    params = OmegaConf.select(config, _PARAMS)
    if not isinstance(params, DictConfig) or not params:
        return
    content = OmegaConf.to_container(params, resolve=False)
    assert isinstance(content, Mapping)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweeper.params = {_as_typed(str(key)): value for key, value in content.items()}


def _as_typed(key: str) -> str:
    plain = key.lstrip("+")
    if plain in groups():
        return plain
    is_plain_key = plain.replace(".", "").replace("_", "").isalnum() and not plain.startswith("hydra")
    return f"++{plain}" if is_plain_key else key


def _shape(config: DictConfig, key: str) -> str | None:
    found = OmegaConf.select(config, key, throw_on_missing=False) if _is_mapping(config, key) else None
    return str(found) if found is not None else None


def _is_mapping(config: DictConfig, key: str) -> bool:
    return isinstance(config.get(key.partition(".")[0]), DictConfig)
