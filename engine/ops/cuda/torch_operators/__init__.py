"""The kernels as torch's own operators, `torch.ops.splice.*`, with fake implementations, so that `torch.compile` and
`torch.export` go through them by shapes alone.

Nothing here computes: each calls the function of `engine.ops.cuda` that does. `register` makes them; the other files
are one kind of operator each: `SCHEMAS`, `implementations` on a library, and `fakes`, which know shapes and dtypes.
"""
