"""What operations compute beyond the plain case, against float64, and how that moves the choice of candidates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from engine.models import native_decoder
from engine.ops import reference
from engine.ops.features import features_of
from engine.ops.names import OpsChoice
from engine.ops.registry import choose, select_ops
from engine.rope_spec import RopeSpec
from engine.spec import (
    Activation,
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    RoutingSpec,
)

ATTENTION = AttentionSpec(4, 2, 12, RopeSpec(10000.0), scale=12**-0.5)
PLAIN = ModelSpec("plain", 48, 320, 512, 1e-5, (LayerSpec(ATTENTION, MlpSpec(72)),) * 2, tie_embeddings=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_attention(**changes: object) -> ModelSpec:
    layer = replace(PLAIN.layers[0], attention=replace(ATTENTION, **changes))  # type: ignore[arg-type]
    return replace(PLAIN, layers=(layer, layer))


@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks"), list(itertools.product((None, 1, 20, 32, 64), (None, 1.5), (False, True)))
)
def test_attention_over_a_window_under_a_cap_with_sinks(
    window: int | None, softcap: float | None, has_sinks: bool
) -> None:
    heads, kv_heads, dim, scale = 6, 2, 8, 0.4
    cache = torch.full((8, 2, 2, kv_heads, 32, dim), torch.nan)
    starts, counts, tables = [0, 40, 90], [35, 9, 1], torch.tensor([[7, 2, 0], [5, 1, 0], [3, 6, 4]], dtype=torch.int32)
    dense = random(3, 2, kv_heads, 96, dim)
    for s, (start, count) in enumerate(zip(starts, counts, strict=True)):
        for position in range(start + count):
            block = int(tables[s, position // 32])
            cache[block, 1, :, :, position % 32] = dense[s, :, :, position]
    q, sinks = random(sum(counts), heads, dim, seed=1), random(heads, seed=2) if has_sinks else None
    bounds = torch.tensor([0, 35, 44, 45], dtype=torch.int32)
    found = reference.paged_attention(
        q, cache, 1, tables, bounds, torch.tensor(starts, dtype=torch.int32), scale,
        window=window, softcap=softcap, sinks=sinks,
    )  # fmt: skip
    for s, (start, count) in enumerate(zip(starts, counts, strict=True)):
        for row, head in itertools.product(range(count), range(heads)):
            last = start + row + 1
            first = 0 if window is None else max(0, last - window)
            keys, values = dense[s, :, head // 3, first:last].double()
            scores = keys @ q[int(bounds[s]) + row, head].double() * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            masses = scores.exp()
            total = masses.sum() + (0 if sinks is None else sinks[head].double().exp())
            assert torch.allclose(found[int(bounds[s]) + row, head].double(), masses / total @ values, atol=1e-5)


ACTIVATIONS: dict[Activation, object] = {
    "silu": lambda gate, up: gate * gate.sigmoid() * up,
    "gelu_tanh": lambda gate, up: gate / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up,
    "swiglu_oai": lambda gate, up: gate.clamp(max=7) * (1.702 * gate.clamp(max=7)).sigmoid() * (up.clamp(-7, 7) + 1),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [7, 72, 4099])
def test_gates_match_float64_and_a_row_knows_no_other(activation: Activation, dtype: torch.dtype, width: int) -> None:
    gate_up = (random(70, 2 * width) * 6).to(dtype)
    wide = gate_up.double()
    expected = ACTIVATIONS[activation](wide[:, :width], wide[:, width:])  # type: ignore[operator]
    found = reference.gated_mul(gate_up.clone(), activation)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    for rows in (slice(0, 1), slice(3, 4), slice(5, 38), slice(69, 70)):
        assert torch.equal(reference.gated_mul(gate_up[rows].clone(), activation), found[rows])


@pytest.mark.parametrize("turning", [0, 4, 8])
@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_only_the_leading_dimensions_turn(choice: OpsChoice, turning: int) -> None:
    q, k, v = random(3, 2, 8), random(3, 1, 8, seed=1), random(3, 1, 8, seed=2)
    angles = torch.outer(torch.arange(9.0), torch.tensor([1.0, 0.5, 0.25, 0.125])[: turning // 2])
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    cache = torch.zeros(1, 1, 2, 1, 4, 8)
    positions, slots = torch.tensor([0, 8, 3]), torch.tensor([0, 2, 1])
    expected = {"q": q.clone(), "k": k.clone()}
    ops = select_ops(torch.float32, choice)
    found = ops.rope_and_store(q.clone(), k, v, positions, cos_sin, cache, 0, slots)
    half = turning // 2
    for heads in expected.values():
        for row, position in enumerate(positions.tolist()):
            pairs = torch.complex(heads[row, :, :half].double(), heads[row, :, half:turning].double())
            pairs = pairs * torch.exp(1j * angles[position].double())
            heads[row, :, :turning] = torch.cat((pairs.real, pairs.imag), dim=-1).float()
    assert torch.allclose(found, expected["q"], atol=1e-6)
    assert torch.allclose(cache[0, 0, 0, 0, slots], expected["k"][:, 0], atol=1e-6)
    assert torch.equal(cache[0, 0, 1, 0, slots], v[:, 0])


def test_a_feature_moves_the_one_operation_that_it_belongs_to() -> None:
    plain = select_ops(torch.float32, features=features_of(PLAIN))
    assert set(plain.names.values()) == {"native"}
    base = list(reference.CANDIDATES)
    fast = [replace(candidate, name="fast", rank=5, features=frozenset()) for candidate in base]
    table = choose([*base, *fast], torch.float32, features_of(with_attention(window=8)))
    assert {op for op, name in table.names.items() if name == "torch"} == {"paged_attention"}
    partly = with_attention(rope=RopeSpec(10000.0, rotary_dim=6), sinks=True, softcap=3.0)
    assert features_of(partly) == {"partial_rotary", "sinks", "softcap"}
    table = choose([*base, *fast], torch.float32, features_of(partly))
    assert {op for op, name in table.names.items() if name == "torch"} == {"paged_attention", "rope_and_store"}


def test_a_plain_rms_norm_of_float32_weights_rounds_once() -> None:
    x, weight = random(5, 24).bfloat16(), random(24, seed=1)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    for rms_norm in (reference.rms_norm, select_ops(torch.bfloat16).rms_norm):
        assert torch.equal(rms_norm(x, weight, 1e-6), expected.bfloat16())


def test_what_cannot_be_compiled_says_why() -> None:
    layer = PLAIN.layers[0]
    experts = MoeSpec(RoutingSpec(4, 2, "softmax", normalise=True), MlpSpec(72), MlpSpec(40))
    clamped = MlpSpec(72, "swiglu_oai")
    for mlp in (layer.mlp, experts, clamped, replace(experts, expert=clamped)):
        assert native_decoder.obstacle(replace(PLAIN, layers=(layer, replace(layer, mlp=mlp)))) is None
    assert native_decoder.obstacle(with_attention(qk_norm=True, window=8, sinks=True, softcap=3.0)) is None
    latent = LatentAttentionSpec(4, 24, 20, 10, 6, 12, RopeSpec(10000.0), 0.25)
    for attention, words in ((latent, None), (replace(latent, kv_lora_rank=1019), "1025 values")):
        obstacle = native_decoder.obstacle(replace(PLAIN, layers=(replace(layer, attention=attention),)))
        assert obstacle is None if words is None else obstacle is not None and words in obstacle
