"""Which class computes which architecture."""

from __future__ import annotations

from collections.abc import Callable

from engine.layers.weights import Weights
from engine.models.causal_lm import CausalLM
from engine.models.llama import LlamaForCausalLM
from engine.ops.registry import OpTable
from engine.spec import ModelSpec

ModelFactory = Callable[[ModelSpec, OpTable, Weights, int], CausalLM]

MODELS: dict[str, ModelFactory] = {"llama": LlamaForCausalLM, "qwen2": LlamaForCausalLM}
"""By `ModelSpec.architecture`; the last argument is the number of positions to prepare for."""
