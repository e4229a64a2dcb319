"""What a training leaves on disk. Written at once, loaded without executing anything."""

from pathlib import Path
from typing import Any

import torch

from segpipe import digest


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint at once."""
    with digest.new_file(path) as temporary:
        torch.save(content, temporary)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only."""
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return content
