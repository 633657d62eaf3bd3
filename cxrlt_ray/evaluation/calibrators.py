"""Maps that turn a finding's scores into probabilities: temperature, Platt, beta and isotonic, all strictly increasing.

Each is one formula on the logit scale. A score p becomes the probability of the logit

    z = a ln p - b ln(1 - p) + c + g(logit p),     a, b > 0, g piecewise linear and not falling,

with a = b and c = 0 for temperature (Guo et al. 2017), a = b for Platt (1999), all three for beta (Kull, Silva Filho &
Flach 2017, eq. 7), and g for isotonic regression (Zadrozny & Elkan 2002), where the small a = b breaks g's ties by the
raw score. So no map changes a ranking, and a mean of two maps is a map. All are fitted to Platt's targets,
(P + 1) / (P + 2) for the P positives and 1 / (N + 2) for the N negatives, which keeps every logit finite.
A new method is a function under `@register_calibrator("name")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import model_validator

from cxrlt_ray.config import Config

NEAR = 1e-6  # to 0 and 1: from there on logarithms of scores are tempered
LEAST = 1e-300  # what counts as 0
SATURATED = 16.0  # a logit beyond it grows by its logarithm only: float64 would tie probabilities near 1
LEAST_SLOPE = 1e-3  # of a fitted map, where scores rank the images the wrong way round
TIE = 1e-4  # the slope on isotonic's steps: it moves no probability by more than .0004
CELLS = 2048  # images of near scores share a cell where there are more images than this


class LogitMap(Config):
    """The map above. knots: (logit of a score, g there), ascending; g is constant beyond them, 0 without any."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> LogitMap:
        if not (np.isfinite([self.a, self.b, self.c]).all() and self.a > 0 and self.b > 0):
            raise ValueError("a map needs finite a, b and c, with a and b above 0: else it changes the ranking")
        steps = np.diff(np.array(self.knots).reshape(-1, 2), axis=0)
        if not np.isfinite(self.knots).all() or (steps[:, 0] <= 0).any() or (steps[:, 1] < 0).any():
            raise ValueError("a map's knots must ascend: else it changes the ranking")
        return self

    def logits(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The logits float64 [N] of scores given by their `features`."""
        return self.a * u + self.b * v + self.c + self.g(u + v)

    def g(self, x: np.ndarray) -> np.ndarray:
        """The piecewise linear part at logits x [N]."""
        if not self.knots:
            return np.zeros(len(x))
        at, values = np.array(self.knots).T
        return np.interp(x, at, values)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities float64 [N] of scores [N] in [0, 1]; nan stays nan.

        >>> LogitMap(a=0.5, b=0.5)(np.array([0.9, 0.5])).round(6).tolist()  # 0.75 : 0.25 are the root of 0.9 : 0.1
        [0.75, 0.5]
        """
        from scipy.special import expit

        z = self.logits(*features(scores))
        over = np.maximum(np.abs(z) - SATURATED, 0)
        return np.asarray(expit(np.where(over > 0, np.sign(z) * (SATURATED + np.log1p(over)), z)))


def features(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms ln p and -ln(1 - p), float64 [N], of scores p [N] in [0, 1].

    Within NEAR of 0 and 1 they are tempered: they are finite there, and still differ where scores do.
    """
    p = np.asarray(scores, np.float64)
    return _tempered(p), -_tempered(1 - p)


def _tempered(p: np.ndarray) -> np.ndarray:
    """The logarithm of p [N] in [0, 1], its fall below NEAR slowed."""
    log = np.log(np.maximum(p, LEAST))
    beyond = np.maximum(np.log(NEAR) - log, 0)
    return np.where(beyond > 0, np.log(NEAR) - np.log1p(beyond), log)


@dataclass(frozen=True)
class Cells:
    """Labelled scores, ascending, each a cell or, of many, CELLS cells of neighbours: what a map is fitted to.

    u, v: the cells' mean `features`. positives, negatives: how many there are in each. All float64 [n].
    """

    u: np.ndarray
    v: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, positive: np.ndarray) -> Cells:
        """The cells of scores [N] in [0, 1] and their labels bool [N]."""
        order = np.argsort(scores, kind="stable")
        u, v = features(scores[order])
        starts = np.unique(np.linspace(0, len(order), min(len(order), CELLS), endpoint=False).astype(int))
        if not len(starts):
            return cls(u, v, u, v)
        total = np.diff(starts, append=len(order))
        positives = np.add.reduceat(positive[order].astype(float), starts)
        return cls(np.add.reduceat(u, starts) / total, np.add.reduceat(v, starts) / total, positives, total - positives)

    @classmethod
    def pooled(cls, findings: Sequence[Cells]) -> Cells:
        """All findings' cells together."""
        columns = (np.concatenate([getattr(cells, name) for cells in findings]) for name in cls.__dataclass_fields__)
        return cls(*columns)

    @property
    def both(self) -> bool:
        """Whether there are positives and negatives."""
        return bool(self.positives.any() and self.negatives.any())

    @property
    def weight(self) -> np.ndarray:
        """Images in each cell, [n]."""
        return self.positives + self.negatives

    @property
    def target(self) -> np.ndarray:
        """The mean of Platt's targets in each cell, in (0, 1), [n]."""
        positives, negatives = self.positives.sum(), self.negatives.sum()
        high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
        return (self.positives * high + self.negatives * low) / self.weight


Calibrator = Callable[[Cells], LogitMap]
CALIBRATORS: dict[str, Calibrator] = {}  # by the number of their parameters: in order of preference


def register_calibrator(name: str) -> Callable[[Calibrator], Calibrator]:
    """Make a function the calibration method `name`."""

    def register(fit: Calibrator) -> Calibrator:
        CALIBRATORS[name] = fit
        return fit

    return register


@register_calibrator("none")
def identity(cells: Cells) -> LogitMap:
    """Leave scores as they are."""
    return LogitMap()


@register_calibrator("temperature")
def temperature(cells: Cells) -> LogitMap:
    """One slope, the inverse of a temperature (Guo et al. 2017)."""
    (a,) = _logistic(cells, (cells.u + cells.v)[:, None], slopes=1)
    return LogitMap(a=a, b=a)


@register_calibrator("platt")
def platt(cells: Cells) -> LogitMap:
    """A slope and an intercept (Platt 1999)."""
    a, c = _logistic(cells, np.column_stack([cells.u + cells.v, np.ones(len(cells.u))]), slopes=1)
    return LogitMap(a=a, b=a, c=c)


@register_calibrator("beta")
def beta(cells: Cells) -> LogitMap:
    """Two slopes and an intercept (Kull et al. 2017)."""
    a, b, c = _logistic(cells, np.column_stack([cells.u, cells.v, np.ones(len(cells.u))]), slopes=2)
    return LogitMap(a=a, b=b, c=c)


@register_calibrator("isotonic")
def isotonic(cells: Cells) -> LogitMap:
    """Any non-decreasing map (Zadrozny & Elkan 2002), by pooling adjacent violators."""
    from scipy.special import logit
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression().fit(cells.u + cells.v, cells.target, sample_weight=cells.weight)
    x, first = np.unique(fitted.X_thresholds_, return_index=True)
    z = np.maximum.accumulate(logit(fitted.y_thresholds_[first]))
    return LogitMap(a=TIE, b=TIE, knots=tuple(zip(x.tolist(), z.tolist(), strict=True)))


def mixed(own: LogitMap, pooled: LogitMap, share: float) -> LogitMap:
    """The map whose logits are `share` of `own`'s and the rest of `pooled`'s."""
    x = np.unique([at for part in (own, pooled) for at, _ in part.knots])
    g = np.maximum.accumulate(share * own.g(x) + (1 - share) * pooled.g(x)) if len(x) else x
    a, b, c = (share * getattr(own, name) + (1 - share) * getattr(pooled, name) for name in "abc")
    return LogitMap(a=a, b=b, c=c, knots=tuple(zip(x.tolist(), g.tolist(), strict=True)))


def _logistic(cells: Cells, columns: np.ndarray, slopes: int) -> list[float]:
    """Coefficients of the least log loss on `columns` [n, k]; the first `slopes` start at 1, not below LEAST_SLOPE."""
    from scipy.optimize import minimize
    from scipy.special import expit

    weight, target = cells.weight / cells.weight.sum(), cells.target

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        z = columns @ coefficients
        value = float(weight @ (np.logaddexp(0, z) - target * z))
        return value, (weight * (expit(z) - target)) @ columns

    free = columns.shape[1] - slopes
    bounds = [(LEAST_SLOPE, None)] * slopes + [(None, None)] * free
    start, options = np.r_[np.ones(slopes), np.zeros(free)], {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
    solved = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return [float(value) for value in solved.x]
