"""Settings of several experiments, key by key."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from segpipe.params import Params
from segpipe.params.fields import Section

Block = Mapping[str, Any]


def flat(block: Block, whole: Collection[str] = (), prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of plain data; lists, empty blocks and the keys of `whole` stay in one piece."""
    for name, value in block.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in whole:
            yield from flat(value, whole, f"{key}.")
        else:
            yield key, value


def differing(settings: Sequence[Block]) -> dict[str, list[Any]]:
    """The values of every key that is not the same in all of these plain data, whose blocks are those of params.yaml.

    A key is a setting: where its value is a mapping (class weights, one value by configuration), that is compared as a
    whole. Settings that some lack do not count: they were not there in all versions.
    """
    keys = {*_settings(Params), *(key for one in settings for key, _ in flat(one))}
    blocks = [dict(flat(one, keys)) for one in settings]
    shared = [key for key in (blocks[0] if blocks else {}) if all(key in block for block in blocks)]
    values = {key: [block[key] for block in blocks] for key in shared}
    return {key: of_all for key, of_all in values.items() if any(one != of_all[0] for one in of_all)}


def _settings(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted keys of all settings of the schema; what is inside their values is the user's choice."""
    for name, field in model.model_fields.items():
        key, inner = f"{prefix}{field.alias or name}", field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _settings(inner, f"{key}.")
        else:
            yield key
