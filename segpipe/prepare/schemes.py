"""How each channel is normalised: from its name, as nnU-Net decides (map_channel_name_to_normalization.py)."""

import typing
from collections.abc import Mapping

from segpipe.errors import problem, raise_all
from segpipe.params import Normalisation

SCHEMES = typing.get_args(Normalisation)
BY_NAME = {"nonorm": "none", **{scheme: scheme for scheme in SCHEMES if scheme != "none"}}
MASKED_NORM_BELOW = 0.75  # median share of the volume that is left after cropping


def normalisation(channel_name: str) -> str:
    """How a channel is normalised follows from its name; z-score where the name says nothing."""
    return BY_NAME.get(channel_name.casefold(), "zscore")


def chosen(channel_names: list[str], asked: Mapping[str, str] | None) -> tuple[list[str], list[str]]:
    """The scheme of each channel, and why.

    asked : scheme by channel name, instead of the rule
    Raises SegpipeError where it names no channel.
    """
    asked = asked or {}
    expected = ", ".join(channel_names)
    cure = "name channels as dataset.json does"
    raise_all(
        "params.yaml",
        [
            problem(
                "no such channel", where="params.yaml: plan.normalisation", found=name, expected=expected, cure=cure
            )
            for name in asked
            if name not in channel_names
        ],
    )
    schemes = [asked.get(name, normalisation(name)) for name in channel_names]
    return schemes, [
        f"normalisation of channel {name!r}: {scheme}, {_why(name, name in asked)}"
        for name, scheme in zip(channel_names, schemes, strict=True)
    ]


def _why(name: str, asked: bool) -> str:
    if asked:
        return "asked for"
    return "by its name" if name.casefold() in BY_NAME else "as for any name that says nothing else"


def masked(schemes: list[str], relative_size: float) -> tuple[list[bool], str]:
    """Whether statistics are those of the nonzero region alone, by channel, and why.

    relative_size : median share of a case that is left after cropping to its nonzero region
    """
    if relative_size >= MASKED_NORM_BELOW:
        used, rule = [False] * len(schemes), "at or above"
    else:
        used, rule = [scheme == "zscore" for scheme in schemes], "below"
    inside = "z-score inside the nonzero region" if any(used) else "normalisation of the whole volume"
    return used, f"{inside}: cropping leaves {relative_size:.0%} of a case (median), {rule} {MASKED_NORM_BELOW:.0%}"
