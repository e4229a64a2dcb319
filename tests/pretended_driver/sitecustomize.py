"""Processes with this folder on their PYTHONPATH, which import this when they start, have the driver of nvml.py.

The torch of trainings and predictions says that it is built for CUDA; as there is no CUDA, they compute on the CPU.
"""

import ctypes
import sys

import nvml

ctypes.CDLL = nvml.Library

if any(word == "predict" or word.endswith("train.py") for word in sys.orig_argv):
    import torch

    torch.backends.cuda.is_built = lambda: True
