"""Architectures: each a class built from `engine.layers` by a `ModelSpec`; `registry` finds it by name."""
