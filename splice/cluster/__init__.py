"""A whole cluster from one command: starts etcd, a Ray head, a router and both pools; watches them; ends them.

What runs is written into the run directory as (pid, start time), so that `splice down` can end what a killed launcher
left, and nothing else. The launcher never joins Ray itself: a short-lived child places the workers.
"""
