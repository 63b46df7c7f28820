"""DeepSeek-V2 (arXiv 2405.04434): latent attention; experts by softmax, in the full model from the best groups only."""

from __future__ import annotations

from engine.formats.fields import Fields
from engine.formats.hf_config import model_from_config, refuse_quantised
from engine.models import deepseek_gguf
from engine.models.architecture import Architecture
from engine.models.deepseek import hf_tensor, layers_from_config
from engine.spec import ModelSpec, RoutingSpec

NAME = "deepseek_v2"
_METHODS = ("greedy", "group_limited_greedy")


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    if config.string_or("scoring_func", "softmax") != "softmax":
        raise config.wrong("scoring_func", "softmax")
    # Two programs that read this field disagree on what it does to the weights, and no published model sets it.
    if config.boolean_or("norm_topk_prob", False):
        raise config.wrong("norm_topk_prob", "false")
    method = config.string_or("topk_method", "greedy")
    if method not in _METHODS:
        raise config.wrong("topk_method", " or ".join(_METHODS))
    is_limited = method == "group_limited_greedy"
    routing = RoutingSpec(
        num_experts=config.integer("n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        scores="softmax",
        normalise=False,
        scale=config.number_or("routed_scaling_factor", 1.0),
        num_groups=config.integer("n_group") if is_limited else 1,
        top_groups=config.integer("topk_group") if is_limited else 1,
    )
    return model_from_config(config, NAME, layers_from_config(config, routing))


DEEPSEEK_V2 = Architecture(
    name=NAME,
    hf_model_types=("deepseek_v2",),
    spec_from_config=spec_from_config,
    hf_tensor=hf_tensor,
    gguf_names=(deepseek_gguf.NAME,),
    spec_from_gguf=deepseek_gguf.spec_from_gguf,
    gguf_tensor=deepseek_gguf.gguf_tensor,
)
