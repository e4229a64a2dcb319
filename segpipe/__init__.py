"""Self-configuring medical image segmentation as a declarative pipeline."""

__version__ = "0.1.0"
