"""The operations a model is made of, each with one signature and any number of implementations.

`reference` is plain torch, right on every machine; `native` (when built) registers faster candidates beside it;
`registry` chooses one candidate per operation, once per process. Models call an `OpTable` and never a kernel.

The contract of every operation: the bits of one token's row depend on that row (and, in attention, on that
sequence's keys and values) alone; never on how many rows stand beside it, on its index among them, or on how the
sequence was cut into steps.
"""
