"""Who is alive: the etcd client, a worker's registration under a lease, and the watched view of all workers.

Workers enter with `registration`, routers with `watcher`; `view`, `lease` and `keys` decide and do no I/O. Nothing here
is on the path of a request: when etcd is gone the last view stays, nothing exits, and workers register again when it
returns.
"""
