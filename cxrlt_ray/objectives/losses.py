"""Multi-label losses: one function each, found by name.

Every loss takes logits float [B, C], targets float [B, C] and class weights [C] of the positives, and returns a
scalar. Targets are 1, 0, a share of 1 between them, or -1 (not labelled); entries that are not labelled have no
gradient. Most losses are the mean over labelled entries of t positive + (1 - t) negative, so that label smoothing
and mixup need not know them; SCOPES says which are not. All compute in float32 at least, from log-sigmoids, so that
they are stable in bfloat16.

To add one: a function with `@register_loss("name")`. Its keyword arguments are its settings, searched by these names;
all losses share one name space, where a name has one meaning and one range, in RANGES. Keyword arguments `positives`
and `labelled` are no settings: these are the counts [C] in training, and come from `bound`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.priors import log_odds
from cxrlt_ray.objectives.registry import ABOVE_ZERO, NOT_NEGATIVE

Loss = Callable[..., torch.Tensor]
Scope = Literal["entry", "image", "batch"]
LOSSES: dict[str, Loss] = {}
SCOPES: dict[str, Scope] = {}  # what an entry's term depends on: itself, its image's labels, or all of its batch
COUNTS = ("positives", "labelled")
NEVER = -1e30  # a logit that no sum of exponentials notices, and that has a gradient (of 0)

_ANY: tuple[str, Callable[[float], bool]] = ("a number", lambda value: True)
_BELOW_ONE: tuple[str, Callable[[float], bool]] = ("0 or more and below 1", lambda value: 0 <= value < 1)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "focal_gamma": NOT_NEGATIVE,
    "gamma_neg": NOT_NEGATIVE,
    "gamma_pos": NOT_NEGATIVE,
    "clip": _BELOW_ONE,
    "cb_beta": _BELOW_ONE,
    "db_alpha": NOT_NEGATIVE,
    "db_beta": NOT_NEGATIVE,
    "db_mu": NOT_NEGATIVE,
    "db_lambda": ABOVE_ZERO,
    "db_kappa": NOT_NEGATIVE,
    "la_tau": NOT_NEGATIVE,
    "ldam_margin": NOT_NEGATIVE,
    "ldam_scale": ABOVE_ZERO,
    "two_way_temperature": ABOVE_ZERO,
    "q": ("above 0 and at most 1", lambda value: 0 < value <= 1),
}


def register_loss(name: str, scope: Scope = "entry") -> Callable[[Loss], Loss]:
    """Make a loss known by `name` to search spaces, training and the tests that all losses must pass."""

    def register(loss: Loss) -> Loss:
        LOSSES[name], SCOPES[name] = loss, scope
        return loss

    return register


def settings(name: str) -> dict[str, float]:
    """The settings of loss `name` with their defaults."""
    return {setting: default for setting, default in _keywords(name).items() if setting not in COUNTS}


def setting_fault(setting: str, value: float) -> str:
    """What is wrong with the value of a loss's setting, or nothing: "q is 0, but must be above 0 and at most 1"."""
    allowed, fits = RANGES.get(setting, _ANY)
    return "" if math.isfinite(value) and fits(value) else f"{setting} is {value:g}, but must be {allowed}"


def bound(
    name: str,
    chosen: Mapping[str, float],
    weights: torch.Tensor,
    positives: torch.Tensor | None = None,
    labelled: torch.Tensor | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Loss `name` with its `chosen` settings and class weights [C], as a function of (logits, targets).

    positives, labelled: float [C], counts in training; only some losses need them. Raises UsageError for an unknown
    loss or setting, a value out of range, or counts that are needed and missing.
    """
    if name not in LOSSES:
        raise UsageError(f"There is no loss '{name}'; there are {', '.join(LOSSES)}.")
    for setting, value in chosen.items():
        if setting not in settings(name):
            raise UsageError(f"Loss {name} has no setting '{setting}'; it has {', '.join(settings(name)) or 'none'}.")
        if fault := setting_fault(setting, value):
            raise UsageError(f"Loss {name}: {fault}.")
    counts = {key: given for key, given in zip(COUNTS, (positives, labelled), strict=True) if key in _keywords(name)}
    if missing := [key for key, given in counts.items() if given is None]:
        raise UsageError(f"Loss {name} needs the training images' counts per finding: {' and '.join(missing)}.")
    return lambda logits, targets: LOSSES[name](logits, targets, weights, **counts, **chosen)


def smoothed(targets: torch.Tensor, positive: float, negative: float) -> torch.Tensor:
    """Targets [B, C] with labels smoothed: 1 becomes 1 - positive, 0 becomes negative, -1 stays; float.

    Label smoothing (Szegedy et al. 2016, section 7) with a share of its own for either side, since a report's silence
    is a noisier negative than its mention is a positive. positive, negative: in [0, .5).
    """
    targets = targets if targets.is_floating_point() else targets.float()
    return torch.where(targets < 0, targets, targets * (1 - positive) + (1 - targets) * negative)


@register_loss("bce")
def bce(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy; class weights do not enter."""
    logits = _float(logits)
    terms = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).to(logits), reduction="none")
    return _mean(terms, targets)


@register_loss("weighted_bce")
def weighted_bce(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy with the positives' terms times their class weight."""
    positive, negative = _focal(_float(logits), 0)
    return _mixed(positive * weights, negative, targets)


@register_loss("focal")
def focal(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, focal_gamma: float = 2.0
) -> torch.Tensor:
    """Focal loss, (1 - p_t)^gamma times the cross entropy (Lin et al. 2017, eq. 4), positives times class weight."""
    positive, negative = _focal(_float(logits), focal_gamma)
    return _mixed(positive * weights, negative, targets)


@register_loss("asl")
def asl(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> torch.Tensor:
    """Asymmetric loss (Ridnik et al. 2021, eq. 7); class weights do not enter.

    Positives: (1 - p)^gamma_pos log p; negatives: p_m^gamma_neg log(1 - p_m), p_m = max(p - clip, 0).
    """
    return _mixed(*_asl(_float(logits), gamma_neg, gamma_pos, clip), targets)


@register_loss("weighted_asl")
def weighted_asl(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> torch.Tensor:
    """Asymmetric loss with the positives' terms times their class weight."""
    positive, negative = _asl(_float(logits), gamma_neg, gamma_pos, clip)
    return _mixed(positive * weights, negative, targets)


@register_loss("chexfusion_asl")
def chexfusion_asl(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    positives: torch.Tensor,
    labelled: torch.Tensor,
) -> torch.Tensor:
    """Asymmetric loss with both sides weighed as CXR-LT's winners do; class weights do not enter.

    A positive's term times exp(1 - p), a negative's times exp(p), p the finding's share of positives in training: at
    most e, so that a rare positive weighs 2.7 times its negatives (the public code of CheXFusion, model/loss.py, and
    of teams A and F of CXR-LT 2024).
    """
    positive, negative = _asl(_float(logits), gamma_neg, gamma_pos, clip)
    share = positives / labelled.clamp(min=1)
    return _mixed(positive * torch.exp(1 - share), negative * torch.exp(share), targets)


@register_loss("logit_adjusted_asl")
def logit_adjusted_asl(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    la_tau: float = 1.0,
    positives: torch.Tensor,
    labelled: torch.Tensor,
) -> torch.Tensor:
    """Asymmetric loss of logits adjusted in training (Menon et al. 2021, eq. 10); class weights do not enter.

    Each finding is a problem of two classes: of z + tau log(p / (1 - p)), p its share of positives in training, so that
    the model's own z leaves out how rare the finding is. logit_shift subtracts the same after training instead.
    """
    adjusted = _float(logits) + la_tau * log_odds(positives, labelled)
    return _mixed(*_asl(adjusted, gamma_neg, gamma_pos, clip), targets)


@register_loss("class_balanced")
def class_balanced(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    positives: torch.Tensor,
    cb_beta: float = 0.9999,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    """Class-balanced loss: a finding's terms over its effective number of positives; class weights do not enter.

    (1 - beta) / (1 - beta^n) times the sigmoid cross entropy (Cui et al. 2019, section 4.2), or, with focal_gamma
    above 0, the focal loss (section 4.3). For many labels an image, positives and negatives of a finding have the same
    weight, from its n positives (Huang et al. 2021, CB): it balances findings, not the two sides of one. As in the
    paper the weights sum to their number. Findings without positives weigh 1. beta 0: all weigh 1.
    """
    share = -torch.expm1(positives.clamp(min=1) * (math.log(cb_beta) if cb_beta else -math.inf))  # of 1 / (1 - beta)
    seen = positives > 0
    mean = torch.where(seen, 1 / share, 0.0).sum() / seen.sum().clamp(min=1)
    balance = torch.where(seen, 1 / (share * mean), 1.0)
    positive, negative = _focal(_float(logits), focal_gamma)
    return _mixed(positive * balance, negative * balance, targets)


@register_loss("distribution_balanced", scope="image")
def distribution_balanced(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    positives: torch.Tensor,
    labelled: torch.Tensor,
    db_alpha: float = 0.1,
    db_beta: float = 10.0,
    db_mu: float = 0.2,
    db_lambda: float = 2.0,
    db_kappa: float = 0.05,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    """Distribution-balanced loss (Wu et al. 2020, section 3); class weights do not enter.

    Rebalanced: an entry of finding i in an image weighs alpha + sigmoid(beta (r - mu)), where r = (1 / n_i) / sum of
    1 / n_j over the findings j that the image has (targets above .5): how often class-aware sampling would draw the
    image for i, of how often it draws it at all. An image without findings weighs alpha + 1, the limit.
    Negative-tolerant: positives log(1 + e^-(z - v)), negatives log(1 + e^(lambda (z - v))) / lambda, with
    v = kappa log(1 / p - 1), p the share of positives; v is 0 where p is 0 or 1. v as in the paper: the authors' code
    divided it by lambda, which they call a mistake (issue 8 of their repository). focal_gamma above 0: the focal form
    of both (theirs: 2, all times 2). Defaults are theirs for COCO; for VOC they take mu .3 and lambda 5. They train
    with class-aware sampling.
    """
    logits = _float(logits)
    rarity = 1 / positives.to(logits).clamp(min=1)
    drawn = torch.where(targets > 0.5, rarity, 0.0).sum(1, keepdim=True)
    r = rarity / drawn.clamp(min=1e-12)
    balance = db_alpha + torch.sigmoid(db_beta * (r - db_mu))
    easier = logits + db_kappa * log_odds(positives, labelled)
    positive, _ = _focal(easier, focal_gamma)
    _, negative = _focal(db_lambda * easier, focal_gamma)
    return _mixed(balance * positive, balance * negative / db_lambda, targets)


@register_loss("ldam")
def ldam(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    positives: torch.Tensor,
    labelled: torch.Tensor,
    ldam_margin: float = 0.5,
    ldam_scale: float = 1.0,
) -> torch.Tensor:
    """Label-distribution-aware margins (Cao et al. 2019, section 3), positives times their class weight.

    Each finding is a problem of two classes with logits z and 0: positives cost log(1 + e^-s(z - C / n+^(1/4))),
    negatives log(1 + e^s(z + C / n-^(1/4))), n+ and n- the finding's counts: the paper's margins of two classes. As in
    the authors' code C is such that the rarest side of all has margin `ldam_margin`; a side never seen has it too.
    Their scale s is 30, for logits that are cosines; ours are not, hence 1. Predictions are the sigmoid of z.
    Class weights that begin in a later stage (class_weight_exponent) are the paper's deferred re-weighting.
    """
    counts = torch.stack([positives, labelled - positives])
    rarest = counts.masked_fill(counts <= 0, math.inf).amin()
    above, below = ldam_margin * (rarest / counts).clamp(max=1) ** 0.25
    positive, _ = _focal(ldam_scale * (_float(logits) - above), 0)
    _, negative = _focal(ldam_scale * (_float(logits) + below), 0)
    return _mixed(positive * weights, negative, targets)


@register_loss("two_way", scope="batch")
def two_way(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, two_way_temperature: float = 4.0
) -> torch.Tensor:
    """Two-way multi-label loss (Kobayashi 2023); class weights do not enter.

    softplus(log sum over negatives of e^z + T log sum over positives of e^(-z / T)), once over the findings of each
    image that has one, once over the images of each finding that is there; the mean of either, added. Entries that are
    not labelled are in no sum. A soft target's entry is in both, with its shares.

    It compares logits with each other only: one number added to all changes nothing, so that its probabilities mean
    little and such a model is best averaged by rank. It sees pairs inside a batch, or the piece of it that fits the
    device: a finding without positives there has no class-wise term.
    """
    logits = _float(logits)
    shares = targets.to(logits)
    labelled = targets >= 0
    positive = torch.where(labelled & (targets > 0), shares.log() - logits / two_way_temperature, NEVER)
    negative = torch.where(labelled & (targets < 1), (1 - shares).log() + logits, NEVER)
    ways = []
    for axis in (1, 0):
        worst = negative.logsumexp(axis) + two_way_temperature * positive.logsumexp(axis)
        there = (targets > 0.5).any(axis)
        ways.append(torch.where(there, F.softplus(worst), 0.0).sum() / there.sum().clamp(min=1))
    return ways[0] + ways[1]


@register_loss("gce")
def gce(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, q: float = 0.7) -> torch.Tensor:
    """Generalised cross entropy, (1 - p_t^q) / q (Zhang & Sabuncu 2018, eq. 6), positives times their class weight.

    Robust against wrong labels without a second network: q near 0 is cross entropy, 1 the absolute error. A label that
    the model is sure is wrong hardly moves it, and costs at most 1 / q (times the weight).
    """
    logits = _float(logits)
    positive, negative = (-torch.expm1(q * F.logsigmoid(side)) / q for side in (logits, -logits))
    return _mixed(positive * weights, negative, targets)


def _keywords(name: str) -> dict[str, float]:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _focal(logits: torch.Tensor, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 - p_t)^gamma times the cross entropy, of a 1 and of a 0; gamma 0: the cross entropy."""
    positive, negative = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    if gamma == 0:
        return positive, negative
    return _power((-logits).sigmoid(), gamma) * positive, _power(logits.sigmoid(), gamma) * negative


def _asl(logits: torch.Tensor, gamma_neg: float, gamma_pos: float, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    positive, _ = _focal(logits, gamma_pos)
    if not clip:
        return positive, _focal(logits, gamma_neg)[1]
    shifted = (logits.sigmoid() - clip).clamp(min=0, max=1 - 1e-6)  # the most: finite where clip is next to nothing
    return positive, -torch.log1p(-shifted) * _power(shifted, gamma_neg)


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    # the floor keeps the power's gradient finite at 0 for exponents below 1
    return base.clamp(min=1e-8) ** exponent


def _mixed(positive: torch.Tensor, negative: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over labelled entries of what a 1 costs and what a 0 costs, by the target's share of either."""
    shares = targets.clamp(min=0).to(positive)
    return _mean(shares * positive + (1 - shares) * negative, targets)


def _mean(terms: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    labelled = targets >= 0
    return torch.where(labelled, terms, torch.zeros_like(terms)).sum() / labelled.sum().clamp(min=1)


def _float(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
