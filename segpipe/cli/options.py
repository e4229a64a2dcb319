"""Values of options that several verbs take."""

import argparse


def comma_separated(text: str) -> list[str]:
    """The parts of `0,1`, at least one. Raises argparse.ArgumentTypeError where there is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise argparse.ArgumentTypeError("at least one")
    return parts
