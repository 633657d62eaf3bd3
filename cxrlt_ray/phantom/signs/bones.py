"""Signs of the skeleton, and devices."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.phantom import brush
from cxrlt_ray.phantom.anatomy import Anatomy, Scene, rib, sign_of
from cxrlt_ray.phantom.signs import places
from cxrlt_ray.phantom.signs.registry import Sign, changes, paints


@changes("Scoliosis", places.spine_from_front)
def bend_spine(body: Anatomy, sign: Sign) -> None:
    """The spine winds sideways."""
    body.bend = sign_of(sign.side) * sign.grade(0.018, 0.065)


@changes("Kyphosis", places.spine_from_side)
def bow_spine(body: Anatomy, sign: Sign) -> None:
    """The spine bows backwards; from in front the lungs are short and the chin hangs before their tops."""
    body.bow += sign.grade(0.025, 0.075)
    body.top += sign.grade(0.015, 0.05)


@paints("Kyphosis")
def paint_chin(scene: Scene, sign: Sign) -> None:
    """From in front the jaw covers the top of the chest."""
    if not scene.lateral:
        jaw = brush.curve((0.36, -0.05), (0.5, sign.grade(0.16, 0.3)), (0.64, -0.05))
        brush.fill(scene.canvas, jaw, sign.grade(0.05, 0.12), soft=0.006)


@changes("Osteopenia", places.bones)
def fade_bones(body: Anatomy, sign: Sign) -> None:
    """Bones thin as glass."""
    body.bone *= sign.grade(0.65, 0.1)


@changes("Clavicle Fracture", places.clavicle)
def break_clavicle(body: Anatomy, sign: Sign) -> None:
    """A collarbone in two pieces."""
    body.broken_clavicle[sign.side] = sign.strength


@paints("Clavicle Fracture")
def paint_sunken_shoulder(scene: Scene, sign: Sign) -> None:
    """On a lateral view only some callus shows, high in front."""
    if scene.lateral:
        brush.blob(scene.canvas, (0.42, scene.body.top + 0.02), (0.03, 0.02), sign.grade(0.04, 0.14))


@paints("Rib Fracture")
def paint_broken_ribs(scene: Scene, sign: Sign) -> None:
    """Neighbouring ribs with a dark gap and a bright swollen end at the side of the chest."""
    rng = sign.rng()
    first, count = int(rng.integers(3, 6)), int(rng.integers(2, 4))
    at = int(rng.integers(10, 14))
    for number in range(first, first + count):
        if scene.lateral:
            place = np.array(scene.at(sign.side, 0.5, 0.09 * number + 0.05, 0.4 + 0.05 * at / 3 - 0.1))
            along = np.array([-0.9, 0.4])
        else:
            path = rib(scene.body, sign.side, number)
            place, along = path[at], path[at + 1] - path[at - 1]
        along = along / np.linalg.norm(along)
        across = np.array([-along[1], along[0]])
        gap = np.array([place - 0.02 * across, place + 0.02 * across])
        brush.stroke(scene.canvas, [gap], 0.012, -sign.grade(0.1, 0.26))
        for end in (place + 0.017 * along - 0.006 * across, place - 0.017 * along + 0.006 * across):
            brush.blob(scene.canvas, end, (0.014, 0.014), sign.grade(0.1, 0.28))


@paints("Fracture")
def paint_broken_humerus(scene: Scene, sign: Sign) -> None:
    """Unspecified: the head of a humerus is split; on a lateral view a vertebra is wedged."""
    rng = sign.rng()
    if scene.lateral:
        y = rng.uniform(0.45, 0.65)
        x = 0.775 + scene.body.bow
        brush.blob(scene.canvas, (x, y), (0.045, 0.016), sign.grade(0.12, 0.3), edge=0.2)
        return
    x, y = 0.5 + sign_of(sign.side) * 0.445, 0.225
    crack = np.array([(x - 0.06, y - 0.02), (x - 0.02, y + 0.012), (x + 0.01, y - 0.008), (x + 0.06, y + 0.03)])
    brush.stroke(scene.canvas, [crack], 0.014, -sign.grade(0.16, 0.4))
    brush.blob(scene.canvas, (x, y + 0.05), (0.04, 0.016), sign.grade(0.12, 0.28), edge=0.3)


@paints("Support Devices")
def paint_devices(scene: Scene, sign: Sign) -> None:
    """Tubes and lines, a pacemaker, electrodes: at least one, the plainer the more."""
    rng = sign.rng()
    devices = [_paint_breathing_tube, _paint_central_line, _paint_feeding_tube, _paint_pacemaker]
    count = 1 + int(rng.random() < sign.strength) + int(rng.random() < 0.4)
    for number in rng.permutation(len(devices))[:count]:
        devices[number](scene, sign, rng)


def _paint_breathing_tube(scene: Scene, sign: Sign, rng: np.random.Generator) -> None:
    low = scene.body.top + rng.uniform(0.1, 0.17)
    x = 0.51 if scene.lateral else 0.5
    line = brush.curve((x - 0.01, -0.02), (x, 0.08), (x + 0.005, low))
    sides = [line + np.array([d, 0]) for d in (-0.009, 0.009)]
    brush.stroke(scene.canvas, sides, 0.005, sign.grade(0.08, 0.3))


def _paint_central_line(scene: Scene, sign: Sign, rng: np.random.Generator) -> None:
    toward = sign_of(sign.side)
    end = scene.body.top + rng.uniform(0.26, 0.36)
    if scene.lateral:
        line = brush.curve((0.35, 0.06), (0.5, 0.12), (0.49, end))
    else:
        line = brush.curve((0.5 + toward * 0.33, 0.10), (0.5 + toward * 0.1, 0.12), (0.455, 0.2), (0.455, end))
    brush.stroke(scene.canvas, [line], 0.008, sign.grade(0.1, 0.34))


def _paint_feeding_tube(scene: Scene, sign: Sign, rng: np.random.Generator) -> None:
    low = scene.body.base[1] + rng.uniform(0.02, 0.08)
    if scene.lateral:
        line = brush.curve((0.55, -0.02), (0.6, 0.4), (0.5, low))
    else:
        line = brush.curve((0.515, -0.02), (0.5, 0.3), (0.52, 0.65), (0.62, low))
    brush.stroke(scene.canvas, [line], 0.009, sign.grade(0.08, 0.32))


def _paint_pacemaker(scene: Scene, sign: Sign, rng: np.random.Generator) -> None:
    if scene.lateral:
        x, y, corner = 0.24, scene.body.top + 0.12, 0.02
        lead = brush.curve((x, y), (0.5, 0.2), (0.42, 0.45), (0.36, 0.66))
    else:
        toward = sign_of(sign.side)
        x, y, corner = 0.5 + toward * rng.uniform(0.24, 0.29), scene.body.top + rng.uniform(0.08, 0.13), 0.045
        lead = brush.curve((x, y), (0.5 + toward * 0.05, 0.17), (0.46, 0.45), (0.58, 0.68))
    box = brush.ellipse((x, y), (corner, 0.04), count=16)
    brush.fill(scene.canvas, box, sign.grade(0.2, 0.6))
    brush.stroke(scene.canvas, [lead], 0.007, sign.grade(0.1, 0.36))
