"""What only this tree needs to measure itself: micro-benchmarks of its own parts, recorded results, contest files.

The tool is `splice.bench`, part of the wheel; this package stands above it, is not installed, and nobody imports it.
"""
