"""A llama.cpp server as the source of next-token distributions, to hold its rounding beside ours on the same file."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from benchmarks.kernels.divergence import Floats

_START_S, _ANSWER_S = 60.0, 60.0


class _Candidate(msgspec.Struct):
    id: int
    logprob: float


class _Position(msgspec.Struct):
    top_logprobs: list[_Candidate]


class _Answer(msgspec.Struct):
    completion_probabilities: list[_Position]


class _Properties(msgspec.Struct):
    build_info: str = "unknown"


class LlamaServer:
    """A server of one model on a free loopback port, with its own defaults but for the threads; ends with the block."""

    def __init__(self, binary: Path, model: Path, context: int, threads: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        words = [binary, "--model", model, "--ctx-size", context, "--parallel", 1, "--threads", threads]
        words += ["--host", "127.0.0.1", "--port", self._port, "--no-warmup"]
        self._process = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> LlamaServer:
        end = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                self._end()
                raise RuntimeError(f"{self._process.args!r} did not become ready, exit code {self._process.returncode}")
            time.sleep(0.1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def build(self) -> str:
        """What it says it was built from."""
        return msgspec.json.decode(self._ask("/props"), type=_Properties).build_info

    def log_probabilities(self, tokens: list[int], vocab_size: int) -> Floats:
        """`[vocab]` of what follows the tokens. Raises RuntimeError when it does not tell all of them."""
        body = {"prompt": tokens, "n_predict": 1, "n_probs": vocab_size, "cache_prompt": True}
        body |= {"post_sampling_probs": False}  # the model's own, before temperature and filters
        answer = msgspec.json.decode(self._ask("/completion", msgspec.json.encode(body)), type=_Answer)
        found = np.full(vocab_size, np.nan)
        for candidate in answer.completion_probabilities[0].top_logprobs:
            found[candidate.id] = candidate.logprob
        if np.isnan(found).any():
            raise RuntimeError(f"the server told {np.isfinite(found).sum()} of {vocab_size} probabilities")
        return found

    def _is_ready(self) -> bool:
        try:
            self._ask("/health")
        except (RuntimeError, ConnectionError):  # it answers 503 while it loads
            return False
        return True

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        """Raises RuntimeError for any other answer than success."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        try:
            connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{path} was answered with status {answer.status}: {found[:200]!r}")
        return found

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
