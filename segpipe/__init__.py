"""Self-configuring medical image segmentation as a declarative pipeline."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segpipe.inference.api import Predictor, predict

__all__ = ["Predictor", "predict"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`predict` and `Predictor`, loaded with torch when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'segpipe' has no attribute {name!r}")
    from segpipe.inference import api  # noqa: PLC0415  # the early steps of the pipeline do without torch

    return getattr(api, name)
