"""Moving KV blocks between workers, memory to memory.

A prefill worker stands behind `source.KvSource`, a decode worker behind `consumer.KvConsumer`. What to do is decided
in two pure cores, `lease` (the source's promises) and `fetch` (the consumer's hand-off); `transports` carries bytes.
Stands on `wire` alone: no engine, no torch. Nothing is imported here, so that the cores load without gRPC.
"""
