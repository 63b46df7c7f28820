"""Which implementation of an operation is fastest on this machine, found out by trying, once, and kept.

`shapes` and `decision` decide and touch nothing. `runner` is what can be tried; `products`, `fp8_products`,
`row_operations` list what there is. `tuner` tries, in the time of a `timer`, and leaves out what fails; `cache` keeps
what was found on disk, `attempts` what processes ended with; `table` is what a running engine asks, `operations` and
`fp8_operations` how a model asks it.

Two modes. Fast: a tactic by operation, size of the matrix and bucket of rows. Deterministic: one tactic by operation
and size, never by rows, among those that give a row the same bits in any company; it is part of the numerics id.
"""
