"""The block `search`: which settings of a training are varied, how often, and what decides between them."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from segpipe.params.fields import IMPORT_PATH, Configuration, Count, Section, texts


class Pruner(Section):
    """When a trial that leads nowhere is ended."""

    name: Literal["median", "hyperband", "none"]
    warmup_epochs: Annotated[int, Field(ge=0)]
    startup_trials: Annotated[int, Field(ge=0)]


class Search(Section):
    """Trainings with other settings."""

    # plain data here; segpipe/search/ranges.py knows the settings that are varied, and says what is wrong with a range
    ranges: dict[str, Any]
    trials: Count
    workers: Count
    configuration: Configuration | None
    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    measure: str
    sampler: Literal["tpe", "random", "grid"]
    seed: Annotated[int, Field(ge=0)]
    pruner: Pruner

    def import_paths(self) -> list[str]:
        """What choices name by an import path, whatever else is wrong with the ranges."""
        return [text for text in texts(self.ranges) if re.match(IMPORT_PATH, text)]
