"""One thread: the machine belongs to others too."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
