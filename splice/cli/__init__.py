"""The command line: one file per command. It reads settings, calls a part below and prints; it decides nothing."""
