"""What makes one architecture differ from another: how its files describe it and what they call its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_names import gguf_name
from engine.formats.stored import Stored
from engine.spec import ModelSpec


def canonical_tensor(spec: ModelSpec, name: str) -> Stored:
    """Under the name that layers ask for (see `engine.layers.weights`)."""
    return Stored(name)


def gguf_tensor(spec: ModelSpec, name: str) -> Stored:
    """Under GGUF's name, whole."""
    return Stored(gguf_name(name))


@dataclass(frozen=True, slots=True)
class Architecture:
    """One declarative entry of the registry."""

    name: str
    """`ModelSpec.architecture` of its specs."""
    hf_model_types: tuple[str, ...]
    """`model_type` of the `config.json` files it reads."""
    spec_from_config: Callable[[Fields], ModelSpec]
    """Raises SpliceError (bad_model_file) for what the architecture allows and nobody computes."""
    hf_tensor: Callable[[ModelSpec, str], Stored] = canonical_tensor
    """Where the tensor of a canonical name lies in safetensors."""
    gguf_names: tuple[str, ...] = ()
    """`general.architecture` of the GGUF files it reads."""
    spec_from_gguf: Callable[[GgufFile], ModelSpec] | None = None
    """As `spec_from_config`."""
    gguf_tensor: Callable[[ModelSpec, str], Stored] = gguf_tensor

    def read_config(self, config: Fields) -> ModelSpec:
        """The spec of a Hugging Face directory. Raises SpliceError (bad_model_file) when it describes no model."""
        spec = self.spec_from_config(config)
        problems = spec.problems()
        if problems:
            raise bad_file(config.path, "; ".join(problems), "correct the configuration or use another model")
        return spec

    def read_gguf(self, file: GgufFile) -> ModelSpec:
        """The spec of a GGUF file. Raises as `read_config`."""
        if self.spec_from_gguf is None:
            raise bad_file(file.path, f"{self.name} is not read from GGUF", "use the Hugging Face directory")
        spec = self.spec_from_gguf(file)
        problems = spec.problems()
        if problems:
            raise bad_file(file.path, "; ".join(problems), DOWNLOAD_AGAIN)
        return spec
