"""Changing settings in the text of a params.yaml: all that is not changed stays as it is, comments included."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import yaml

from segpipe.errors import SegpipeError, problem
from segpipe.params.reading import parse


def changed(text: str, values: Mapping[str, Any], where: object) -> str:
    """The text with other values, by dotted key: {"train.epochs": 100}.

    A key that the text lacks goes into the block, or takes the place of the value, that it belongs to; there, and where
    a block is replaced as a whole, comments inside are gone. Whether the schema has the key is not looked at.

    where : what messages call the text

    Raises SegpipeError for what is no YAML, and where text and values would not agree afterwards (anchors, say).
    """
    raw = parse(text, where)
    if not isinstance(raw, dict):
        raw, text = {}, ""
    for key, value in values.items():
        raw = put(raw, key, value)
    for key in values:
        text = _edited(text, key.split("."), raw)
    if parse(text, where) != raw:
        found, expected = ", ".join(values), "plain keys and values, without anchors and aliases"
        cure = "write them out, or change the settings by hand"
        raise SegpipeError(
            problem("settings that cannot be changed", where=where, found=found, expected=expected, cure=cure)
        )
    return text


def put(block: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of plain data with another value; what the dotted key leads through becomes a block."""
    name, _, rest = key.partition(".")
    inner = block.get(name)
    return {**block, name: put(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _edited(text: str, keys: list[str], raw: Any) -> str:
    """The value that `keys` lead to, or the last one on the way that the text has, as `raw` has it."""
    node: yaml.Node = yaml.compose(text, yaml.SafeLoader)  # type: ignore[assignment]
    depth, end_of_key = 0, 0
    while depth < len(keys) and (entry := _entry(node, keys[depth])):
        end_of_key, node = entry[0].end_mark.index, entry[1]
        depth += 1
    value = on_one_line(reduce(lambda block, key: block[key], keys[: max(depth, 1)], raw))
    if depth == 0:
        return f"{text.rstrip()}\n{keys[0]}: {value}\n"
    start, end = node.start_mark.index, _end(node)
    if "\n" in text[end_of_key:start]:  # a block on the lines below its key: the value takes the key's own line
        _, newline, rest = text[end:].partition("\n")
        return f"{text[:end_of_key]}: {value}{newline}{rest}"
    if start <= end_of_key + 1:  # nothing stands behind the colon
        return f"{text[:end_of_key]}: {value}{text[end_of_key + 1 :]}"
    return f"{text[:start]}{value}{text[end:]}"


def _entry(node: yaml.Node, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    """Key and value in a block."""
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in entries if name.value == key), None)


def _end(node: yaml.Node) -> int:
    """Where the text of a value ends; a block's own mark stands behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(node, yaml.MappingNode) else last)
    return int(node.end_mark.index)


def on_one_line(value: Any) -> str:
    """A value as YAML has it in one line: null, false, {2d: 12}."""
    dumped: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return dumped.removesuffix("\n").removesuffix("\n...")
