"""Steps on a GPU: memory that stays where it is, graphs captured over it, results that stay there until somebody asks.

`buckets` says which graphs there are; `step_memory` holds a step's inputs; `captured_steps` captures and replays;
`device_logits` draws tokens where the logits lie; `kv_memory` is the KV cache. `runtime` is what all of them ask of
the GPU, and `cuda_runtime` the answer.
"""
