"""The peer of `benchmarks.kernels.quality` is asked over HTTP, and believed only when it tells everything."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kernels.llama_server import LlamaServer

_SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
asked_before = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked_before.append(self.path)
        loading = self.path == "/health" and len(asked_before) < 3
        self.say(503 if loading else 200, {{"build_info": "b7"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = [{{"id": i, "logprob": -float(i + len(asked["prompt"]))}} for i in range({tells})]
        self.say(200, {{"completion_probabilities": [{{"top_logprobs": told[::-1][: asked["n_probs"]]}}]}})

    def say(self, status, body):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


HTTPServer((words["--host"], int(words["--port"])), Handler).serve_forever()
"""


def _binary(directory: Path, text: str) -> Path:
    path = directory / "server"
    path.write_text(text)
    path.chmod(0o700)
    return path


def test_distributions_come_in_the_order_of_the_vocabulary(tmp_path: Path) -> None:
    binary = _binary(tmp_path, _SERVER.format(python=sys.executable, tells=5))
    with LlamaServer(binary, tmp_path / "m.gguf", context=64, threads=1) as server:
        assert server.build() == "b7"
        assert np.array_equal(server.log_probabilities([7, 8], 5), -np.arange(2.0, 7.0))


def test_a_distribution_with_a_gap_is_refused(tmp_path: Path) -> None:
    binary = _binary(tmp_path, _SERVER.format(python=sys.executable, tells=4))
    server = LlamaServer(binary, tmp_path / "m.gguf", context=64, threads=1)
    with server, pytest.raises(RuntimeError, match="4 of 5"):
        server.log_probabilities([7], 5)


def test_a_server_that_ends_before_it_is_ready_is_an_error(tmp_path: Path) -> None:
    server = LlamaServer(_binary(tmp_path, "#!/bin/sh\nexit 3\n"), tmp_path / "m.gguf", context=64, threads=1)
    with pytest.raises(RuntimeError, match="exit code 3"), server:
        pass
