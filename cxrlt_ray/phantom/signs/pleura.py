"""Signs of the pleura, and of air and fluid where they should not be."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.phantom import brush
from cxrlt_ray.phantom.anatomy import LEFT, RIGHT, Scene, diaphragm, sign_of
from cxrlt_ray.phantom.signs.registry import Sign, paints


@paints("Pleural Effusion")
def paint_effusion(scene: Scene, sign: Sign) -> None:
    """Fluid at the base, its upper edge rising to the wall (the meniscus)."""
    side, level = sign.side, sign.grade(1.06, 0.84)
    top = scene.line(side, [(0.1, level + 0.06, 0.1), (0.7, level, 0.65), (1.08, level - 0.14, 1.0)])
    brush.cover(scene.canvas, _down_to_base(scene, side, top), scene.body.tissue + 0.1, soft=0.006)


@paints("Hydropneumothorax")
def paint_air_fluid_level(scene: Scene, sign: Sign) -> None:
    """Fluid with a dead level surface from wall to wall, and black air above it."""
    side, level, within = sign.side, sign.grade(0.96, 0.74), scene.lungs[sign.side]
    x0, y = scene.at(side, 0.12, level, -0.15)
    x1, _ = scene.at(side, 1.05, level, 1.0)
    surface = np.linspace((x0, y), (x1, y), 8)
    brush.cover(scene.canvas, _down_to_base(scene, side, surface), scene.body.tissue + 0.08)
    air = np.array([(x0, y), (x1, y), scene.at(side, 1.05, level - 0.22, 0.9), scene.at(side, 0.5, level - 0.22, 0.3)])
    brush.fill(scene.canvas, air, -sign.grade(0.06, 0.13), within=within)


@paints("Pneumothorax")
def paint_pneumothorax(scene: Scene, sign: Sign) -> None:
    """Black emptiness between the wall and a thin white line, widest at the apex."""
    side, within = sign.side, scene.lungs[sign.side]
    down = np.linspace(0.7, 0.0, 14)
    if scene.lateral:
        wall = [scene.at(side, 0.5, d, 0.0) for d in down] + [scene.at(side, 0.5, d, 1.0) for d in down[::-1]]
        free = np.concatenate([1 - down, 1 - down[::-1]])
    else:
        wall = [scene.at(side, 0.02, 0.06, 0.5)] + [scene.at(side, 1.0, d, 0.5) for d in 1.3 * down[::-1]]
        free = np.concatenate([[1.0], 1 - down[::-1]])
    # the lung has shrunk towards its root, and most where nothing holds it
    root = np.array(scene.at(side, 0.1, 0.6, 0.52))
    edge = root + (np.array(wall) - root) * (1 - sign.grade(0.05, 0.34) * np.sqrt(free))[:, None]
    beyond = root + (np.array(wall) - root) * 1.15
    outline = np.concatenate([edge, beyond[::-1]])
    brush.fill(scene.canvas, outline, -sign.grade(0.06, 0.13), within=within)
    brush.stroke(scene.canvas, [edge], 0.006, sign.grade(0.14, 0.32), within=within)


@paints("Pleural Thickening")
def paint_rind(scene: Scene, sign: Sign) -> None:
    """A band of soft tissue along the wall."""
    rng, side = sign.rng(), sign.side
    start = rng.uniform(0.0, 0.35)
    down = np.linspace(start, start + 0.55, 24)
    thick = sign.grade(0.07, 0.16) * np.sin(np.linspace(0.15, np.pi - 0.15, 24)) + 0.01 * rng.standard_normal(24)
    inner = [scene.at(side, 1 - t, d, 1 - 0.7 * t) for t, d in zip(thick, down, strict=True)]
    outer = [scene.at(side, 1.06, d, 1.04) for d in down[::-1]]
    within = scene.lungs[side]
    brush.fill(scene.canvas, np.array(inner + outer), sign.grade(0.14, 0.32), soft=0.002, within=within)


@paints("Pleural Other")
def paint_plaques(scene: Scene, sign: Sign) -> None:
    """Calcified plaques: jagged white leaves seen face on, and a white line on the diaphragm."""
    rng = sign.rng()
    for side in (RIGHT, LEFT):
        x, y = scene.at(side, rng.uniform(0.45, 0.75), rng.uniform(0.45, 0.8), rng.uniform(0.3, 0.7))
        turn = np.linspace(0, 2 * np.pi, 15, endpoint=False)
        rim = 0.035 * rng.uniform(0.45, 1.3, 15)
        leaf = np.stack([x + 0.8 * rim * np.cos(turn), y + rim * np.sin(turn)], axis=1)
        brush.fill(scene.canvas, leaf, sign.grade(0.1, 0.24), within=scene.lungs[side])
        brush.stroke(scene.canvas, [np.concatenate([leaf, leaf[:1]])], 0.005, sign.grade(0.14, 0.3))
    if not scene.lateral:
        u = np.linspace(0.3, 0.65, 10)
        across = 0.5 + sign_of(sign.side) * (0.05 + u * (scene.body.width - 0.05))
        line = np.stack([across, diaphragm(scene.body, sign.side, u)], axis=1)
        brush.stroke(scene.canvas, [line], 0.008, sign.grade(0.18, 0.4))


@paints("Fissure")
def paint_fissure(scene: Scene, sign: Sign) -> None:
    """A fissure seen as a line: the minor one, level, in front; on a lateral view the oblique one."""
    rng = sign.rng()
    down = rng.uniform(0.48, 0.62)
    if scene.lateral:
        line = scene.line(RIGHT, [(0.5, 0.2, 0.95), (0.5, 0.6, 0.55), (0.5, 1.0, 0.15)])
    else:
        line = scene.line(RIGHT, [(0.22, down + 0.02, 0.5), (0.6, down - 0.015, 0.5), (0.99, down + 0.02, 0.5)])
    brush.stroke(scene.canvas, [line], 0.007, sign.grade(0.14, 0.34), soft=0.001, within=scene.lungs[RIGHT])


@paints("Pneumoperitoneum")
def paint_free_air(scene: Scene, sign: Sign) -> None:
    """Air under the diaphragm: a black sickle, the dome a white line above it."""
    body, thick = scene.body, sign.grade(0.014, 0.04)
    for side in (RIGHT, LEFT):
        if scene.lateral:
            x = np.linspace(0.28, 0.56, 24)
            y = body.base[LEFT] - body.dome[LEFT] + 0.25 * (x - 0.38) ** 2 + 0.008
        else:
            u = np.linspace(0.2, 0.85, 24)
            x = 0.5 + sign_of(side) * (0.05 + u * (body.width - 0.05))
            y = np.asarray(diaphragm(body, side, u)) + 0.012
        low = y + thick * np.sin(np.linspace(0, np.pi, 24))
        sickle = np.concatenate([np.stack([x, y], 1), np.stack([x, low], 1)[::-1]])
        brush.fill(scene.canvas, sickle, -sign.grade(0.2, 0.42), soft=0.002)
        brush.stroke(scene.canvas, [np.stack([x, y - 0.004], 1)], 0.005, sign.grade(0.06, 0.14))


@paints("Subcutaneous Emphysema")
def paint_streaks(scene: Scene, sign: Sign) -> None:
    """Dark streaks and bubbles in the soft tissue of a chest wall and of the neck."""
    rng, side, streaks = sign.rng(), sign.side, []
    for _ in range(int(sign.grade(10, 26))):
        y = rng.uniform(0.1, 0.75)
        x = 0.5 + sign_of(side) * (0.30 + 0.2 * y + rng.uniform(0.02, 0.09))
        if scene.lateral:
            x = rng.choice([0.17 + 0.03 * rng.random(), 0.84 + 0.05 * rng.random()])
        streaks.append(np.array([(x, y), (x + 0.01 * rng.standard_normal(), y + rng.uniform(0.03, 0.09))]))
    brush.stroke(scene.canvas, streaks, 0.010, -sign.grade(0.14, 0.34), soft=0.002)


def _down_to_base(scene: Scene, side: int, top: np.ndarray) -> np.ndarray:
    """The outline of what fills a lung below the line `top`, which runs outwards (on a lateral view backwards)."""
    body = scene.body
    low = body.base[side] + 0.03
    start = (top[-1][1] - body.top) / (body.base[side] - body.dome[side] - body.top)
    wall = [scene.at(side, 1.04, down, 1.04) for down in np.linspace(start, 1.35, 8)]
    return np.concatenate([top, wall, [(top[0][0], low)]])
