"""Settings of several experiments, key by key."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

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
    """The values of every key that is not the same in all of these plain data. What is a block in one and a value in
    another (one number, or one by configuration) is compared as a whole. Keys that some lack do not count: they were
    not there in all versions.
    """
    keys = {key for one in settings for key, _ in flat(one)}
    blocks = [dict(flat(one, keys)) for one in settings]
    shared = [key for key in (blocks[0] if blocks else {}) if all(key in block for block in blocks)]
    values = {key: [block[key] for block in blocks] for key in shared}
    return {key: of_all for key, of_all in values.items() if any(one != of_all[0] for one in of_all)}
