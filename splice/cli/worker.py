"""`splice worker`"""

from __future__ import annotations

from splice.cli.console import say
from splice.cli.flags import with_settings
from splice.settings.commands import WorkerCommandSettings
from splice.settings.parts import worker_settings
from wire.worker_record import WorkerRecord


@with_settings(WorkerCommandSettings, model_argument=True)
def command(settings: WorkerCommandSettings) -> None:
    """Run one prefill or decode worker as a plain process, without Ray.

    The same code that Ray places. SIGTERM drains it: running requests end first.
    """
    from splice.cluster.roles import role_builder  # noqa: PLC0415 (loads torch: other commands start faster)
    from worker.process import run_worker  # noqa: PLC0415

    def ready(record: WorkerRecord) -> None:
        say(f"{record.role} worker {record.worker_id} serves {record.model} at {record.endpoint}")

    chosen = worker_settings(settings)
    run_worker(chosen, role_builder(chosen.role), ready)
