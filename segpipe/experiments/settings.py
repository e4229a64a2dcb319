"""Settings of several experiments, key by key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ABSENT = "-"  # a key that one file has and another has not


def flat(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of plain data; lists and empty blocks stay in one piece."""
    for key, value in block.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of every key that is not the same in all of these plain data; ABSENT where there is no such key."""
    blocks = [dict(flat(one)) for one in settings]
    keys = list(dict.fromkeys(key for block in blocks for key in block))
    values = {key: [block.get(key, ABSENT) for block in blocks] for key in keys}
    return {key: of_all for key, of_all in values.items() if any(one != of_all[0] for one in of_all)}
