"""A chest without findings, frontal and lateral: what is where in a subject, and painting it.

Everything hangs on a few lengths (`Anatomy`), which differ between subjects and which some findings change
(a wide heart is a wide heart). x runs to the viewer's right, which on a frontal view is the patient's left;
on a lateral view the front of the chest is on the left. Lungs have coordinates of their own (`Scene.at`),
so that a sign is placed once for both views.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cxrlt_ray.phantom import brush
from cxrlt_ray.phantom.brush import Canvas, Points

RIGHT, LEFT = 0, 1
RIBS = 9


@dataclass
class Anatomy:
    """Lengths as fractions of the image's edge; pairs are the patient's right, left. Signs may change them."""

    width: float = 0.36  # a lung's outer wall from the midline
    top: float = 0.12
    base: list[float] = field(default_factory=lambda: [0.80, 0.82])  # the costophrenic angles
    dome: list[float] = field(default_factory=lambda: [0.11, 0.10])  # how high the diaphragm rises above them
    heart_width: float = 0.138
    heart_height: float = 0.13
    heart_shift: float = 0.05
    roundness: float = 0.0  # 0 an oblique heart, 1 a globe
    mediastinum: float = 0.052
    knob: float = 0.034
    unfolding: float = 0.0  # of the descending aorta, to the left
    pulmonary: float = 0.016  # the pulmonary trunk's bulge
    hila: list[float] = field(default_factory=lambda: [0.026, 0.026])
    bow: float = 0.035  # of the spine, backwards
    bend: float = 0.0  # of the spine, sideways
    bone: float = 1.0
    air: float = 0.17  # opacity of a lung
    vessels: float = 0.075
    reach: float = 1.0  # how far vessels can be followed
    tissue: float = 0.50
    broken_clavicle: list[float] = field(default_factory=lambda: [0.0, 0.0])


@dataclass
class Scene:
    """A chest being painted: the canvas, its anatomy, the lungs' masks (right, left; the same twice on a lateral)."""

    canvas: Canvas
    body: Anatomy
    lateral: bool
    lungs: list[np.ndarray]

    def at(self, side: int, out: float, down: float, back: float = 0.5) -> tuple[float, float]:
        """A place in a lung: `out` 0 at the midline to 1 at the wall, `down` 0 apex to 1 base, `back` 0 front to 1."""
        body = self.body
        y = body.top + down * (body.base[side] - body.dome[side] - body.top)
        if self.lateral:
            front, rear = float(front_wall(y)), float(back_wall(body, y))
            return front + back * (rear - front), y
        inner = body.mediastinum
        distance = inner + out * (float(outer_wall(body, side, y)) - inner)
        return 0.5 + sign_of(side) * distance, y

    def line(self, side: int, places: list[tuple[float, float, float]], count: int = 24) -> Points:
        """A smooth line through places in a lung (out, down, back)."""
        return brush.curve(*(self.at(side, *place) for place in places), count=count)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A subject's own healthy build."""
    body = Anatomy()
    body.width += 0.02 * rng.standard_normal()
    body.top += 0.014 * rng.standard_normal()
    body.base = [b + d for b, d in zip(body.base, rng.normal(0, 0.03) + 0.007 * rng.standard_normal(2), strict=True)]
    body.dome = [d * s for d, s in zip(body.dome, rng.uniform(0.65, 1.35, 2), strict=True)]
    body.heart_width *= rng.uniform(0.84, 1.14)
    body.heart_height *= rng.uniform(0.9, 1.1)
    body.heart_shift += 0.008 * rng.standard_normal()
    body.mediastinum *= rng.uniform(0.82, 1.18)
    body.knob *= rng.uniform(0.85, 1.15)
    body.hila = [h * s for h, s in zip(body.hila, rng.uniform(0.85, 1.15, 2), strict=True)]
    body.bow *= rng.uniform(0.7, 1.3)
    body.bend = 0.006 * rng.standard_normal()
    body.bone = rng.uniform(0.85, 1.15)
    body.air += 0.025 * rng.standard_normal()
    body.vessels *= rng.uniform(0.8, 1.2)
    body.tissue += 0.03 * rng.standard_normal()
    return body


def sign_of(side: int) -> int:
    """-1 for the patient's right, which is drawn on the left; 1 for the left."""
    return 2 * side - 1


def outer_wall(body: Anatomy, side: int, y: float | np.ndarray) -> float | np.ndarray:
    """A lung's outer wall: its distance from the midline at height y."""
    t = np.clip((y - body.top) / (body.base[side] - body.top), 0, 1)
    return body.width * np.sin(np.pi / 2 * t**0.5)


def diaphragm(body: Anatomy, side: int, out: float | np.ndarray) -> float | np.ndarray:
    """Height of the diaphragm on a frontal view, `out` 0 at the midline to 1 at the angle."""
    return body.base[side] - body.dome[side] * (1 - ((out - 0.4) / 0.6) ** 2)


def front_wall(y: float | np.ndarray) -> float | np.ndarray:
    """The breastbone on a lateral view."""
    return 0.35 - 0.15 * np.clip((y - 0.12) / 0.45, 0, 1)


def back_wall(body: Anatomy, y: float | np.ndarray) -> float | np.ndarray:
    """The front of the spine on a lateral view."""
    return 0.72 + body.bow * np.sin(np.pi * np.clip((y - 0.06) / 0.85, 0, 1))


def spine(body: Anatomy, lateral: bool) -> Points:
    """The middle of the spine from top to bottom."""
    y = np.linspace(0, 1, 40)
    if lateral:
        return np.stack([back_wall(body, y) + 0.055, y], axis=1)
    return np.stack([0.5 + body.bend * np.sin(1.7 * np.pi * (y - 0.1)), y], axis=1)


def rib(body: Anatomy, side: int, number: int) -> Points:
    """The posterior part of a rib on a frontal view, from the spine to the wall and a little around it."""
    q = np.linspace(0, 1, 16)
    start = body.top - 0.015 + 0.072 * number
    y = start - 0.02 * np.sin(np.pi * np.minimum(q * 1.6, 1)) + 0.095 * q**2.2
    x = 0.04 + q * (outer_wall(body, side, y + 0.01) + 0.008 - 0.04)
    return np.stack([0.5 + sign_of(side) * x, y], axis=1)


def clavicle(body: Anatomy, side: int) -> Points:
    """A clavicle on a frontal view, from the breastbone outwards."""
    top = body.top
    line = brush.curve((0.035, top + 0.085), (0.19, top + 0.045), (0.37, top - 0.01), count=20)
    line[:, 1] += 0.008 * np.sin(np.linspace(0, 2 * np.pi, 20))
    line[:, 0] = 0.5 + sign_of(side) * line[:, 0]
    return line


def lung_outlines(body: Anatomy, lateral: bool) -> list[Points]:
    """The lungs' outlines: right, left; one on a lateral view."""
    return [_lung_outline_lateral(body)] if lateral else [_lung_outline(body, side) for side in (RIGHT, LEFT)]


def heart_outline(body: Anatomy, lateral: bool) -> Points:
    """The heart's outline."""
    y = 0.5 * sum(body.base) - 0.2 + 0.35 * (body.heart_height - 0.13)
    if lateral:
        return brush.ellipse((0.37 + 0.3 * (body.heart_width - 0.138), y), (body.heart_width, body.heart_height), 0.5)
    angle = 0.55 * (1 - body.roundness)
    shift = body.heart_shift + 0.35 * (body.heart_width - 0.138)
    return brush.ellipse((0.5 + shift, y), (1.15 * body.heart_width, body.heart_height), angle)


def knob_place(body: Anatomy, lateral: bool) -> tuple[float, float]:
    """The middle of the aortic arch."""
    if lateral:
        return 0.55, body.top + 0.185
    return 0.5 + body.mediastinum * 0.75 + 0.3 * body.unfolding, body.top + 0.185


def paint_frontal(body: Anatomy, size: int, rng: np.random.Generator) -> Scene:
    """A frontal view."""
    canvas = brush.blank(size, 0.03)
    brush.fill(canvas, _torso(), body.tissue - 0.03, soft=0.012)
    brush.fill(canvas, np.array([(0, 0.74), (1, 0.74), (1, 1.1), (0, 1.1)], float), 0.12, soft=0.05)
    lungs = [brush.mask_of(size, _lung_outline(body, side), soft=0.004) for side in (RIGHT, LEFT)]
    for side in (RIGHT, LEFT):
        canvas.gray += lungs[side] * (body.air - canvas.gray)
    scene = Scene(canvas, body, False, lungs)
    for side in (RIGHT, LEFT):
        _paint_vessels(scene, side, scene.at(side, 0.12, 0.52), rng)
        brush.blob(canvas, scene.at(side, 0.08, 0.5), (body.hila[side], 1.7 * body.hila[side]), 0.17, edge=0.6)
    _paint_mediastinum(scene)
    brush.blob(canvas, (0.68, body.base[LEFT] - 0.015), (0.05, 0.028), -0.18, edge=0.4)  # air in the stomach
    _paint_spine(scene)
    _paint_bones(scene)
    return scene


def paint_lateral(body: Anatomy, size: int, rng: np.random.Generator) -> Scene:
    """A lateral view."""
    canvas = brush.blank(size, 0.03)
    y = np.linspace(-0.05, 1.05, 24)
    front, back = front_wall(y) - 0.075 - 0.03 * np.sin(3 * y), back_wall(body, y) + 0.17
    outline = np.concatenate([np.stack([front, y], 1), np.stack([back, y], 1)[::-1]])
    brush.fill(canvas, outline, body.tissue, soft=0.012)
    brush.fill(canvas, np.array([(0, 0.78), (1, 0.78), (1, 1.1), (0, 1.1)], float), 0.12, soft=0.05)
    mask = brush.mask_of(size, _lung_outline_lateral(body), soft=0.005)
    canvas.gray += mask * (body.air + 0.05 - canvas.gray)
    scene = Scene(canvas, body, True, [mask, mask])
    _paint_vessels(scene, LEFT, (0.52, body.top + 0.3), rng)
    brush.blob(canvas, (0.52, body.top + 0.3), (1.3 * body.hila[0], 1.5 * body.hila[1]), 0.14, edge=0.6)
    brush.cover(canvas, heart_outline(body, True), 0.5, soft=0.012)
    _paint_arch(scene)
    brush.stroke(canvas, [brush.curve((0.49, -0.02), (0.51, 0.2), (0.53, body.top + 0.26))], 0.03, -0.1, soft=0.004)
    # the other half of the diaphragm, a little higher
    dome, x = body.base[RIGHT] - 1.1 * body.dome[RIGHT], np.linspace(0.2, 0.74, 20)
    other = np.stack([x, dome + 0.35 * (x - 0.42) ** 2 + 0.3 * np.maximum(x - 0.55, 0)], 1)
    brush.cover(canvas, np.concatenate([other, [(0.74, 1.0), (0.2, 1.0)]]), body.air + 0.2, soft=0.004)
    _paint_spine(scene)
    for k in range(RIBS):
        start = body.top + 0.075 * k
        x0 = float(back_wall(body, start)) + 0.08
        path = brush.curve((x0, start), (0.55, start + 0.05), (0.3, start + 0.17))
        brush.stroke(canvas, [path], 0.018, 0.035 * body.bone, soft=0.002)
    y = np.linspace(body.top + 0.02, 0.6, 20)
    brush.stroke(canvas, [np.stack([front_wall(y) - 0.02, y], 1)], 0.026, 0.13 * body.bone, soft=0.004)
    return scene


def paint_look_alikes(scene: Scene, rng: np.random.Generator) -> None:
    """What every film may show and what means nothing: nipples, vessels seen end on, a fold of skin."""
    for side in (RIGHT, LEFT):
        if rng.random() < 0.35:
            place = scene.at(side, rng.uniform(0.5, 0.7), rng.uniform(0.8, 1.0), 0.1)
            brush.blob(scene.canvas, place, (0.018, 0.016), rng.uniform(0.03, 0.1), edge=0.4)
        for _ in range(int(rng.integers(0, 4))):
            place = scene.at(side, rng.uniform(0.2, 0.45), rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.65))
            radius = rng.uniform(0.006, 0.01)
            brush.blob(scene.canvas, place, (radius, radius), rng.uniform(0.08, 0.2), edge=0.4)
        if rng.random() < 0.15:
            start, stop = rng.uniform(0.05, 0.3), rng.uniform(0.6, 0.95)
            fold = scene.line(side, [(0.5, start, 0.8), (0.7, (start + stop) / 2, 0.85), (0.75, stop, 0.85)])
            brush.stroke(scene.canvas, [fold], 0.008, rng.uniform(0.03, 0.1), soft=0.003)


def _torso() -> Points:
    right = [(0.41, -0.05), (0.40, 0.05), (0.30, 0.085), (0.12, 0.115), (0.03, 0.19), (-0.05, 0.35), (0.02, 0.5)]
    right += [(0.06, 0.75), (0.07, 1.05)]
    return np.array(right + [(1 - x, y) for x, y in reversed(right)])


def _lung_outline(body: Anatomy, side: int) -> Points:
    y = body.top + (body.base[side] - body.top) * np.linspace(0, 1, 40) ** 1.5
    out = np.maximum(outer_wall(body, side, y), 0.05)
    u = np.linspace(1, 0, 24)
    base = np.stack([0.045 + u * (body.width - 0.045), diaphragm(body, side, u)], axis=1)
    apex = np.array([(0.05, body.top + 0.02)])
    line = np.concatenate([np.stack([out, y], axis=1), base, apex])
    line[:, 0] = 0.5 + sign_of(side) * line[:, 0]
    return line


def _lung_outline_lateral(body: Anatomy) -> Points:
    low = body.base[LEFT] - body.dome[LEFT]
    y = np.linspace(body.top, low, 24)
    back = np.linspace(body.top + 0.02, body.base[LEFT] + 0.02, 24)
    x = np.linspace(float(back_wall(body, back[-1])), 0.2, 24)
    base = low + 0.25 * (x - 0.38) ** 2 + 1.4 * np.maximum(x - 0.5, 0) ** 2
    # the apex is a dome: both walls lean together above
    lean = 0.13 * np.exp(-np.linspace(0, 14, 24))
    rear = np.stack([back_wall(body, back) - 0.6 * lean, back], 1)
    front = np.stack([front_wall(y) + lean, y], 1)[::-1]
    return np.concatenate([rear, np.stack([x, base], 1), front])


def _paint_vessels(scene: Scene, side: int, hilum: tuple[float, float], rng: np.random.Generator) -> None:
    """Vessels spreading from the hilum, thick ones short, thin ones long."""
    body, count = scene.body, 16
    middle = 0 if side == LEFT else np.pi
    spread = 2 * np.pi if scene.lateral else 2.4
    angles = middle + spread * (np.linspace(-0.5, 0.5, count) + 0.03 * rng.standard_normal(count))
    lengths = body.reach * rng.uniform(0.13, 0.27, count)
    bends = 0.35 * rng.standard_normal((count, 6)).cumsum(axis=1)
    step = lengths[:, None] / 6
    turn = angles[:, None] + bends
    paths = np.cumsum(np.stack([step * np.cos(turn), 1.25 * step * np.sin(turn)], axis=2), axis=1) + hilum
    within = scene.lungs[side]
    brush.stroke(scene.canvas, list(paths), 0.005, body.vessels, soft=0.002, within=within)
    brush.stroke(scene.canvas, list(paths[:, :3]), 0.010, 0.8 * body.vessels, soft=0.003, within=within)


def _paint_mediastinum(scene: Scene) -> None:
    body, canvas = scene.body, scene.canvas
    level, half = body.tissue + 0.12, body.mediastinum
    low = 0.5 * sum(body.base)
    right = [
        (0.5 - 0.5 * half, body.top - 0.06),
        (0.5 - 0.8 * half, body.top),
        (0.5 - half, body.top + 0.15),
        (0.5 - half, low),
    ]
    left = [
        (0.5 + half, low),
        (0.5 + half, body.top + 0.3),
        (0.5 + 0.8 * half, body.top),
        (0.5 + 0.5 * half, body.top - 0.06),
    ]
    brush.cover(canvas, np.array(right + left), level, soft=0.008)
    brush.cover(canvas, brush.ellipse(knob_place(body, False), (body.knob, body.knob)), level, soft=0.005)
    trunk = (0.5 + half + 0.3 * body.pulmonary, body.top + 0.265)
    brush.cover(canvas, brush.ellipse(trunk, (body.pulmonary * 1.6, 0.045)), level - 0.03, soft=0.006)
    brush.cover(canvas, heart_outline(body, False), body.tissue + 0.15, soft=0.007)
    aorta = brush.curve(
        (0.5 + 0.8 * half, body.top + 0.19), (0.5 + half + 1.4 * body.unfolding, body.top + 0.30), (0.52, low - 0.02)
    )
    brush.stroke(canvas, [aorta], 0.035, 0.05, soft=0.004)
    if body.unfolding:
        brush.cover(canvas, np.concatenate([aorta, [(0.5, low), (0.5, body.top + 0.19)]]), level - 0.06, soft=0.006)
    carina = (0.5, body.top + 0.22)
    tubes = [np.array([(0.5, -0.02), carina]), np.array([carina, (0.44, carina[1] + 0.07)])]
    tubes.append(np.array([carina, (0.57, carina[1] + 0.075)]))
    brush.stroke(canvas, tubes[:1], 0.032, -0.13, soft=0.005)
    brush.stroke(canvas, tubes[1:], 0.018, -0.06, soft=0.005)


def _paint_arch(scene: Scene) -> None:
    body = scene.body
    x, y = knob_place(body, True)
    radius = 0.075 + 0.6 * body.unfolding
    arch = brush.ellipse((x + 0.01, y + 0.06), (radius, radius))[20:40]  # the upper half
    down = brush.curve(arch[-1], (arch[-1][0] + body.unfolding + 0.03, 0.5), (0.7, 0.78))
    brush.stroke(scene.canvas, [np.concatenate([arch, down])], 1.5 * body.knob, 0.06, soft=0.006)
    if body.pulmonary > 0.02:
        brush.blob(scene.canvas, (0.47, body.top + 0.28), (2 * body.pulmonary, 1.6 * body.pulmonary), 0.12)


def _paint_spine(scene: Scene) -> None:
    body, canvas, lateral = scene.body, scene.canvas, scene.lateral
    middle = spine(body, lateral)
    half = 0.04 if lateral else 0.027
    brush.stroke(canvas, [middle], 2 * half, (0.1 if lateral else 0.06) * body.bone, soft=0.004)
    discs = [middle[k] + np.array([(-half, 0.0), (half, 0.0)]) for k in range(2, 39, 2)]
    brush.stroke(canvas, discs, 0.009, -0.05 * body.bone, soft=0.002)
    edges = [disc + np.array([0, d]) for disc in discs for d in (-0.008, 0.008)]
    brush.stroke(canvas, edges, 0.004, 0.05 * body.bone)


def _paint_bones(scene: Scene) -> None:
    body, canvas = scene.body, scene.canvas
    for side in (RIGHT, LEFT):
        ribs = [rib(body, side, number) for number in range(RIBS)]
        brush.stroke(canvas, ribs, 0.024, 0.045 * body.bone, soft=0.002)
        edges = [line + np.array([0, d]) for line in ribs for d in (-0.011, 0.011)]
        brush.stroke(canvas, edges, 0.004, 0.035 * body.bone)
        # the front of the same ribs runs back down and inwards, fainter
        fronts = [
            brush.curve(tuple(line[-1]), (0.5 + sign_of(side) * 0.72 * body.width, line[-1][1] + 0.065),
                        (0.5 + sign_of(side) * 0.36 * body.width, line[-1][1] + 0.09), count=10)
            for line in ribs[1:7]
        ]  # fmt: skip
        brush.stroke(canvas, fronts, 0.022, 0.026 * body.bone, soft=0.003)
        _paint_shoulder(scene, side)


def _paint_shoulder(scene: Scene, side: int) -> None:
    body, canvas, toward = scene.body, scene.canvas, sign_of(side)
    line, broken = clavicle(body, side), body.broken_clavicle[side]
    parts = [line]
    if broken:
        # the outer part sinks and overrides the inner
        parts = [line[:10], line[11:] + np.array([-toward * 0.012, 0.018 + 0.03 * broken])]
    brush.stroke(canvas, parts, 0.026, 0.11 * body.bone, soft=0.002)
    edges = [part + np.array([0, d]) for part in parts for d in (-0.012, 0.012)]
    brush.stroke(canvas, edges, 0.004, 0.05 * body.bone)
    brush.blob(canvas, (0.5 + toward * 0.45, 0.215), (0.042, 0.05), 0.16 * body.bone, edge=0.2)
    blade = brush.curve((0.5 + toward * 0.40, 0.2), (0.5 + toward * 0.345, 0.3), (0.5 + toward * 0.37, 0.45))
    brush.stroke(canvas, [blade], 0.012, 0.06 * body.bone, soft=0.003)
