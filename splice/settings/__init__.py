"""How a command is told what to do: one frozen object per command, built once.

Defaults < YAML file (`--config`) < environment (`SPLICE_*`) < flags. Every value remembers where it came from, and an
unknown key is an error that suggests the nearest known one. `environment` is the only module of Splice that reads the
process's environment.
"""
