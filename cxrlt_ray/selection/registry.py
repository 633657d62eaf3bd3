"""The registry of selectors, the check of their inputs, and the rule for findings with too few positives."""

from __future__ import annotations

import functools
import inspect
import numbers
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import private_detail

Selector = Callable[..., np.ndarray]
SELECTORS: dict[str, Selector] = {}
SPACES_OF: dict[str, str] = {}  # the space (selection.spaces) of each selector's inputs, in which its weights apply
SHARED = ("together", "seed", "costs")  # given by callers; a selector's other keywords are its settings
FEW = 2  # positives below which a finding cannot choose for itself
NAMED = 5  # so many are named in a warning


class Doubt(UserWarning):
    """Inputs that are valid but unlikely to be meant, told by indices; `named` tells it by names.

    sentence: with {} for the members or findings that it is `about`, tuples of indices.
    """

    def __init__(self, sentence: str, about: Iterable[tuple[int, ...]] = ()) -> None:
        self.sentence, self.about = sentence, list(about)
        super().__init__(self.named(None))

    def named(self, names: Sequence[str] | None) -> str:
        """The sentence with the `names` of all members or findings in place of indices; of `NAMED` at most."""
        of = [" and ".join(str(k) if names is None else f"'{names[k]}'" for k in one) for one in self.about]
        more = f" and {len(of) - NAMED} more" if len(of) > NAMED else ""
        return self.sentence.format(", ".join(of[:NAMED]) + more)


class FindingDoubt(Doubt):
    """A doubt about findings."""


class MemberDoubt(Doubt):
    """A doubt about members."""


def register_selector(name: str, space: str = "probability") -> Callable[[Selector], Selector]:
    """Make a selector known by `name` to ensembles/ files and to the tests that all selectors must pass.

    space: the space (spaces.into) of its predictions, unless the user gives another. The registered function checks its
    inputs and follows `choose_by`; the bare function is its `__wrapped__`.
    """

    def register(selector: Selector) -> Selector:
        registered = functools.wraps(selector)(checked(functools.partial(choose_by, selector)))
        SELECTORS[name], SPACES_OF[name] = registered, space
        return registered

    return register


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of predictions, targets, groups and more, its inputs passed through `check`; bare: `__wrapped__`."""

    @functools.wraps(function)
    def with_check(predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, *more: Any, **options: Any) -> Any:
        return function(*check(predictions, targets, groups, stacklevel=3), *more, **options)

    return with_check


def settings(name: str) -> dict[str, Any]:
    """The settings of selector `name` with their defaults."""
    parameters = inspect.signature(SELECTORS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in SHARED}


def takes_costs(name: str) -> bool:
    """Whether selector `name` weighs what its members cost: it takes `costs`, float [M]."""
    return name in SELECTORS and "costs" in inspect.signature(SELECTORS[name]).parameters


def choose_by(
    selector: Selector,
    predictions: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    together: bool = False,
    **options: Any,
) -> np.ndarray:
    """The weights [M, C] of a bare selector; findings of fewer than 2 positives get those for all together."""
    few = (targets == 1).sum(axis=0) < FEW
    if together or few.all():
        return selector(predictions, targets, groups, together=True, **options)
    weights = selector(predictions, targets, groups, together=False, **options)
    if few.any():
        weights[:, few] = selector(predictions, targets, groups, together=True, **options)[:, few]
    return weights


def check(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, stacklevel: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inputs as float32 [M, N, C], int8 [N, C], [N]; float32 predictions are not copied.

    Raises CxrltError naming the first value that does not fit. Warns, at `stacklevel` (2: the caller of this), of
    inputs that are valid but unlikely to be meant: too few positives, copies of a member, a single member.
    """
    predictions, targets = _predictions(predictions), np.asarray(targets)
    groups = np.asarray(groups, None if hasattr(groups, "dtype") else object)  # a list's nan must not become "nan"
    members, images, findings = predictions.shape
    if min(members, images, findings) == 0:
        raise CxrltError(f"there is nothing to select from: {members} members, {images} images, {findings} findings.")
    if targets.shape != (images, findings):
        raise CxrltError(f"targets of shape {targets.shape} do not fit predictions of {images} images x {findings}.")
    if groups.shape != (images,):
        raise CxrltError(f"groups of shape {groups.shape} do not fit {images} images: give one subject an image.")
    if not (known := np.isin(targets, (-1, 0, 1))).all():
        image, finding = np.argwhere(~known)[0]
        raise CxrltError(
            f"the target of image {image}, finding {finding} is {targets[image, finding]}: targets must be 1, 0 or -1 "
            "(not labelled)."
        )
    for member, values in enumerate(predictions):  # one by one: a mask of them all is large
        if not (finite := np.isfinite(values)).all():
            image, finding = np.argwhere(~finite)[0]
            raise CxrltError(
                f"the prediction of member {member} for image {image}, finding {finding} is not finite "
                f"({values[image, finding]})."
            )
    if (missing := _missing(groups)).any():
        raise CxrltError(f"image {np.argmax(missing)} has no group: every image needs its subject.")
    if images > 1 and (groups == groups[0]).all():
        one = f"one group{private_detail(groups[0])}"
        raise CxrltError(f"all {images:,} images are of {one}: give the subject of each image.")
    targets = targets.astype(np.int8, copy=False)
    for doubt in _doubts(predictions, targets):
        warnings.warn(doubt, stacklevel=stacklevel)
    return predictions, targets, groups


def within(name: str, value: Any, least: float, most: float = np.inf) -> None:
    """Raise UsageError unless setting `name` is a number from `least` to `most`; a whole one if `least` is an int."""
    kind, called = (numbers.Integral, "a whole number") if isinstance(least, int) else (numbers.Real, "a number")
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:  # type: ignore[operator]
        to = f" to {most}" if np.isfinite(most) else " up"
        raise UsageError(f"setting '{name}' must be {called} from {least}{to}; given {value!r}.")


def _predictions(values: np.ndarray) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # becomes inf, which is refused by name
            predictions = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise CxrltError(f"predictions must be numbers [members, images, findings]: {error}.") from error
    if predictions.ndim != 3:
        raise CxrltError(f"predictions must be [members, images, findings], not of shape {predictions.shape}.")
    return predictions


def _missing(groups: np.ndarray) -> np.ndarray:
    if groups.dtype != object:
        return groups != groups  # nan and NaT alone differ from themselves
    return np.array([group is None or str(group) in ("nan", "NaT", "<NA>") for group in groups])


def _doubts(predictions: np.ndarray, targets: np.ndarray) -> Iterable[Doubt]:
    """Everything that is valid but unlikely to be meant."""
    if len(predictions) == 1:
        yield Doubt("there is one member only: it gets all the weight.")
    few = np.flatnonzero((targets == 1).sum(axis=0) < FEW)
    if few.size:
        sentence = f"fewer than {FEW} positives in findings {{}}: these do not choose for themselves."
        yield FindingDoubt(sentence, [(int(finding),) for finding in few])
    if pairs := copies(predictions):
        yield MemberDoubt("identical members {}: leave out all but one of each.", pairs)


def copies(predictions: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (first, copy) of members that predict the same; only members that agree on 64 images are compared whole."""
    step, pairs = max(1, predictions.shape[1] // 64), []
    alike: dict[int, list[int]] = {}
    for member, values in enumerate(predictions):
        originals = alike.setdefault(hash(values[::step].tobytes()), [])
        same = next((m for m in originals if np.array_equal(predictions[m], values)), None)
        if same is None:
            originals.append(member)
        else:
            pairs.append((same, member))
    return pairs
