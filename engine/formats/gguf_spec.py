"""GGUF metadata that architectures share, to parts of a `ModelSpec`."""

from __future__ import annotations

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_rope import rope_from_gguf
from engine.spec import Activation, AttentionSpec, LayerSpec, MlpSpec, ModelSpec

MAX_LAYERS = 1000
"""More is a damaged field: a spec lists its layers."""


def attention_from_gguf(file: GgufFile, name: str) -> AttentionSpec:
    """Plain grouped-query attention of GGUF architecture `name`, biases where layer 0 has them; what a model adds its
    architecture replaces in the result."""
    fields = file.fields
    heads, hidden = fields.integer(f"{name}.attention.head_count"), fields.integer(f"{name}.embedding_length")
    head_dim = fields.integer_or(f"{name}.attention.key_length", hidden // max(heads, 1))
    value_length = fields.integer_or(f"{name}.attention.value_length", head_dim)
    if value_length != head_dim:
        raise fields.wrong(f"{name}.attention.value_length", f"the length of keys, {head_dim}")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=fields.integer_or(f"{name}.attention.head_count_kv", heads),
        head_dim=head_dim,
        rope=rope_from_gguf(file, name, head_dim),
        scale=max(head_dim, 1) ** -0.5,
        qkv_bias="blk.0.attn_q.bias" in file,
        output_bias="blk.0.attn_output.bias" in file,
    )


def mlp_from_gguf(file: GgufFile, name: str, activation: Activation = "silu") -> MlpSpec:
    """The gated MLP; refuses a mixture of experts, which a dense architecture does not compute."""
    experts = file.fields.integer_or(f"{name}.expert_count", 0)
    if experts:
        raise bad_file(file.path, f"mixture of {experts} experts is not supported", "use a dense model")
    width = file.fields.integer(f"{name}.feed_forward_length")
    return MlpSpec(width, activation, bias="blk.0.ffn_up.bias" in file)


def layers_in_gguf(file: GgufFile, name: str) -> int:
    """How many layers; raises SpliceError for a number no model has."""
    key = f"{name}.block_count"
    count = file.fields.integer(key)
    if not 1 <= count <= MAX_LAYERS:
        raise file.fields.wrong(key, f"1 to {MAX_LAYERS}")
    return count


def window_in_gguf(file: GgufFile, name: str, default: int | None = None) -> int | None:
    """The sliding window, or None where there is none: 0 or one as long as the context."""
    window = file.fields.integer_or(f"{name}.attention.sliding_window", default)
    return None if not window or window >= file.fields.integer(f"{name}.context_length") else window


def model_from_gguf(file: GgufFile, name: str, architecture: str, layers: tuple[LayerSpec, ...]) -> ModelSpec:
    """A model of these layers with nothing special around them."""
    fields = file.fields
    embedding = file.shape("token_embd.weight")
    if len(embedding) != 2:
        raise bad_file(
            file.path, f"tensor token_embd.weight has shape {list(embedding)}, expected [vocab, hidden]", DOWNLOAD_AGAIN
        )
    return ModelSpec(
        architecture=architecture,
        hidden_size=fields.integer(f"{name}.embedding_length"),
        vocab_size=embedding[0],
        max_positions=fields.integer(f"{name}.context_length"),
        rms_norm_eps=fields.number(f"{name}.attention.layer_norm_rms_epsilon"),
        layers=layers,
        tie_embeddings="output.weight" not in file,
    )
