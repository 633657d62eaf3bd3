"""Drawing one phantom chest X-ray: a subject's build, the study's signs, the exposure of one image.

A picture is a pure function of the seed and of what it shows, so it is the same whatever process draws it.
The subject's build and vessels and the study's signs are the same in all their images; rotation, exposure and grain
differ by image. About 200 pictures/s on one core at 128 px; the time grows with the
area. Drawn at twice the edge below 512 px, where hair lines would be lost otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.phantom.anatomy import Scene, draw_anatomy, paint_frontal, paint_lateral, paint_look_alikes
from cxrlt_ray.phantom.brush import soften
from cxrlt_ray.phantom.signs import CHANGES, PAINTS, PLACES, Sign, drawn

QUALITY = 92  # of the JPEG files
# difficulty, tuned at 128 px: a pretrained network learns in minutes, a model of raw pixels hardly at all
CONTRAST = 0.6  # of the painted signs
GRAIN = 0.03  # of the detector, a standard deviation in opacity
CLUTTER = 0.045  # of tissue folded over tissue: the same at every scale
# of boxes: a pixel belongs to a sign that changes its opacity by VISIBLE or, if less, by SHARE of its most
VISIBLE, SHARE = 0.02, 0.3
JOINED = 0.03  # of the edge: parts of a sign that are nearer to one another have one box
SPECK = 2e-4  # of the area: a smaller part has no box, unless there is no larger one
_SUBJECT, _STUDY, _IMAGE, _VESSELS, _LOOK_ALIKES = 11, 12, 13, 14, 15  # purposes of streams of random numbers


@dataclass(frozen=True)
class Picture:
    """What to draw.

    findings: those present, each with its strength in (0, 1] and side (0 right, 1 left). faded: painted signs ->
    the share of their contrast that is left, in [0, 1].
    """

    subject_id: int
    study_id: int
    dicom_id: str
    lateral: bool
    portable: bool
    findings: Mapping[str, tuple[float, int]]
    faded: Mapping[str, float] = field(default_factory=dict)


class Box(NamedTuple):
    """Where a sign is in a picture, whole pixels: left column, top row, columns, rows."""

    finding: str
    x: int
    y: int
    width: int
    height: int


def draw_picture(picture: Picture, size: int, seed: int) -> np.ndarray:
    """The picture as uint8 [size, size]."""
    return _draw(picture, size, seed, located=False)[0]


def draw_with_boxes(picture: Picture, size: int, seed: int) -> tuple[np.ndarray, list[Box]]:
    """The picture as of `draw_picture`, and the boxes of its drawn signs: one for each part that lies apart.

    A general finding beside a more precise one (signs.GENERAL) is not drawn and has no box, nor has a sign that does
    not show in the view.
    """
    return _draw(picture, size, seed, located=True)


def _draw(picture: Picture, size: int, seed: int, located: bool) -> tuple[np.ndarray, list[Box]]:
    signs = [
        Sign(name, strength, side, (seed, _STUDY, picture.study_id, ALL_FINDINGS.index(name)))
        for name, (strength, side) in sorted(picture.findings.items())
    ]
    signs = drawn(signs)
    body = draw_anatomy(np.random.default_rng([seed, _SUBJECT, picture.subject_id]))
    for sign in signs:
        if sign.finding in CHANGES:
            CHANGES[sign.finding](body, sign)
    if picture.portable:
        # the film lies behind the back and the tube is near: the heart is thrown larger
        body.heart_width *= 1.07
        body.mediastinum *= 1.06
    paint = paint_lateral if picture.lateral else paint_frontal
    vessels = np.random.default_rng([seed, _VESSELS, picture.subject_id, picture.lateral])
    scene = paint(body, size if size >= 512 else 2 * size, vessels)
    paint_look_alikes(scene, np.random.default_rng([seed, _LOOK_ALIKES, picture.study_id]))
    scene.canvas.contrast = CONTRAST
    traces = {}
    for sign in signs:
        if located:
            scene.canvas.trace = _trace_of_change(scene, sign)
        if sign.finding in PAINTS:
            _paint(scene, sign, picture.faded.get(sign.finding, 1.0))
        if scene.canvas.trace is not None:
            traces[sign.finding] = scene.canvas.trace
    own = np.random.default_rng([seed, _IMAGE, picture.study_id, int(picture.dicom_id[:8], 16)])
    turn = _turn(scene.canvas.size, own)
    boxes = [box for finding, trace in traces.items() for box in _boxes(finding, _pose(trace, size, turn))]
    return _expose(_pose(scene.canvas.gray, size, turn), own), boxes


def _paint(scene: Scene, sign: Sign, left: float) -> None:
    """Paint a sign, of whose change only the share `left` stays."""
    before = scene.canvas.gray.copy() if left < 1 else None
    PAINTS[sign.finding](scene, sign)
    if before is not None:
        scene.canvas.gray[:] = before + np.float32(left) * (scene.canvas.gray - before)
        if scene.canvas.trace is not None:
            scene.canvas.trace *= np.float32(left)


def _trace_of_change(scene: Scene, sign: Sign) -> np.ndarray:
    """Where a sign's changed anatomy shows, float32 [edge, edge]: plainly visible inside its place, else 0."""
    edge = scene.canvas.size
    trace = np.zeros((edge, edge), np.float32)
    if sign.finding in PLACES:
        for outline in PLACES[sign.finding](scene, sign):
            cv2.fillPoly(trace, [np.round(outline * edge).astype(np.int32)], 2 * VISIBLE)
    return trace


def _boxes(finding: str, trace: np.ndarray) -> list[Box]:
    """The boxes around the visible parts of a sign, from the upper left on."""
    if not trace.any():
        return []
    visible = (trace >= min(VISIBLE, SHARE * trace.max())).astype(np.uint8)
    reach = max(1, round(JOINED * len(trace)))
    _, part = cv2.connectedComponents(cv2.dilate(visible, np.ones((reach, reach), np.uint8)))
    part = part * visible
    counts = np.bincount(part.ravel())[1:]
    boxes = []
    for number in np.flatnonzero(counts >= min(SPECK * trace.size, counts.max())) + 1:
        y, x = np.nonzero(part == number)
        left, top = int(x.min()), int(y.min())
        boxes.append(Box(finding, left, top, int(x.max()) + 1 - left, int(y.max()) + 1 - top))
    return sorted(boxes, key=lambda box: (box.y, box.x))


def encode(image: np.ndarray) -> bytes:
    """A picture as a grayscale JPEG file."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def _turn(edge: int, rng: np.random.Generator) -> np.ndarray:
    """A small random rotation, scale and shift of a canvas: a matrix float64 [2, 3]."""
    turn = cv2.getRotationMatrix2D((edge / 2, edge / 2), 4.5 * rng.standard_normal(), rng.uniform(0.93, 1.18))
    turn[0, 2] += edge * 0.03 * rng.standard_normal()
    turn[1, 2] += edge * 0.03 * rng.standard_normal()
    return turn


def _pose(gray: np.ndarray, size: int, turn: np.ndarray) -> np.ndarray:
    """A canvas turned, then resized to `size`."""
    edge = gray.shape[0]
    posed = cv2.warpAffine(gray, turn, (edge, edge), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return posed if edge == size else cv2.resize(posed, (size, size), interpolation=cv2.INTER_AREA)


def _expose(gray: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Opacity to gray levels: uneven beam, kilovoltage (contrast), dose (grain), post-processing (gamma)."""
    size = gray.shape[0]
    tilt = 0.08 * rng.standard_normal(2)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    gray = gray + np.float32(tilt[0]) * ramp + np.float32(tilt[1]) * ramp[:, None]
    # scatter washes out what is fine
    gray = gray + np.float32(rng.uniform(-0.1, 0.15)) * (soften(gray, 0.06 * size) - gray)
    grain = rng.standard_normal((size, size), np.float32) * np.float32(GRAIN * rng.uniform(0.6, 1.4))
    grain += _clutter(size, rng)
    # the film's shoulder: dense areas gain little
    gray = np.minimum(gray, 0.68 + 0.4 * (gray - 0.68))
    gray = np.clip((gray + grain) * np.float32(rng.uniform(0.85, 1.25)) + np.float32(rng.normal(0, 0.04)), 0, 1)
    gray = gray ** np.float32(rng.uniform(0.7, 1.4))
    image = np.round(gray * 255).astype(np.uint8)
    if rng.random() < 0.7:
        _mark_side(image, rng)
    return image


def _clutter(size: int, rng: np.random.Generator) -> np.ndarray:
    """Soft mottle float32 [size, size] in octaves, the coarser the stronger, like anatomy around a sign."""
    whole = np.zeros((size, size), np.float32)
    for cells, share in ((4, 0.8), (9, 0.55), (19, 0.35), (37, 0.2)):
        octave = rng.standard_normal((cells, cells), np.float32)
        whole += np.float32(CLUTTER * share) * cv2.resize(octave, (size, size), interpolation=cv2.INTER_CUBIC)
    return whole


def _mark_side(image: np.ndarray, rng: np.random.Generator) -> None:
    """The lead letter that marks the patient's left side; it carries no information here."""
    size = image.shape[0]
    corner = (int(size * rng.uniform(0.86, 0.92)), int(size * rng.uniform(0.06, 0.13)))
    cv2.putText(image, "L", corner, cv2.FONT_HERSHEY_SIMPLEX, size / 400, 240, max(1, size // 128), cv2.LINE_AA)
