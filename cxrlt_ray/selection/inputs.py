"""The registry of selectors, and the one place where their inputs are checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from cxrlt_ray.errors import CxrltError

Selector = Callable[..., np.ndarray]
SELECTORS: dict[str, Selector] = {}
SHARED = ("together", "seed")  # what every selector takes; its other keywords are its settings


def register_selector(name: str) -> Callable[[Selector], Selector]:
    """Make a selector known by `name` to ensembles/ files and to the tests that all selectors must pass."""

    def register(selector: Selector) -> Selector:
        @functools.wraps(selector)
        def checked(predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, **options: Any) -> np.ndarray:
            return selector(*check(predictions, targets, groups), **options)

        SELECTORS[name] = checked
        return checked

    return register


def settings(name: str) -> dict[str, Any]:
    """The settings of selector `name` with their defaults."""
    parameters = inspect.signature(SELECTORS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in SHARED}


def check(
    predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inputs as float32 [M, N, C], int8 [N, C], [N]. Raises CxrltError that says what does not fit where."""
    predictions = np.asarray(predictions, np.float32)
    targets, groups = np.asarray(targets), np.asarray(groups)
    if predictions.ndim != 3:
        raise CxrltError(f"predictions must be [members, images, findings], not of shape {predictions.shape}.")
    members, images, findings = predictions.shape
    if min(members, images, findings) == 0:
        raise CxrltError(f"there is nothing to select from: {members} members, {images} images, {findings} findings.")
    if targets.shape != (images, findings):
        raise CxrltError(f"targets of shape {targets.shape} do not fit predictions of {images} images x {findings}.")
    if groups.shape != (images,):
        raise CxrltError(f"groups of shape {groups.shape} do not fit {images} images: give one subject an image.")
    if not np.isin(targets, (-1, 0, 1)).all():
        raise CxrltError("targets must be 1, 0 or -1 (not labelled).")
    if not np.isfinite(predictions).all():
        member, image, finding = np.argwhere(~np.isfinite(predictions))[0]
        raise CxrltError(f"the prediction of member {member} for image {image}, finding {finding} is not finite.")
    return predictions, targets.astype(np.int8), groups
