"""What the CPU kernels reach on this machine, and what int8 activations cost.

`python -m benchmarks.kernels` prints time, bandwidth and arithmetic rate of each operation and of whole steps;
`python -m benchmarks.kernels.quality MODEL.gguf TEXT...` compares int8 with float32 activations on a text. Nothing here
judges: times belong to a machine and its neighbours, so the best of many runs is shown, in CPU time of one thread.
"""
