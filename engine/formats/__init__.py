"""Readers of model files: GGUF and Hugging Face directories, each to a `ModelSpec`, `Weights` and tokenizer data.

Whatever is wrong with a file ends in SpliceError(bad_model_file) that names the file, the tensor or field, and what to
do; no reader's own exception leaves this room.
"""
