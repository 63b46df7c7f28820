"""The architectures there are, and which of them a file is."""

from __future__ import annotations

from engine.formats.bad_file import bad_file
from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.models.architecture import Architecture
from engine.models.deepseek_v2 import DEEPSEEK_V2
from engine.models.deepseek_v3 import DEEPSEEK_V3
from engine.models.gemma2 import GEMMA2
from engine.models.gemma3 import GEMMA3
from engine.models.gpt_oss import GPT_OSS
from engine.models.llama import LLAMA
from engine.models.mistral import MISTRAL
from engine.models.mixtral import MIXTRAL
from engine.models.phi3 import PHI3
from engine.models.qwen2 import QWEN2
from engine.models.qwen3 import QWEN3
from engine.models.qwen3_moe import QWEN3_MOE

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    PHI3,
    MIXTRAL,
    QWEN3_MOE,
    GPT_OSS,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
)


def architecture_of_config(config: Fields) -> Architecture:
    """By `model_type`. Raises SpliceError (bad_model_file) for one that no entry reads."""
    by_type = {name: architecture for architecture in ARCHITECTURES for name in architecture.hf_model_types}
    model_type = config.string("model_type")
    if model_type not in by_type:
        raise bad_file(
            config.path,
            f"model_type {model_type!r} is not supported",
            f"use a model of one of these types: {', '.join(sorted(by_type))}",
        )
    return by_type[model_type]


def architecture_of_gguf(file: GgufFile) -> Architecture:
    """By `general.architecture`. Raises as `architecture_of_config`."""
    by_name = {name: architecture for architecture in ARCHITECTURES for name in architecture.gguf_names}
    name = file.fields.string("general.architecture")
    if name not in by_name:
        raise bad_file(
            file.path,
            f"architecture {name!r} is not supported",
            f"use a model of one of these architectures: {', '.join(sorted(by_name))}",
        )
    return by_name[name]
