"""What the blocks of params.yaml are made of: the strict block itself and the types of its values."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Configuration = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
FULLRES, LOWRES, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
Normalisation = Literal["ct", "none", "zscore", "rescale_to_0_1", "rgb_to_0_1"]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Spacing = Annotated[list[Positive], Field(min_length=2, max_length=3)]
Patch = Annotated[list[Annotated[int, Field(ge=4)]], Field(min_length=2, max_length=3)]
Column = Annotated[str, Field(min_length=1)]  # of cases.tsv
Task = Annotated[str, Field(pattern=r"^Task\d{2,}_\w+$")]  # of the Decathlon
# `module.submodule:name`, imported from the working directory or from an installed package
IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
ImportPath = Annotated[str, Field(pattern=IMPORT_PATH)]


class Section(BaseModel):
    """A block of params.yaml: no unknown keys, no silent conversions, never changed after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def texts(value: Any) -> Iterator[str]:
    """Every text in plain data, however deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, str):
        yield value
    for one in inner:
        yield from texts(one)
