"""From a router's logits to the experts every token goes through, on the device."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch

from engine.ops.cuda.library import Library
from engine.ops.cuda.tensors import require, require_rows
from engine.spec import RoutingSpec

MAX_EXPERTS, MAX_CHOICES, MAX_GROUPS = 512, 32, 32
_SCORES = {"softmax": 0, "softmax_of_chosen": 1, "sigmoid": 2}


class Routing(Structure):
    """`splice_cuda_routing` of `csrc/cuda/splice_cuda.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("experts", "weights", "logits", "score_bias")),
        *((name, c_int64) for name in ("rows", "num_experts", "stride", "top_k", "num_groups", "top_groups")),
        *((name, c_int32) for name in ("scores", "normalise", "group_score_is_top2")),
        ("scale", c_float),
    )


def route(
    library: Library, routing: RoutingSpec, logits: torch.Tensor, score_bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `signatures.RouteOp`. Up to 512 experts, 32 groups and 32 choices; rows of `logits` perhaps strided.

    Scores are computed in float64 and rounded, so that two of them are alike where the exact ones round alike.
    """
    device, count = library.device_type, routing.num_experts
    address, stride = require_rows("logits", logits, torch.float32, (None, count), device)
    bias = None if score_bias is None else require("score_bias", score_bias, torch.float32, (count,), device)
    shape = (logits.shape[0], routing.top_k)
    experts = torch.empty(shape, dtype=torch.int64, device=logits.device)
    weights = torch.empty(shape, dtype=torch.float32, device=logits.device)
    arguments = Routing(
        experts=experts.data_ptr(), weights=weights.data_ptr(), logits=address, score_bias=bias,
        rows=shape[0], num_experts=count, stride=stride, top_k=routing.top_k, num_groups=routing.num_groups,
        top_groups=routing.top_groups, scores=_SCORES[routing.scores], normalise=routing.normalise,
        group_score_is_top2=routing.group_score == "top2_sum", scale=routing.scale,
    )  # fmt: skip
    library.call("route", arguments)
    return experts, weights
