"""Kernels in Triton: candidates beside those of `csrc/cuda`, taken where a tuner finds them faster.

The files import Triton when they are imported themselves; it comes with torch's CUDA builds. Without a GPU they run in
Triton's interpreter (TRITON_INTERPRET=1 before the import), which is how they are tested.
"""
