"""A role over a real engine on emulated kernels, which compute in the memory of a fake device that peers can map."""

# ruff: noqa: E402 (imports stand behind where they are found)

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from role_bench import NUM_BLOCKS, RecordingSession, RoleBench

_TESTS = Path(__file__).resolve().parents[2]
sys.path += [str(_TESTS / "gpu"), str(_TESTS / "unit" / "kvtransfer")]

import kernel_platform
from device_models import LATENT_SPEC, SPEC, device_decoder
from fake_device import FakeDevice, FakeKernels
from fake_runtime import FakeRuntime

from engine.blocks.block_pool import BlockPool
from engine.config import EngineConfig
from engine.device.kv_memory import DeviceKVCache
from engine.engine import Engine
from engine.spec import ModelSpec
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.handoff import WorkerIdentity
from kvtransfer.host import host_id
from worker.answer_texts import AnswerTexts
from worker.pool_place import PoolPlace
from worker.role import Role, RoleParts
from worker.settings import WorkerSettings

R = TypeVar("R", bound=Role)
SPECS = {"keys_and_values": SPEC, "latents": LATENT_SPEC}
_incarnations = itertools.count(1)


class HostRuntime(FakeRuntime):
    """The engine's queue is a stream of the device that hand-offs use: their events know of each other."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self._on, self._stream, self._event = device, device.new_stream(), device.new_event()

    def record(self) -> int:
        self._on.launch(lambda: None, [], [], self._stream)
        self._on.record(self._event, self._stream)
        return self._event


class DeviceRoleBench(RoleBench[R]):
    """See `RoleBench`; nothing but the emulator's compiler is needed."""

    def __init__(self, kind: type[R], spec: ModelSpec = SPEC, **settings: object) -> None:
        torch.set_num_threads(1)
        incarnation = 7 if kind.__name__.startswith("Prefill") else 7 + next(_incarnations)
        config = EngineConfig(num_blocks=NUM_BLOCKS, max_model_len=512, max_num_batched_tokens=64, max_num_seqs=8)
        self.device = FakeDevice(seed=incarnation, host_addresses=True)
        runtime = HostRuntime(self.device)
        model = device_decoder(kernel_platform.emulated(), runtime, None, spec)
        self.layout = layout = model.kv_layout(32, "auto")
        self.memory = DevicePoolMemory(layout, NUM_BLOCKS, incarnation, self.device, FakeKernels(self.device))
        blocks = torch.frombuffer(self.device.memory(self.memory.address), dtype=torch.uint8)
        self.pool = BlockPool(NUM_BLOCKS, self.memory)
        cache = DeviceKVCache(layout, blocks.view(NUM_BLOCKS, layout.block_bytes))
        self.engine = Engine(model, cache, config, self.pool)
        self.now_s = 0.0
        self.session = RecordingSession()
        self._commands = deque()
        self.post: Callable[[Callable[[], None]], None] = self._commands.append
        role = "prefill" if kind.__name__.startswith("Prefill") else "decode"
        chosen = WorkerSettings(role=role, model_path="", kv_transports=("cuda_ipc",), **settings)  # type: ignore[arg-type]
        identity = WorkerIdentity(role, incarnation, "compat", host_id())
        place = PoolPlace(self.memory, cache, runtime.record())
        texts = AnswerTexts(None)  # type: ignore[arg-type]  # read by searches with stop strings alone
        self.parts = RoleParts(self.engine, texts, place, identity, chosen, self._post, lambda: self.now_s)
        self.role = kind(self.parts)

    def check(self) -> None:
        """No order of calls on the device was wrong."""
        self.device.check()
