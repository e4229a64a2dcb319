"""Reading params.yaml: everything that is wrong with it, at once, in words that say what to change."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.params.fields import IMPORT_PATH
from segpipe.params.schema import Params

PARAMS_FILE = Path("params.yaml")


BOOL = "tag:yaml.org,2002:bool"


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; the standard reader silently takes the last one."""

    # `off` is a precision: true and false are the booleans of YAML 1.2, which DVC writes; 1.1 has on, off, yes, no too
    yaml_implicit_resolvers = {  # noqa: RUF012  # as the class that it is taken from has it
        first: [(tag, pattern) for tag, pattern in found if tag != BOOL]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((node.value[i][0] for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice.value!r} stands here twice", twice.start_mark)
        return super().construct_mapping(node, deep)


_UniqueKeys.add_implicit_resolver(BOOL, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
# 3e-4 and 1.5e4 are numbers, as in YAML 1.2; YAML 1.1 reads them as text
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and validate params.yaml.

    Raises SegpipeError naming file, key, value, what is expected and the nearest valid key, for all errors at once.
    """
    return validated(parse(_text(path), path), path)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise SegpipeError(
            problem(
                "no settings",
                where=path,
                found="no such file",
                expected="params.yaml in the working directory",
                cure="run from the project's folder, or make an experiment: segpipe init FOLDER",
            )
        ) from None


def parse(text: str, where: object) -> Any:
    """YAML as plain data; nothing is known yet of keys and values. Raises SegpipeError for what is no YAML."""
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise SegpipeError(
            problem(
                "params.yaml is not YAML",
                where=where,
                found=error,
                expected="key: value lines",
                cure="correct the line named above",
            )
        ) from None


def validated(raw: Any, path: Path) -> Params:
    """The settings of plain data. path : what the messages call them. Raises SegpipeError as `load` does."""
    raise_all(str(path), problems(raw, path))
    return Params.model_validate(raw)


def problems(raw: Any, path: Path) -> list[str]:
    """What is wrong with plain data as settings; path : what the messages call them."""
    try:
        Params.model_validate(raw)
    except ValidationError as error:
        by_key: dict[str, list[Any]] = {}
        for item in error.errors():
            by_key.setdefault(".".join(_keys(item)), []).append(item)
        return [_explain(path, items) for items in by_key.values()]
    return []


def section(params: Params, name: str) -> dict[str, Any]:
    """One block as plain data, as it enters digests and Snakemake's params."""
    return params.model_dump(by_alias=True, mode="json")[name]


def of_results(params: Params) -> dict[str, Any]:
    """Everything that says what comes out, as plain data: not how the work is done, where data come from, what else is
    tried.
    """
    return params.model_dump(by_alias=True, mode="json", exclude={"runtime", "download", "search"})


def _keys(item: Any) -> list[str]:
    """Where an error is; without the type that pydantic tried and adds where a key takes several."""
    tried = r"constrained-|(list|dict|literal)\[|(int|float|str|bool)$|\[key\]"
    return [str(key) for key in item["loc"] if not re.match(tried, str(key))]


def _explain(path: Path, items: list[Any]) -> str:
    """What pydantic says of one key, once for each type that it takes, as a problem in our words."""
    item, keys = items[0], _keys(items[0])
    key = ".".join(keys) or "(top level)"
    if item["type"] == "extra_forbidden":
        valid = _valid_keys(item["loc"][:-1])
        near = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.5)
        cure = f"did you mean {near[0]!r}?" if near else f"remove it; valid keys: {', '.join(valid)}"
        return problem(
            "unknown key",
            where=f"{path}: {key}",
            found=repr(item["input"]),
            expected=f"one of {', '.join(valid)}",
            cure=cure,
        )
    if item["type"] == "missing":
        return problem(
            "missing key",
            where=f"{path}: {key}",
            found="nothing",
            expected="a value",
            cure=f"add the line '{keys[-1]}: ...' (the params.yaml of a fresh clone shows all of them)",
        )
    if item["type"] == "value_error":  # a rule of ours over several settings
        return problem(
            "settings that exclude each other",
            where=f"{path}: {key}",
            found=item["ctx"]["error"],
            expected="settings that go together",
            cure="change one of those named",
        )
    near = difflib.get_close_matches(str(item["input"]), _choices(items), n=1, cutoff=0.5)
    return problem(
        "impossible value",
        where=f"{path}: {key}",
        found=repr(item["input"]),
        expected="; or: ".join(dict.fromkeys(_expectation(item) for item in items)),
        cure=f"did you mean {near[0]!r}?" if near else "change the value; the comment beside it says what it is",
    )


def _choices(items: list[Any]) -> list[str]:
    """The words that a key takes."""
    return [word for item in items if item["type"] == "literal_error" for word in re.findall(r"'(.*?)'", item["msg"])]


def _expectation(item: Any) -> str:
    """What pydantic expects, in words."""
    if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] == IMPORT_PATH:
        return "an import path, package.module:name"
    return str(item["msg"])


def _valid_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys that a block of the schema takes."""
    model: type[BaseModel] = Params
    for key in location:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        model = fields[key].annotation  # type: ignore[assignment]
    return [field.alias or name for name, field in model.model_fields.items()]
