"""Workers on GPUs, in the emulator: real processes that hand KV over by cuda_ipc give the tokens of one alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.cluster import cluster, complete
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow

PROMPT = list(range(30, 75))
STREAM: dict[str, object] = {"max_tokens": 12, "temperature": 0.7, "seed": 5, "ignore_eos": True}
FLAGS = (
    *("--device", "cuda", "--max-model-len", "96", "--max-num-seqs", "1", "--max-num-batched-tokens", "32"),
    *("--gpu-memory-utilization", "0.1", "--no-enable-prefix-caching", "--kv-push", "off"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With heads that kernels are made for."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", head_dim=64)


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    """Compiled once, before workers look for them."""
    from tests.gpu import kernel_platform

    kernel_platform.emulated()


def test_a_hand_over_between_gpus_gives_the_tokens_of_a_worker_alone(model: Path, tmp_path: Path) -> None:
    with cluster(model, tmp_path, worker_flags=FLAGS, worker_program="tests.gpu.emulated_splice") as running:
        _, prefill, decode = running.processes
        [block_bytes] = {record.layout.block_bytes for record in running.records()}
        handed = complete(running, PROMPT, **STREAM)
        running.wait_idle()
        prefill.terminate()
        prefill.wait(30)
        alone = complete(running, PROMPT, **STREAM)
    assert [prefill.returncode, decode.returncode] == [0, 0], running.logs()  # and no call was out of order
    assert handed.done, handed.error
    assert handed.receipt["transport"] == "cuda_ipc"
    assert handed.receipt["kv_bytes"] == 2 * block_bytes
    assert handed.usage["completion_tokens"] == 12
    assert alone.receipt["prefill_worker"] == ""
    assert handed.text == alone.text
