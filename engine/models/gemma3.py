"""Gemma 3, text (arXiv 2503.19786): Gemma 2 with norms of Q and K in place of soft caps, five layers with a window to
one without, and a rope of its own for each kind."""

from __future__ import annotations

from dataclasses import replace

from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_spec import layers_in_gguf, mlp_from_gguf, model_from_gguf, window_in_gguf
from engine.formats.hf_config import (
    model_from_config,
    refuse_quantised,
    window_in_config,
    windowed_layers,
)
from engine.formats.hf_rope import rope_from_parameters
from engine.models.architecture import Architecture
from engine.models.gemma2 import (
    gemma_attention,
    gemma_attention_in_gguf,
    gemma_mlp,
    gemma_model,
    hf_tensor,
    refuse_bidirectional,
)
from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec

NAME = "gemma3"
LAYERS_OF_27B = 62
_GLOBAL_THETA, _LOCAL_THETA, _PATTERN = 1_000_000.0, 10_000.0, 6


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    refuse_bidirectional(config)
    if config.number_or("attn_logit_softcapping", None) is not None:
        raise config.wrong("attn_logit_softcapping", "null: Gemma 3 caps no scores")
    full = replace(gemma_attention(config, _full_rope), qk_norm=True)
    windowed = replace(full, rope=_local_rope(config, full.head_dim), window=window_in_config(config))
    pattern = config.integer_or("sliding_window_pattern", _PATTERN)
    chosen = windowed_layers(config, lambda layer: (layer + 1) % max(pattern, 1) != 0)
    mlp = gemma_mlp(config)
    spec = model_from_config(config, NAME, _layers(full, windowed, mlp, chosen), tied_by_default=True)
    return gemma_model(spec, config)


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`; these files have the one added to norm weights."""
    fields, count = file.fields, layers_in_gguf(file, NAME)
    full = replace(gemma_attention_in_gguf(file, NAME, is_27b=count == LAYERS_OF_27B), qk_norm=True)
    local = RopeSpec(fields.number_or(f"{NAME}.rope.freq_base_swa", _LOCAL_THETA))
    windowed = replace(full, rope=local, window=window_in_gguf(file, NAME))
    chosen = [(layer + 1) % _PATTERN != 0 for layer in range(count)]
    spec = model_from_gguf(file, NAME, NAME, _layers(full, windowed, mlp_from_gguf(file, NAME, "gelu_tanh"), chosen))
    cap = fields.number_or(f"{NAME}.final_logit_softcapping", None)
    return replace(spec, embedding_scale=max(spec.hidden_size, 1) ** 0.5, logit_softcap=cap)


def _layers(full: AttentionSpec, windowed: AttentionSpec, mlp: MlpSpec, chosen: list[bool]) -> tuple[LayerSpec, ...]:
    return tuple(LayerSpec(windowed if is_windowed else full, mlp, post_norms=True) for is_windowed in chosen)


def _full_rope(config: Fields, head_dim: int) -> RopeSpec:
    """Of layers without a window: older files scale these only."""
    newer = config.section("rope_parameters")
    parameters = newer.section("full_attention") if newer.values else config.section("rope_scaling")
    return rope_from_parameters(config, parameters, head_dim, config.number_or("rope_theta", _GLOBAL_THETA))


def _local_rope(config: Fields, head_dim: int) -> RopeSpec:
    parameters = config.section("rope_parameters").section("sliding_attention")
    return rope_from_parameters(config, parameters, head_dim, config.number_or("rope_local_base_freq", _LOCAL_THETA))


GEMMA3 = Architecture(
    name=NAME,
    hf_model_types=("gemma3_text",),
    spec_from_config=spec_from_config,
    hf_tensor=hf_tensor,
    gguf_names=("gemma3",),
    spec_from_gguf=spec_from_gguf,
)
