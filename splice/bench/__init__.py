"""Measures any server that speaks the OpenAI API: load, samples, statistics, verdicts.

The tool is part of the wheel, because whoever runs a cluster needs it; workload files of one's own, micro-benchmarks of
our parts and recorded results live in `benchmarks/`, above this package. Files that decide or compute (`arrivals`,
`prompts`, `sse`, `statistics`, `summary`, `verdict`) do no I/O; `load`, `connection`, `contest`, `server_process`,
`process_tree`, `resources` and `plot` do nothing else. Nothing here knows the inside of a server: what is measured is
what a client sees.
"""
