"""The front door: takes requests in, picks a prefill and a decode worker, and gives tokens back in order.

Pure cores, which the planner's simulator drives too: `lifecycle`, `policy`, `affinity`, `events`. Everything else is a
shell around them. This room knows `wire` and `membership` only; all it learns of a model comes in the model's card.
"""
