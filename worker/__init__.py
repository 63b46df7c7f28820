"""What both roles share: the process around one engine.

An engine thread (`engine_loop`) owns the engine and all its state; the asyncio side (`service`, `session`) talks to
routers and never touches it, only posts commands. A role (`prefill_worker`, `decode_worker`) joins the two with the
KV hand-off. `process` assembles a worker; `actor` is the same worker as a Ray actor.
"""
