"""GGUF metadata to a `ModelSpec`."""

from __future__ import annotations

import torch

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.gguf_file import GgufFile
from engine.spec import FactorRopeScaling, LinearRopeScaling, ModelSpec, RopeScaling, RopeSpec

_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2"}
_ROPE_FACTORS = "rope_freqs.weight"


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """Raises SpliceError (bad_model_file) for other architectures and for what the Llama family does not compute."""
    fields = file.fields
    name = fields.string("general.architecture")
    if name not in _ARCHITECTURES:
        raise bad_file(
            file.path,
            f"architecture {name!r} is not supported",
            f"use a model of one of these architectures: {', '.join(sorted(_ARCHITECTURES))}",
        )
    experts = fields.integer_or(f"{name}.expert_count", 0)
    if experts:
        raise bad_file(file.path, f"mixture of {experts} experts is not supported", "use a dense model")
    embedding = file.shape("token_embd.weight")
    if len(embedding) != 2:
        raise bad_file(
            file.path, f"tensor token_embd.weight has shape {list(embedding)}, expected [vocab, hidden]", DOWNLOAD_AGAIN
        )
    heads, hidden = fields.integer(f"{name}.attention.head_count"), fields.integer(f"{name}.embedding_length")
    head_dim = fields.integer_or(f"{name}.attention.key_length", hidden // max(heads, 1))
    spec = ModelSpec(
        architecture=_ARCHITECTURES[name],
        num_layers=fields.integer(f"{name}.block_count"),
        hidden_size=hidden,
        intermediate_size=fields.integer(f"{name}.feed_forward_length"),
        num_heads=heads,
        num_kv_heads=fields.integer_or(f"{name}.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=embedding[0],
        max_positions=fields.integer(f"{name}.context_length"),
        rms_norm_eps=fields.number(f"{name}.attention.layer_norm_rms_epsilon"),
        rope=RopeSpec(
            theta=fields.number_or(f"{name}.rope.freq_base", 10000.0), scaling=_rope_scaling(file, name, head_dim)
        ),
        tie_embeddings="output.weight" not in file,
        qkv_bias="blk.0.attn_q.bias" in file,
        output_bias="blk.0.attn_output.bias" in file,
        mlp_bias="blk.0.ffn_up.bias" in file,
    )
    problems = spec.problems()
    if problems:
        raise bad_file(file.path, "; ".join(problems), DOWNLOAD_AGAIN)
    rotated = fields.integer_or(f"{name}.rope.dimension_count", head_dim)
    value_length = fields.integer_or(f"{name}.attention.value_length", head_dim)
    if rotated != head_dim or value_length != head_dim:
        raise bad_file(
            file.path,
            f"rope.dimension_count {rotated} and attention.value_length {value_length}, expected head_dim {head_dim}",
            "use a model whose heads are rotated whole and have values as long as keys",
        )
    return spec


def _rope_scaling(file: GgufFile, name: str, head_dim: int) -> RopeScaling | None:
    if _ROPE_FACTORS in file:
        factors = file.tensor(_ROPE_FACTORS, (head_dim // 2,), torch.float32)
        return FactorRopeScaling(tuple(factors.tolist()))
    key = f"{name}.rope.scaling.type"
    kind = file.fields.string_or(key, "none")
    match kind:
        case "none":
            return None
        case "linear":
            return LinearRopeScaling(file.fields.number(f"{name}.rope.scaling.factor"))
        case _:
            raise file.fields.wrong(key, "none or linear")
