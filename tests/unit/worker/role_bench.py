"""A role over a real engine on the tiny model, its engine thread replaced by calls: nothing happens between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from engine.blocks.block_pool import BlockPool
from engine.blocks.kv_cache import KVCache
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loader import load_model
from kvtransfer.handoff import WorkerIdentity
from kvtransfer.pool_memory import KVPoolMemory
from wire.convert import sampling_to_proto
from wire.sampling import SamplingParams
from wire.v1 import worker_pb2
from wire.worker_record import WorkerRecord
from worker.answer_texts import AnswerTexts
from worker.pool_place import PoolPlace
from worker.role import Role, RoleParts
from worker.session import RouterSession
from worker.settings import WorkerSettings

NUM_BLOCKS = 24
R = TypeVar("R", bound=Role)


class RecordingSession(RouterSession):
    """A router's session whose messages stay here."""

    def __init__(self) -> None:
        self.router_id = "router"
        self.sent: list[worker_pb2.WorkerMessage] = []

    def send(self, **body: object) -> None:
        self.sent.append(worker_pb2.WorkerMessage(**body))  # type: ignore[arg-type]

    def of(self, kind: str) -> list[object]:
        return [getattr(message, kind) for message in self.sent if message.WhichOneof("body") == kind]

    @property
    def tokens(self) -> list[int]:
        return [token for frame in self.of("frame") for token in frame.tokens]  # type: ignore[attr-defined]

    @property
    def codes(self) -> list[str]:
        return [failed.code for failed in self.of("failed")]  # type: ignore[attr-defined]


class RoleBench(Generic[R]):
    """`now_s` is the role's clock; `turn` does what the engine thread does in one."""

    def __init__(self, model: Path, kind: type[R], **settings: object) -> None:
        loaded = load_model(model, served_name=None, dtype="auto", max_model_len=512)
        self.card = loaded.card
        self.layout = layout = loaded.model.kv_layout(32, str(settings.get("kv_cache_dtype", "auto")))
        config = EngineConfig(
            num_blocks=NUM_BLOCKS,
            max_model_len=512,
            max_num_batched_tokens=128,
            eos_token_ids=loaded.card.eos_token_ids,
        )
        self.memory = KVPoolMemory.create(layout, NUM_BLOCKS, 7)
        self.pool = BlockPool(NUM_BLOCKS, self.memory)
        place = PoolPlace(self.memory, KVCache.over(layout, self.memory.data()))
        self.engine = Engine(loaded.model, place.cache, config, self.pool)
        self.now_s = 0.0
        self.session = RecordingSession()
        self._commands: deque[Callable[[], None]] = deque()
        self.post: Callable[[Callable[[], None]], None] = self._commands.append
        role = "prefill" if kind.__name__.startswith("Prefill") else "decode"
        chosen = WorkerSettings(role=role, model_path=str(model), kv_transports=("shm",), **settings)  # type: ignore[arg-type]
        identity = WorkerIdentity(role, 7, "compat", "host")
        self.parts = RoleParts(
            self.engine, AnswerTexts(self.card), place, identity, chosen, self._post, lambda: self.now_s
        )
        self.role = kind(self.parts)

    def _post(self, command: Callable[[], None]) -> None:
        self.post(command)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            while self._commands:
                self._commands.popleft()()
            self.role.tick()
            if self.engine.has_work():
                self.role.on_output(self.engine.step())
            self.engine.check()

    def record(self) -> WorkerRecord:
        """As it would be registered; the endpoint is nobody's."""
        return WorkerRecord(
            worker_id="w",
            incarnation=7,
            role=self.role.settings.role,
            endpoint="",
            model=self.card.name,
            card_id=self.card.card_id,
            compat_id="compat",
            layout=self.layout,
            numerics_id="n",
            num_blocks=NUM_BLOCKS,
            max_num_seqs=64,
            max_model_len=512,
            host_id="host",
            pid=1,
        )

    @property
    def is_empty(self) -> bool:
        return self.pool.num_free == NUM_BLOCKS and not len(self.role.table) and not self.engine.requests()


def submit(number: int = 1, attempt: int = 1, length: int = 40, **changes: object) -> worker_pb2.Submit:
    fields: dict[str, object] = {
        "tokens": [3 + (number * 31 + index) % 200 for index in range(length)],
        "num_prompt_tokens": length,
        "sampling": sampling_to_proto(SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)),
        "timeout_s": 60.0,
        **changes,
    }
    return worker_pb2.Submit(request=number, attempt=attempt, **fields)  # type: ignore[arg-type]
