"""Where a changed anatomy can be seen: outlines in a painted scene, for the boxes of signs that paint nothing.

Each is a list of closed outlines, fractions of the edge; none where the change does not show in the view.
"""

from __future__ import annotations

import numpy as np

from cxrlt_ray.phantom import anatomy, brush
from cxrlt_ray.phantom.anatomy import LEFT, RIBS, RIGHT, Scene, sign_of
from cxrlt_ray.phantom.brush import Points
from cxrlt_ray.phantom.signs.registry import Sign


def heart(scene: Scene, _: Sign) -> list[Points]:
    """The heart."""
    return [anatomy.heart_outline(scene.body, scene.lateral)]


def mediastinum(scene: Scene, _: Sign) -> list[Points]:
    """The shadow above the heart, in a frontal view."""
    body = scene.body
    if scene.lateral:
        return []
    return [_rectangle(0.5 - 1.1 * body.mediastinum, body.top - 0.02, 0.5 + 1.1 * body.mediastinum, 0.55)]


def aorta(scene: Scene, _: Sign) -> list[Points]:
    """The arch, and the part of the descending aorta that swings out."""
    body = scene.body
    x, y = anatomy.knob_place(body, scene.lateral)
    if scene.lateral:
        radius = 0.075 + 0.6 * body.unfolding + 0.75 * body.knob
        return [np.concatenate([brush.ellipse((x + 0.01, y + 0.06), (radius, radius)), [(0.72 + body.unfolding, 0.6)]])]
    arch = brush.ellipse((x, y), (body.knob, body.knob))
    return [np.concatenate([arch, [(0.5 + body.mediastinum + 1.2 * body.unfolding, body.top + 0.38), (0.5, y)]])]


def central_arteries(scene: Scene, _: Sign) -> list[Points]:
    """The pulmonary trunk and both hila."""
    body = scene.body
    if scene.lateral:
        both = brush.ellipse((0.52, body.top + 0.3), (1.3 * body.hila[RIGHT], 1.5 * body.hila[LEFT]))
        return [both, brush.ellipse((0.47, body.top + 0.28), (2 * body.pulmonary, 1.6 * body.pulmonary))]
    trunk = (0.5 + body.mediastinum + 0.3 * body.pulmonary, body.top + 0.265)
    hila = [brush.ellipse(scene.at(k, 0.08, 0.5), (body.hila[k], 1.7 * body.hila[k])) for k in (RIGHT, LEFT)]
    return [brush.ellipse(trunk, (1.6 * body.pulmonary, 0.045)), *hila]


def spine_from_front(scene: Scene, _: Sign) -> list[Points]:
    """The spine in a frontal view, from the lungs' tops to their bases."""
    return [] if scene.lateral else [_spine(scene)]


def spine_from_side(scene: Scene, _: Sign) -> list[Points]:
    """The spine in a lateral view."""
    return [_spine(scene)] if scene.lateral else []


def bones(scene: Scene, _: Sign) -> list[Points]:
    """Spine, ribs and clavicles together."""
    if scene.lateral:
        return [_spine(scene)]
    lines = [anatomy.rib(scene.body, side, number) for side in (RIGHT, LEFT) for number in range(RIBS)]
    lines += [anatomy.clavicle(scene.body, side) for side in (RIGHT, LEFT)]
    return [_around([*lines, _spine(scene)])]


def lungs(scene: Scene, _: Sign) -> list[Points]:
    """Each lung; both together in a lateral view."""
    return anatomy.lung_outlines(scene.body, scene.lateral)


def dome(scene: Scene, sign: Sign) -> list[Points]:
    """The half of the diaphragm that stands higher, over the height by which it does."""
    body, u = scene.body, np.linspace(0.1, 0.9, 12)
    x = 0.5 + sign_of(sign.side) * (0.05 + u * (body.width - 0.05))
    y = np.asarray(anatomy.diaphragm(body, sign.side, u))
    if scene.lateral:
        x = np.linspace(0.24, 0.7, 12)
        y = body.base[sign.side] - body.dome[sign.side] + 0.3 * (x - 0.4) ** 2
    return [np.concatenate([np.stack([x, y], 1), np.stack([x, y + sign.grade(0.0, 0.03)], 1)[::-1]])]


def clavicle(scene: Scene, sign: Sign) -> list[Points]:
    """The outer half of a clavicle in a frontal view, where it was and where it has sunk to."""
    if scene.lateral:
        return []
    outer = anatomy.clavicle(scene.body, sign.side)[9:]
    return [np.concatenate([outer, outer[::-1] + np.array([0, 0.018 + 0.03 * sign.strength])])]


def _spine(scene: Scene) -> Points:
    middle = anatomy.spine(scene.body, scene.lateral)[4:36]
    half = np.array([0.04 if scene.lateral else 0.027, 0])
    return np.concatenate([middle - half, (middle + half)[::-1]])


def _around(outlines: list[Points]) -> Points:
    points = np.concatenate(outlines)
    return _rectangle(*points.min(axis=0), *points.max(axis=0))


def _rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
