"""Experiments side by side: folders with a params.yaml each, made, and compared by their summaries."""
