"""Architectures, each a declarative entry that `registry` lists, and the one `Decoder` that computes all of them."""
