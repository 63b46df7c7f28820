"""DeepSeek-V3 (arXiv 2412.19437): V2 with experts chosen by sigmoid and a bias that balances their load."""

from __future__ import annotations

from engine.formats.fields import Fields
from engine.formats.hf_config import model_from_config, refuse_quantised
from engine.models.architecture import Architecture
from engine.models.deepseek import hf_tensor, layers_from_config
from engine.spec import ModelSpec, RoutingSpec

NAME = "deepseek_v3"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`. The layers for multi-token prediction after the last one are not read."""
    refuse_quantised(config)
    for key, computed in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
        if config.string_or(key, computed) != computed:
            raise config.wrong(key, computed)
    routing = RoutingSpec(
        num_experts=config.integer("n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        scores="sigmoid",
        normalise=config.boolean_or("norm_topk_prob", True),
        scale=config.number_or("routed_scaling_factor", 1.0),
        num_groups=config.integer("n_group"),
        top_groups=config.integer("topk_group"),
        group_score="top2_sum",
        score_bias=True,
    )
    return model_from_config(config, NAME, layers_from_config(config, routing))


DEEPSEEK_V3 = Architecture(
    name=NAME, hf_model_types=("deepseek_v3",), spec_from_config=spec_from_config, hf_tensor=hf_tensor
)
