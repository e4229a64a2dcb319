"""Optuna is an extra: a pipeline that searches nothing does without it."""

from importlib.util import find_spec

from segpipe.errors import SegpipeError, problem


def require_optuna() -> None:
    """Raise SegpipeError, with what to install, where there is no Optuna."""
    if find_spec("optuna") is None:
        raise SegpipeError(
            problem(
                "the search needs Optuna",
                where="snakemake search",
                found="no module optuna",
                expected="Optuna 5 or newer",
                cure="pip install 'segpipe[search]', or optuna itself",
            )
        )
