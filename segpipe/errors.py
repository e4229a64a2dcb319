"""The one exception for bad input: what is wrong, where, what was found and expected, and how to mend it."""

from collections.abc import Iterable


class SegpipeError(Exception):
    """Bad input or settings; the scripts print it and exit with code 2."""


def problem(what: str, *, where: object, found: object, expected: object, cure: str) -> str:
    """Format one problem so that a reader can mend it without looking elsewhere."""
    return f"{what}\n  where:    {where}\n  found:    {found}\n  expected: {expected}\n  cure:     {cure}"


def raise_all(title: str, problems: Iterable[str]) -> None:
    """Raise one `SegpipeError` that lists every problem; do nothing where there is none."""
    problems = list(problems)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise SegpipeError(f"{title}: {count}\n\n" + "\n\n".join(problems))
