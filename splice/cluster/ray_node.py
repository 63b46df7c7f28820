"""Starts the processes of a Ray head: gcs_server and raylet, and nothing that serves nobody here.

`ray start --head` also starts a dashboard server, a client server, an autoscaler and a log monitor, and waits for
some of them: two seconds and four CPU seconds on a laptop. Ray has no flags against all of them, so this builds on the
class underneath `ray start` (`ray._private.node.Node`; written against Ray 2.60).
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import psutil
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._raylet import (  # type: ignore[attr-defined]  # its stub is not complete
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    RUNTIME_ENV_AGENT_PORT_NAME,
    persist_port,
)

from splice.cluster.placement_job import StartHead

OBJECT_STORE_BYTES = 80_000_000
"""Near the least that Ray takes: no KV and no request passes through it."""
REGISTRATION_S = 30.0
_NOT_SERVED = -1
_LEAST_PRIORITY = 19
_POLL_S = 0.01


def start_head(wanted: StartHead) -> None:
    """Returns once the head accepts drivers; its processes outlive this one. Raises whatever Ray raises."""
    (agent_port,) = _free_ports(1)
    parameters = RayParams(
        node_ip_address=wanted.host,
        node_name=wanted.host,
        gcs_server_port=wanted.port,
        temp_dir=wanted.folder,
        object_store_memory=OBJECT_STORE_BYTES,
        # Ray starts as many Python processes ahead of need: the workers take them. It schedules by `resources` alone.
        num_cpus=sum(wanted.resources.values()),
        num_gpus=0,
        resources={name: float(count) for name, count in wanted.resources.items()},
        runtime_env_agent_port=agent_port,
        include_dashboard=False,
        include_log_monitor=False,  # type: ignore[arg-type]  # declared as text, used as a truth value
        no_monitor=True,
    )
    # Without a reaper and outside of our exit: with them Ray would end when this process or gcs_server does.
    _Head(parameters, head=True, shutdown_at_exit=False, spawn_reaper=False)


class _Head(Node):
    def start_api_server(self, **_: Any) -> None:
        """Left out: with the dashboard off it has nothing to serve, and Ray would wait for it."""
        self._webui_url = ""

    def start_raylet(self, *arguments: Any, **options: Any) -> None:
        """As Ray does it, without the wait for two helper processes to name their ports."""
        for name in (METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME, DASHBOARD_AGENT_LISTEN_PORT_NAME):
            persist_port(self._session_dir, self._node_id, name, _NOT_SERVED)
        persist_port(
            self._session_dir, self._node_id, RUNTIME_ENV_AGENT_PORT_NAME, self._ray_params.runtime_env_agent_port
        )
        super().start_raylet(*arguments, **options)
        self._wait_registered()
        self._give_way()

    def _wait_registered(self) -> None:
        """Ray itself would look once and then once a second."""
        client: Any = self.get_gcs_client()  # type: ignore[no-untyped-call]  # Ray's
        ends = time.monotonic() + REGISTRATION_S
        while not client.get_all_node_info(timeout=REGISTRATION_S) and time.monotonic() < ends:
            time.sleep(_POLL_S)

    def _give_way(self) -> None:
        """The raylet's helpers (metrics, runtime environments) are not used here: they run when nobody else does."""
        raylet = psutil.Process(self.all_processes["raylet"][0].process.pid)
        for helper in raylet.children():
            if any(word.endswith(_HELPERS) for word in helper.cmdline()):
                os.setpriority(os.PRIO_PROCESS, helper.pid, _LEAST_PRIORITY)


_HELPERS = (os.path.join("dashboard", "agent.py"), os.path.join("runtime_env", "agent", "main.py"))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
