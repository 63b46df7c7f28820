"""GPT-OSS (OpenAI, arXiv 2508.10925): attention with sinks, a window in every second layer, experts with biases.

Its safetensors stack the experts' matrices with inputs as rows, gate and up interleaved, or have them in MXFP4 with
outputs as rows; its GGUF files have them apart.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.formats.bad_file import bad_file
from engine.formats.expert_names import ExpertName, moe_gguf_tensor
from engine.formats.fields import Fields
from engine.formats.fp8_config import quantisation_method
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_spec import attention_from_gguf, layers_in_gguf, model_from_gguf
from engine.formats.hf_config import attention_from_config, model_from_config, windowed_layers
from engine.formats.stored import RowPick, Stored
from engine.models.architecture import Architecture
from engine.rope_spec import YarnRopeScaling
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

NAME = "gpt_oss"
GGUF_NAME = "gpt-oss"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    method = quantisation_method(config)
    if method not in (None, "mxfp4"):
        raise bad_file(
            config.path,
            f"field 'quantization_config.quant_method' is {method!r}, expected mxfp4",
            "use the model as it was published, or a GGUF file",
        )
    for key, computed in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if config.number_or(key, computed) != computed:
            raise config.wrong(key, str(computed))
    bias = config.boolean_or("attention_bias", True)
    attention = replace(attention_from_config(config, qkv_bias=bias, output_bias=bias), sinks=True)
    experts = _experts(
        config.integer("num_local_experts"), config.integer("num_experts_per_tok"), config.integer("intermediate_size")
    )
    windowed = windowed_layers(config, default=lambda layer: layer % 2 == 0)
    layers = _layers(attention, experts, windowed, config.integer("sliding_window") if any(windowed) else None)
    return model_from_config(config, NAME, layers)


def hf_tensor(spec: ModelSpec, name: str) -> Stored:
    """See `Architecture.hf_tensor`."""
    expert = ExpertName.of(name)
    if expert is None:
        return Stored(name.replace(".mlp.gate.", ".mlp.router."))
    part = "down_proj" if expert.part == "down" else "gate_up_proj"
    stored = f"{expert.prefix}.mlp.experts.{part}{'_bias' if expert.kind == 'bias' else ''}"
    return Stored(stored, _every_other(spec, expert), expert.member(spec), is_transposed=expert.kind == "weight")


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`."""
    fields = file.fields
    experts = _experts(
        fields.integer(f"{GGUF_NAME}.expert_count"),
        fields.integer(f"{GGUF_NAME}.expert_used_count"),
        fields.integer(f"{GGUF_NAME}.expert_feed_forward_length"),
    )
    attention = attention_from_gguf(file, GGUF_NAME)
    if attention.rope is not None and isinstance(attention.rope.scaling, YarnRopeScaling):
        # As the model was trained; the file has no field for it.
        scaling = replace(attention.rope.scaling, truncate=False)
        attention = replace(attention, rope=replace(attention.rope, scaling=scaling))
    attention = replace(attention, sinks=True)
    windowed = [layer % 2 == 0 for layer in range(layers_in_gguf(file, GGUF_NAME))]
    layers = _layers(attention, experts, windowed, fields.integer(f"{GGUF_NAME}.attention.sliding_window"))
    return model_from_gguf(file, GGUF_NAME, NAME, layers)


def gguf_tensor(spec: ModelSpec, name: str) -> Stored:
    """See `Architecture.gguf_tensor`: here it is the norm before the experts that has this name."""
    if name.endswith(".post_attention_layernorm.weight"):
        return Stored(f"blk.{name.split('.')[2]}.post_attention_norm.weight")
    return moe_gguf_tensor(spec, name)


def _experts(num_experts: int, top_k: int, intermediate_size: int) -> MoeSpec:
    routing = RoutingSpec(num_experts, top_k, scores="softmax_of_chosen", normalise=False, logit_bias=True)
    return MoeSpec(routing, MlpSpec(intermediate_size, "swiglu_oai", bias=True))


def _layers(
    attention: AttentionSpec, experts: MoeSpec, windowed: list[bool], window: int | None
) -> tuple[LayerSpec, ...]:
    sliding = replace(attention, window=window)
    return tuple(LayerSpec(sliding if is_windowed else attention, experts) for is_windowed in windowed)


def _every_other(spec: ModelSpec, expert: ExpertName) -> RowPick | None:
    """Rows of gate, at even places, or of up, at odd ones."""
    mlp = spec.layers[expert.layer].mlp
    if expert.part == "down" or not isinstance(mlp, MoeSpec):
        return None
    rows = 2 * mlp.expert.intermediate_size
    return RowPick(rows, np.arange(0 if expert.part == "gate" else 1, rows, 2))


GPT_OSS = Architecture(
    name=NAME,
    hf_model_types=("gpt_oss",),
    spec_from_config=spec_from_config,
    hf_tensor=hf_tensor,
    gguf_names=(GGUF_NAME,),
    spec_from_gguf=spec_from_gguf,
    gguf_tensor=gguf_tensor,
)
