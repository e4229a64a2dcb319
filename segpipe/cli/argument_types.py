"""What the words of a call become. Standard library only.

Each raises argparse.ArgumentTypeError, or ValueError, for a word that is refused.
"""

import argparse
from pathlib import Path
from typing import Any


def comma_separated(text: str) -> list[str]:
    """The parts of `0,1`, at least one."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise argparse.ArgumentTypeError("at least one")
    return parts


def table_file(text: str) -> Path:
    """FILE.csv or FILE.md."""
    path = Path(text)
    if path.suffix not in (".csv", ".md"):
        raise argparse.ArgumentTypeError("a name that ends in .csv or .md")
    return path


def setting(text: str) -> tuple[str, str]:
    """Key and value of `train.epochs=100`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key.strip(), value


class Settings(argparse.Action):
    """Collects what several calls of an option bring; a key that comes twice is an error."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Add what one of them brings."""
        collected = [*getattr(namespace, self.dest), *values]
        keys = [key for key, _ in collected]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            parser.error(f"{option} {twice}: given twice")
        setattr(namespace, self.dest, collected)


def numbers(text: str) -> list[float]:
    """`1,0.5`."""
    return [float(part) for part in comma_separated(text)]


def axes(text: str) -> list[int]:
    """`0,2`, of three axes."""
    named = [int(part) for part in comma_separated(text)]
    if not set(named) <= {0, 1, 2}:
        raise argparse.ArgumentTypeError("of 0, 1, 2")
    return named


def share(text: str) -> float:
    """A part of something, or all of it."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("above 0, at most 1")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("above 0")
    return value


def count(text: str) -> int:
    """How many of something, at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value
