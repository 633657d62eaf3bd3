"""What the training labels' frequencies give: class weights, log odds, and the shift of logit adjustment."""

from __future__ import annotations

import numpy as np
import torch

MAX_WEIGHT = 100.0


def class_weights(positives: np.ndarray, labelled: np.ndarray, exponent: float) -> np.ndarray:
    """Weights [C] of positives: ((labelled - positives) / positives) ** exponent, at most MAX_WEIGHT.

    positives, labelled: counts [C] in training. Exponent 0 weighs all alike; 1 balances positives and
    negatives of a finding (King & Zeng 2001; `pos_weight` of BCE). Without positives: 1.
    """
    positives, labelled = np.asarray(positives, float), np.asarray(labelled, float)
    ratio = (labelled - positives) / np.maximum(positives, 1)
    weights = np.where(positives > 0, np.maximum(ratio, 1e-6) ** exponent, 1.0)
    return np.minimum(weights, MAX_WEIGHT)


def logit_shift(positives: np.ndarray, labelled: np.ndarray, tau: float) -> np.ndarray:
    """What to subtract from logits [C]: tau log(pi / (1 - pi)), pi = positives / labelled; float64 [C].

    Post-hoc logit adjustment (Menon et al. 2021), each finding a problem of two classes: at tau 1 and with a
    calibrated model, .5 is then where an image is as probable among positives as among negatives.
    positives, labelled: counts [C] in training. Where all or none of a finding's labels are positive, or nothing is
    labelled, the odds are not known: 0.

    It is monotone per finding: no average precision or AUROC of a single model changes, only probabilities, F1 at .5,
    and averages over models that are not shifted alike.
    """
    counts = (torch.as_tensor(np.asarray(count, float)) for count in (positives, labelled))
    return (tau * log_odds(*counts)).numpy()


def log_odds(positives: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of the share of positives, 0 where that is 0, 1 or unknown."""
    negatives = labelled - positives
    odds = positives.clamp(min=1).log() - negatives.clamp(min=1).log()
    return torch.where((positives > 0) & (negatives > 0), odds, 0.0)
