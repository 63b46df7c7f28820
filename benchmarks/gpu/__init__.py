"""`scripts/gpu_check`: from sources to figures on a machine with a GPU, in minutes and without a network.

`units` compiles, each kernel by itself, so that one that fails costs no other; `proofs` runs `tests/gpu` and the
memory checker; `ceilings`, `cases` and `timing` measure, the machine first; `report` writes what came of it. Each step
gets the time that is left and is reported, whatever it came to.
"""
