"""Full precision within a half-precision forward pass, for what bfloat16's three digits are too few for."""

from __future__ import annotations

import torch


def in_full_precision(device: torch.device) -> torch.autocast:
    """The context of cosines and losses: a cosine times 100 needs more than bfloat16's three digits.

    Tensors of a plan (device `meta`) have no precision: for them it changes nothing.
    """
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
