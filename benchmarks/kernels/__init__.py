"""What the CPU kernels reach on this machine, what their fixed order costs, and what narrower numbers change.

`python -m benchmarks.kernels` prints time, bandwidth and arithmetic rate of each operation and of whole steps;
`python -m benchmarks.kernels.determinism` holds the fixed order of every reduction beside free ones;
`python -m benchmarks.kernels.quality MODEL` compares predictions with those of float32 on a text. The first two judge
nothing: times belong to a machine and its neighbours, so the best of many runs is shown.
"""
