"""Where layers get their weights: by canonical name, checked against the shape the layer needs."""

from __future__ import annotations

from typing import Protocol

import torch


class Weights(Protocol):
    """Tensors of one model under their Hugging Face names, for example `model.layers.0.mlp.up_proj.weight`."""

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor in the model's dtype, contiguous, owned by the caller.

        Raises SpliceError (bad_model_file), naming file, tensor and remedy, when it is missing, has another shape or
        an unreadable type.
        """
