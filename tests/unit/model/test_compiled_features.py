"""A step in one native call has the bits of the operations taken one by one, for any spec and any types of weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
from drawn_weights import ATTENTION, LAYER, MODEL, DrawnWeights
from tiny_models import PagedRun, forward

from engine.layers.torch_weights import TorchWeights
from engine.models.decoder import Decoder
from engine.models.native_decoder import NativeDecoder
from engine.ops.features import features_of
from engine.ops.names import Activations
from engine.ops.native_kernels import set_num_threads
from engine.ops.registry import select_ops
from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec
from engine.steps.batch import SequenceSlice, StepBatch

LOCAL = replace(ATTENTION, rope=RopeSpec(theta=1e3), window=21)


def with_attention(*attentions: AttentionSpec, **changes: object) -> ModelSpec:
    layers = tuple(LayerSpec(attention, LAYER.mlp, post_norms=bool(changes.get("post"))) for attention in attentions)
    changes.pop("post", None)
    return replace(MODEL, layers=layers, **changes)


ROUTING = RoutingSpec(num_experts=7, top_k=3, scores="softmax", normalise=True)
GROUPED = RoutingSpec(
    12, 4, "sigmoid", normalise=True, scale=2.5, num_groups=4, top_groups=2, group_score="top2_sum", score_bias=True
)
OPEN_AI = replace(ROUTING, scores="softmax_of_chosen", normalise=False, logit_bias=True)


def with_mlps(*mlps: MlpSpec | MoeSpec, **changes: object) -> ModelSpec:
    layers = tuple(LayerSpec(ATTENTION, mlp, post_norms=bool(changes.get("post"))) for mlp in mlps)
    changes.pop("post", None)
    return replace(MODEL, layers=layers, **changes)


SPECS = {
    "plain": MODEL,
    "norms of heads": with_attention(replace(ATTENTION, qk_norm=True), replace(ATTENTION, qk_norm=True)),
    "windows": with_attention(LOCAL, ATTENTION, LOCAL),
    "cap": with_attention(replace(ATTENTION, softcap=1.5), replace(LOCAL, softcap=1.5)),
    "sinks": with_attention(replace(ATTENTION, sinks=True), replace(LOCAL, sinks=True)),
    "biases": with_attention(replace(ATTENTION, qkv_bias=True, output_bias=True), ATTENTION),
    "no rotation": with_attention(ATTENTION, replace(ATTENTION, rope=None)),
    "part of a rotation": with_attention(*[replace(ATTENTION, rope=RopeSpec(theta=1e4, rotary_dim=12))] * 2),
    "norms of outputs": with_attention(ATTENTION, ATTENTION, post=True, norm_offset=1.0, embedding_scale=96**0.5),
    "gelu": replace(MODEL, layers=(replace(LAYER, mlp=MlpSpec(160, "gelu_tanh", bias=True)),) * 2),
    "odd widths": replace(MODEL, layers=(replace(LAYER, mlp=MlpSpec(150)),) * 2),
    "clamped gates": with_mlps(MlpSpec(160, "swiglu_oai", bias=True), MlpSpec(150, "swiglu_oai")),
    "experts": with_mlps(MoeSpec(ROUTING, MlpSpec(64)), MoeSpec(replace(ROUTING, top_k=1), MlpSpec(96))),
    "experts with biases": with_mlps(*[MoeSpec(OPEN_AI, MlpSpec(64, "swiglu_oai", bias=True))] * 2),
    "groups of experts, shared ones": with_mlps(
        MlpSpec(160), MoeSpec(GROUPED, MlpSpec(32), MlpSpec(64)), MoeSpec(GROUPED, MlpSpec(32), MlpSpec(96, bias=True))
    ),
    "experts of odd widths, norms of outputs": with_mlps(
        *[MoeSpec(ROUTING, MlpSpec(42, bias=True), MlpSpec(90))] * 2, post=True, norm_offset=1.0
    ),
    "untied, other heads": replace(
        with_attention(ATTENTION, replace(ATTENTION, num_heads=4)), tie_embeddings=False, vocab_size=205
    ),
}


def _mixed(name: str) -> str:
    """Parts of one product in types of their own."""
    parts = {"q_proj": "q4_1", "k_proj": "q8_0", "v_proj": "q5_0", "gate_proj": "q4_0", "up_proj": "q5_1"}
    return next((kind for part, kind in parts.items() if part in name), "q8_0")


KINDS: dict[str, Callable[[str], str]] = {
    "float32": lambda name: "float32",
    "q4_1": lambda name: "q4_1",
    "mixed": _mixed,
    "some float32": lambda name: "float32" if "v_proj" in name or "down" in name else "q4_0",
}


def _kind_of(kinds: str, spec: ModelSpec) -> Callable[[str], str]:
    """Widths that are no multiple of 32 cannot be quantised."""
    mlps = [layer.mlp.expert if isinstance(layer.mlp, MoeSpec) else layer.mlp for layer in spec.layers]
    odd = any(mlp.intermediate_size % 32 for mlp in mlps)
    return lambda name: "float32" if odd and "down_proj" in name else KINDS[kinds](name)


def both(spec: ModelSpec, kinds: str, activations: Activations) -> tuple[NativeDecoder, Decoder]:
    weights = DrawnWeights(_kind_of(kinds, spec))
    ops = select_ops(torch.float32, "auto", features_of(spec), activations)
    return NativeDecoder(spec, weights, 200, activations), Decoder(spec, ops, TorchWeights(weights, torch.float32), 200)


def random_steps(seed: int) -> list[list[tuple[int, int, list[int]]]]:
    rng, ends, steps = random.Random(seed), dict.fromkeys(range(4), 0), []
    for _ in range(10):
        step = []
        for sequence in rng.sample(range(4), rng.randint(1, 4)):
            size = min(rng.choice((1, 1, 5, 30)), 160 - ends[sequence])
            step.append((sequence, ends[sequence], [rng.randrange(200) for _ in range(size)]))
            ends[sequence] += size
        steps.append(step)
    return steps


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_compiled_step_has_the_bits_of_its_operations(spec: ModelSpec, kinds: str) -> None:
    activations: Activations = "float32" if kinds == "float32" else "int8"
    compiled, opwise = (PagedRun(model, 24) for model in both(spec, kinds, activations))
    for step in random_steps(3):
        assert torch.equal(compiled.step(step), opwise.step(step))


@pytest.mark.parametrize("kinds", ["mixed", "some float32"])
@pytest.mark.parametrize("spec", ["plain", "norms of outputs", "gelu", "odd widths", "groups of experts, shared ones"])
def test_a_compiled_step_in_bfloat16_has_the_bits_of_its_operations(spec: str, kinds: str) -> None:
    compiled, opwise = (PagedRun(model, 24) for model in both(SPECS[spec], kinds, "bfloat16"))
    for step in random_steps(3):
        assert torch.equal(compiled.step(step), opwise.step(step))


def test_capped_logits_are_those_of_the_operations_but_for_a_rounding() -> None:
    spec = replace(MODEL, logit_softcap=2.0)
    compiled, opwise = (PagedRun(model, 24) for model in both(spec, "q4_1", "int8"))
    for step in random_steps(5):
        torch.testing.assert_close(compiled.step(step), opwise.step(step), rtol=0, atol=1e-6)


def test_experts_of_several_types_in_a_layer_count_as_their_float32_values() -> None:
    weights = DrawnWeights(lambda name: "q8_0" if "experts.3." in name else _mixed(name))
    spec = SPECS["groups of experts, shared ones"]
    ops = select_ops(torch.float32, "auto", features_of(spec), "float32")
    compiled = PagedRun(NativeDecoder(spec, weights, 200, "float32"), 24)
    opwise = PagedRun(Decoder(spec, ops, TorchWeights(weights, torch.float32), 200), 24)
    for step in random_steps(3):
        assert torch.equal(compiled.step(step), opwise.step(step))


@pytest.mark.parametrize("activations", get_args(Activations))
def test_alone_equals_batched_equals_chunked_on_any_number_of_threads(activations: Activations) -> None:
    dense = with_attention(replace(LOCAL, qk_norm=True), replace(ATTENTION, qk_norm=True), post=True)
    experts = SPECS["groups of experts, shared ones"]
    spec = replace(dense, layers=dense.layers + experts.layers)
    model = NativeDecoder(spec, DrawnWeights(KINDS["mixed"]), 200, activations)
    sequences = [[(7 * i + 3 * s) % 200 for i in range(90 + s)] for s in range(4)]
    alone = [PagedRun(model, 8).step([(s, 0, tokens)])[0] for s, tokens in enumerate(sequences)]
    for threads, chunk in ((1, 1), (2, 7), (3, 64), (2, 200)):
        set_num_threads(threads)
        run, last = PagedRun(model, 24), {}
        for start in range(0, 100, chunk):
            parts = [(s, start, tokens[start : start + chunk]) for s, tokens in enumerate(sequences)]
            parts = [part for part in parts if part[2]]
            if parts:
                last.update(zip([s for s, _, _ in parts], run.step(parts), strict=True))
        set_num_threads(1)
        assert all(torch.equal(last[s], alone[s]) for s in range(4)), (threads, chunk)


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    model = NativeDecoder(MODEL, DrawnWeights(KINDS["q4_1"]), 200, "int8")
    run = PagedRun(model, 8)
    run.step([(0, 0, [1, 2, 3])])
    block = int((~run.kv_cache.isnan()).flatten(1).any(1).nonzero()[0])
    run.step([(1, 0, [4, 5])])
    clean = PagedRun(model, 8)
    clean.step([(1, 0, [4, 5])])
    run.kv_cache[block, 0, 0, 0, 1] = torch.nan
    logits = run.step([(0, 3, [6]), (1, 2, [7])])
    assert logits[0].isnan().all()
    assert torch.equal(logits[1:], clean.step([(1, 2, [7])]))


@pytest.mark.parametrize("spec", ["plain", "windows", "norms of outputs", "experts with biases"])
def test_what_is_wanted_of_a_step_does_not_change_what_it_gives(spec: str) -> None:
    """The last layer goes on with wanted rows alone."""
    model, _ = both(SPECS[spec], "q4_1", "int8")
    rng = random.Random(3)
    prompts = [[rng.randrange(200) for _ in range(size)] for size in (40, 7, 1, 33, 20)]

    def logits(wanted: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a step with these prompts, of each the last `wanted` rows; and what it left in the cache."""
        cache = torch.zeros(10, *model.kv_layout(32, "auto").block_shape)
        parts = [
            SequenceSlice(tokens, 0, (2 * at, 2 * at + 1), count > 0, count == len(tokens))
            for at, (tokens, count) in enumerate(zip(prompts, wanted, strict=True))
        ]
        return forward(model, StepBatch(tuple(parts)), cache), cache

    every, cache = logits([len(tokens) for tokens in prompts])
    of_each = every.split([len(tokens) for tokens in prompts])
    for wanted in ((1, 7, 1, 0, 1), (0, 0, 1, 0, 0), (40, 0, 0, 1, 20), (0, 0, 0, 0, 0)):
        some, left = logits(wanted)
        assert torch.equal(
            some, torch.cat([rows[len(rows) - count :] for rows, count in zip(of_each, wanted, strict=True)])
        )
        assert torch.equal(left, cache)
