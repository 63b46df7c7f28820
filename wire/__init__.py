"""Ground floor: the vocabulary every room shares.

Types, errors, KV layout and block identity live here as plain data without I/O. The gRPC stubs generated from
`proto/` lie beside them (`wire.v1`, `wire.inference`); this module imports none of them, so that the pure cores,
which import the vocabulary, never load protobuf.
"""
