"""Micro-benchmarks of scheduler, block pool and sampler with a gate: `python -m benchmarks.micro`.

No absolute times: machines and their neighbours differ. Two instruments instead. *Instructions* of the Python virtual
machine are counted and repeat exactly, so a few percent more are a change in the code. *Ratios* relate CPU time to that
of a yardstick run in turn with it, for what happens inside native code, and to the same work at another size, for what
must not grow.
"""
