"""What the launcher writes down is what `splice down` may end."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from kvtransfer.host import pid_space
from splice.cluster.launcher import Launcher
from splice.cluster.placement_job import PlacedReport
from splice.cluster.run_dir import RunDirectory
from splice.settings.commands import ServeSettings
from wire.kv_layout import KVLayout
from wire.worker_record import WorkerRecord

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, block_tokens=32, head_dim=8, dtype="float32")
HERE = WorkerRecord(
    worker_id="decode-1", incarnation=1, role="decode", endpoint="127.0.0.1:1", model="m", card_id="c", compat_id="x",
    layout=LAYOUT, numerics_id="n", num_blocks=8, max_num_seqs=1, max_model_len=64, host_id=pid_space(),
    pid=os.getpid(),
)  # fmt: skip


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_only_workers_of_this_machine_are_written_down_for_ending(where: str, tmp_path: Path) -> None:
    record = HERE if where == "here" else msgspec.structs.replace(HERE, host_id="0" * 32)
    run_dir = RunDirectory("c", tmp_path / "run")
    run_dir.create()
    model = tmp_path / "model.gguf"
    model.touch()
    launcher = Launcher(ServeSettings(model=str(model), prefill=0), run_dir, lambda _: None)
    launcher._take_placed(iter([PlacedReport(name="decode-0", record=record.encode())]))
    assert [worker.worker_id for worker in launcher.workers] == ["decode-1"]
    assert [each.pid for each in launcher.state.processes] == ([os.getpid()] if where == "here" else [])
