"""Signs of the heart, the great vessels, the mediastinum and the hila."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.phantom import brush
from cxrlt_ray.phantom.anatomy import LEFT, RIGHT, Anatomy, Scene, knob_place, sign_of
from cxrlt_ray.phantom.signs import places
from cxrlt_ray.phantom.signs.registry import Sign, changes, paints


@changes("Cardiomegaly", places.heart)
def widen_heart(body: Anatomy, sign: Sign) -> None:
    """The heart takes more than half of the chest's width."""
    body.heart_width *= sign.grade(1.06, 1.36)
    body.heart_height *= sign.grade(1.0, 1.1)


@changes("Cardiomyopathy", places.heart)
def make_globe(body: Anatomy, sign: Sign) -> None:
    """A globular heart: wide, tall and without its waist."""
    body.heart_width *= sign.grade(1.2, 1.5)
    body.heart_height *= sign.grade(1.15, 1.5)
    body.roundness = sign.grade(0.4, 1.0)


@changes("Enlarged Cardiomediastinum", places.mediastinum)
def widen_mediastinum(body: Anatomy, sign: Sign) -> None:
    """A broad shadow above the heart."""
    body.mediastinum *= sign.grade(1.15, 1.6)


@changes("Tortuous Aorta", places.aorta)
def unfold_aorta(body: Anatomy, sign: Sign) -> None:
    """The arch and the descending aorta swing out to the left."""
    body.unfolding = sign.grade(0.025, 0.075)
    body.knob *= sign.grade(1.1, 1.4)


@changes("Pulmonary Hypertension", places.central_arteries)
def widen_trunk(body: Anatomy, sign: Sign) -> None:
    """A wide pulmonary trunk, wide hilar arteries, and few vessels beyond them."""
    body.pulmonary *= sign.grade(1.6, 3.2)
    body.hila = [hilum * sign.grade(1.1, 1.4) for hilum in body.hila]
    body.reach *= sign.grade(0.9, 0.55)


@paints("Calcification of the Aorta")
def paint_calcified_arch(scene: Scene, sign: Sign) -> None:
    """A thin bright shell around the arch, flecks below it."""
    rng = sign.rng()
    x, y = knob_place(scene.body, scene.lateral)
    radius = scene.body.knob * 0.85
    if scene.lateral:
        x, y, radius = x + 0.01, y + 0.06, 0.08
    start = int(rng.integers(26, 32)) if scene.lateral else int(rng.integers(24, 30))
    rim = brush.ellipse((x, y), (radius, radius), count=40)
    rim = np.concatenate([rim, rim])[start : start + int(sign.grade(10, 22))]
    brush.stroke(scene.canvas, [rim], 0.009, sign.grade(0.14, 0.42))
    for _ in range(int(sign.grade(1, 6))):
        place = (x + 0.02 * rng.standard_normal(), y + radius + 0.2 * rng.random())
        brush.blob(scene.canvas, place, (0.006, 0.012), sign.grade(0.08, 0.3))


@paints("Adenopathy")
def paint_nodes(scene: Scene, sign: Sign) -> None:
    """Lumps at a hilum and beside the windpipe."""
    rng = sign.rng()
    for down, out in ((0.45, 0.17), (0.55, 0.2), (0.62, 0.13), (0.18, 0.03), (0.27, 0.05)):
        radius = sign.grade(0.018, 0.034) * rng.uniform(0.8, 1.2)
        place = scene.at(sign.side, out + 0.03 * rng.standard_normal(), down, 0.52 + 0.05 * rng.standard_normal())
        brush.blob(scene.canvas, place, (radius, 1.15 * radius), sign.grade(0.1, 0.26), edge=0.25)


@paints("Hilum")
def paint_hila(scene: Scene, sign: Sign) -> None:
    """Both hila dense and full."""
    for side in (RIGHT, LEFT):
        radius = scene.body.hila[side] * sign.grade(1.2, 1.8)
        brush.blob(
            scene.canvas, scene.at(side, 0.13, 0.5, 0.52), (radius, 1.9 * radius), sign.grade(0.06, 0.2), edge=0.7
        )


@paints("Pulmonary Embolism")
def paint_oligaemia(scene: Scene, sign: Sign) -> None:
    """An artery ends as a knuckle, and beyond it a wedge of lung is dark and empty."""
    rng = sign.rng()
    down = rng.uniform(0.3, 0.75)
    knuckle = scene.at(sign.side, 0.25, 0.5, 0.55)
    edge = [scene.at(sign.side, 0.98, down + d, 0.85) for d in (-0.22, 0.22)]
    wedge = np.array([scene.at(sign.side, 0.3, 0.5 + 0.3 * (down - 0.5), 0.55), *edge])
    brush.fill(scene.canvas, wedge, -sign.grade(0.05, 0.13), soft=0.01, within=scene.lungs[sign.side])
    brush.blob(scene.canvas, knuckle, (sign.grade(0.018, 0.03), 0.018), sign.grade(0.12, 0.3), edge=0.3)


@paints("Pneumomediastinum")
def paint_mediastinal_air(scene: Scene, sign: Sign) -> None:
    """Dark streaks along both borders of the mediastinum, up into the neck, each with its pleural line."""
    rng, body = sign.rng(), scene.body
    bottom = body.top + sign.grade(0.3, 0.5)
    for side in (RIGHT, LEFT):
        x = 0.5 + sign_of(side) * (body.mediastinum + 0.012)
        if scene.lateral:
            x = 0.40 + 0.1 * side
        y = np.linspace(0.01, bottom, 20)
        line = np.stack([x + 0.006 * np.sin(20 * y + rng.uniform(0, 6)), y], axis=1)
        brush.stroke(scene.canvas, [line], sign.grade(0.010, 0.016), -sign.grade(0.14, 0.34), soft=0.002)
        brush.stroke(scene.canvas, [line + np.array([sign_of(side) * 0.014, 0])], 0.005, sign.grade(0.12, 0.3))


@paints("Hernia")
def paint_hiatal_hernia(scene: Scene, sign: Sign) -> None:
    """Stomach behind the heart: a round shadow above the diaphragm, in it air over a level."""
    rng, body = sign.rng(), scene.body
    radius = sign.grade(0.05, 0.085)
    x = 0.62 if scene.lateral else 0.51 + 0.02 * rng.standard_normal()
    y = body.base[LEFT] - body.dome[LEFT] - 0.35 * radius
    brush.blob(scene.canvas, (x, y), (1.15 * radius, radius), sign.grade(0.12, 0.22), edge=0.12)
    air = brush.ellipse((x, y - 0.1 * radius), (0.85 * radius, 0.75 * radius))[20:40]
    brush.fill(scene.canvas, air, -sign.grade(0.18, 0.38), soft=0.002)
