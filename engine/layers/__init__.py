"""The layers models are built from: each holds its weights and calls operations of an `OpTable`, nothing else."""
