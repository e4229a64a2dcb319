"""What a training leaves on disk. Written at once, loaded without executing anything."""

from pathlib import Path
from typing import Any

import torch

from segpipe import digest


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint at once; equal contents are equal files."""
    # given a path, torch.save would write its temporary name into the file
    with digest.new_file(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only."""
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return content
