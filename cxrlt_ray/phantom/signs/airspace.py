"""Signs in the lungs: what makes them whiter (consolidation, nodules, scars) and what makes them darker."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.phantom import brush
from cxrlt_ray.phantom.anatomy import LEFT, RIGHT, Anatomy, Scene
from cxrlt_ray.phantom.signs import places
from cxrlt_ray.phantom.signs.registry import Sign, changes, paints


@paints("Consolidation")
def paint_consolidation(scene: Scene, sign: Sign) -> None:
    """A dense lobe with a sharp edge at its fissure, and in it the bronchi, dark with air."""
    rng, within = sign.rng(), scene.lungs[sign.side]
    top = rng.choice([0.08, 0.5])
    corners = [(0.12, top, 0.3), (1.05, top + 0.05, 0.3), (1.05, top + 0.36, 0.85), (0.2, top + 0.42, 0.85)]
    outline = np.array([scene.at(sign.side, *corner) for corner in corners])
    if scene.lateral:
        outline = outline[[0, 1, 2, 3]] + np.array([(0, 0), (0.12, 0), (0.08, 0), (0, 0)])
    brush.fill(scene.canvas, outline, sign.grade(0.12, 0.3), soft=0.012, within=within)
    start = scene.at(sign.side, 0.2, top + 0.2, 0.5)
    turn = rng.uniform(-0.5, 0.5, 5) + (0 if sign.side == LEFT else np.pi)
    tips = np.stack([np.cos(turn), np.sin(turn)], axis=1) * rng.uniform(0.08, 0.17, (5, 1)) + start
    brush.stroke(scene.canvas, [np.array([start, tip]) for tip in tips], 0.010, -sign.grade(0.1, 0.24), within=within)


@paints("Pneumonia")
def paint_pneumonia(scene: Scene, sign: Sign) -> None:
    """One patch of mottled white in the middle or lower lung."""
    rng = sign.rng()
    place = scene.at(sign.side, rng.uniform(0.35, 0.75), rng.uniform(0.5, 0.9), rng.uniform(0.25, 0.85))
    radii = (rng.uniform(0.07, 0.11), rng.uniform(0.06, 0.1))
    brush.cloud(scene.canvas, place, radii, sign.grade(0.14, 0.34), rng, 0.03, within=scene.lungs[sign.side])


@paints("Infiltration")
def paint_infiltrates(scene: Scene, sign: Sign) -> None:
    """Many small fluffy flecks scattered over a lung."""
    rng = sign.rng()
    for _ in range(int(sign.grade(8, 20))):
        place = scene.at(sign.side, rng.uniform(0.25, 0.95), rng.uniform(0.2, 0.95), rng.uniform(0.15, 0.9))
        radius = rng.uniform(0.014, 0.026)
        brush.blob(
            scene.canvas, place, (radius, radius), sign.grade(0.07, 0.17), edge=0.9, within=scene.lungs[sign.side]
        )


@paints("Lung Opacity")
def paint_haze(scene: Scene, sign: Sign) -> None:
    """A veil over a zone of a lung, without edge or texture."""
    rng = sign.rng()
    place = scene.at(sign.side, rng.uniform(0.4, 0.7), rng.uniform(0.25, 0.85), rng.uniform(0.3, 0.8))
    radii = (rng.uniform(0.11, 0.15), rng.uniform(0.12, 0.17))
    brush.blob(scene.canvas, place, radii, sign.grade(0.05, 0.14), edge=0.9, within=scene.lungs[sign.side])


@paints("Edema")
def paint_edema(scene: Scene, sign: Sign) -> None:
    """A bat's wings around both hila, and short level lines (Kerley B) at the walls' feet."""
    rng = sign.rng()
    for side in (RIGHT, LEFT):
        within = scene.lungs[side]
        place = scene.at(side, 0.3, 0.55, 0.52)
        brush.blob(scene.canvas, place, (0.11, 0.15), sign.grade(0.02, 0.08), edge=0.9, within=within)
        lines = []
        for down in np.linspace(0.7, 1.0, int(sign.grade(3, 8))):
            y = down + 0.01 * rng.standard_normal()
            lines.append(np.array([scene.at(side, 0.83, y, 0.88), scene.at(side, 0.98, y, 0.98)]))
        brush.stroke(scene.canvas, lines, 0.005, sign.grade(0.12, 0.28), within=within)


@changes("Atelectasis", places.dome)
def raise_diaphragm(body: Anatomy, sign: Sign) -> None:
    """The diaphragm below the airless part stands higher."""
    body.dome[sign.side] += sign.grade(0.0, 0.03)


@paints("Atelectasis")
def paint_plates(scene: Scene, sign: Sign) -> None:
    """Plates of airless lung: broad near-level lines above the diaphragm."""
    rng, lines = sign.rng(), []
    for _ in range(int(rng.integers(1, 4))):
        down = rng.uniform(0.72, 0.98)
        start, stop = rng.uniform(0.15, 0.35), rng.uniform(0.7, 0.95)
        lines.append(
            scene.line(sign.side, [(start, down + 0.03, 0.5), (stop, down + 0.05 * rng.standard_normal(), 0.85)])
        )
    brush.stroke(scene.canvas, lines, 0.012, sign.grade(0.1, 0.26), soft=0.002, within=scene.lungs[sign.side])


@paints("Lobar Atelectasis")
def paint_collapsed_lobe(scene: Scene, sign: Sign) -> None:
    """An upper lobe fallen against the mediastinum: a dense triangle with a hollow lower edge."""
    side = sign.side
    reach = sign.grade(0.95, 0.75)
    edge = scene.line(side, [(reach, 0.06, 0.15), (0.42, 0.3, 0.3), (0.1, 0.5, 0.55)])
    outline = np.concatenate([edge, [scene.at(side, 0.0, 0.5, 0.6), scene.at(side, 0.0, -0.05, 0.5)]])
    brush.fill(scene.canvas, outline, sign.grade(0.2, 0.36), soft=0.003, within=scene.lungs[side])


@paints("Round(ed) Atelectasis")
def paint_round_atelectasis(scene: Scene, sign: Sign) -> None:
    """A round mass on the pleura below, into which vessels curl like a comet's tail."""
    rng, side = sign.rng(), sign.side
    within = scene.lungs[side]
    x, y = scene.at(side, 0.85, 0.85, 0.88)
    radius = sign.grade(0.035, 0.05)
    brush.blob(scene.canvas, (x, y), (radius, radius), sign.grade(0.18, 0.36), edge=0.15, within=within)
    tails = []
    for k in range(5):
        end = scene.at(side, 0.35, 0.5 + 0.06 * k, 0.55)
        bulge = scene.at(side, 0.75, 0.45 + 0.08 * k + 0.02 * rng.standard_normal(), 0.75)
        tails.append(brush.curve((x, y), bulge, end))
    brush.stroke(scene.canvas, tails, 0.006, sign.grade(0.12, 0.26), within=within)


@paints("Infarction")
def paint_hump(scene: Scene, sign: Sign) -> None:
    """Hampton's hump: a dense wedge on the wall, its blunt tip towards the hilum."""
    rng, side = sign.rng(), sign.side
    down = rng.uniform(0.6, 0.85)
    outline = scene.line(side, [(1.1, down - 0.13, 0.98), (0.45, down, 0.62), (1.1, down + 0.13, 0.98)])
    brush.fill(scene.canvas, outline, sign.grade(0.18, 0.38), soft=0.003, within=scene.lungs[side])


@paints("Fibrosis")
def paint_network(scene: Scene, sign: Sign) -> None:
    """A coarse network of fine lines in both lower lungs."""
    rng = sign.rng()
    for side in (RIGHT, LEFT):
        rings = []
        for _ in range(int(sign.grade(20, 45))):
            place = scene.at(side, rng.uniform(0.35, 1.0), rng.uniform(0.55, 1.05), rng.uniform(0.5, 1.0))
            radius = rng.uniform(0.010, 0.018)
            rings.append(brush.ellipse(place, (radius, radius), count=7)[[0, 1, 2, 3, 4, 5, 6, 0]])
        brush.stroke(scene.canvas, rings, 0.005, sign.grade(0.12, 0.26), within=scene.lungs[side])


@paints("Tuberculosis")
def paint_cavity(scene: Scene, sign: Sign) -> None:
    """Below the collarbone a thick-walled cavity among small flecks and strands to the hilum."""
    rng, side = sign.rng(), sign.side
    within = scene.lungs[side]
    x, y = scene.at(side, rng.uniform(0.5, 0.65), rng.uniform(0.16, 0.26), rng.uniform(0.45, 0.65))
    radius = sign.grade(0.03, 0.045)
    ring = brush.ellipse((x, y), (radius, radius))
    brush.stroke(scene.canvas, [np.concatenate([ring, ring[:1]])], 0.013, sign.grade(0.14, 0.32), within=within)
    brush.blob(scene.canvas, (x, y), (0.8 * radius, 0.8 * radius), -0.06, within=within)
    for _ in range(10):
        place = (x + 0.05 * rng.standard_normal(), y + 0.05 * rng.standard_normal())
        brush.blob(scene.canvas, place, (0.01, 0.01), sign.grade(0.08, 0.2), edge=0.7, within=within)
    strands = [np.array([(x, y + radius), scene.at(side, 0.15, 0.42 + 0.05 * k, 0.52)]) for k in range(3)]
    brush.stroke(scene.canvas, strands, 0.005, sign.grade(0.08, 0.18), within=within)


@paints("Granuloma")
def paint_granuloma(scene: Scene, sign: Sign) -> None:
    """One to three tiny calcified dots."""
    rng = sign.rng()
    for _ in range(int(rng.integers(1, 4))):
        place = scene.at(sign.side, rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.85))
        radius = rng.uniform(0.008, 0.012)
        brush.blob(scene.canvas, place, (radius, radius), sign.grade(0.3, 0.75), edge=0.3)


@paints("Nodule")
def paint_nodule(scene: Scene, sign: Sign) -> None:
    """A small round shadow anywhere in a lung."""
    rng = sign.rng()
    place = scene.at(sign.side, rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.95), rng.uniform(0.2, 0.9))
    radius = rng.uniform(0.02, 0.028)
    brush.blob(scene.canvas, place, (radius, radius), sign.grade(0.12, 0.34), edge=0.2)


@paints("Mass")
def paint_mass(scene: Scene, sign: Sign) -> None:
    """A large lobed shadow with a sharp rim."""
    rng = sign.rng()
    x, y = scene.at(sign.side, rng.uniform(0.35, 0.8), rng.uniform(0.15, 0.9), rng.uniform(0.25, 0.85))
    radius, opacity = rng.uniform(0.05, 0.08), sign.grade(0.14, 0.36)
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    rim = radius * (1 + 0.12 * np.sin(3 * turn + rng.uniform(0, 6)))
    outline = np.stack([x + rim * np.cos(turn), y + rim * np.sin(turn)], axis=1)
    brush.fill(scene.canvas, outline, opacity, soft=0.004)


@paints("Lung Lesion")
def paint_star(scene: Scene, sign: Sign) -> None:
    """A middling shadow with spikes."""
    rng = sign.rng()
    x, y = scene.at(sign.side, rng.uniform(0.35, 0.8), rng.uniform(0.15, 0.85), rng.uniform(0.25, 0.85))
    radius = sign.grade(0.026, 0.036)
    brush.blob(scene.canvas, (x, y), (radius, 0.9 * radius), sign.grade(0.14, 0.3), edge=0.3)
    turn = np.linspace(0, 2 * np.pi, 11, endpoint=False) + rng.uniform(0, 1)
    tips = np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius * rng.uniform(1.7, 2.6, (11, 1)) + (x, y)
    brush.stroke(scene.canvas, [np.array([(x, y), tip]) for tip in tips], 0.006, sign.grade(0.1, 0.24))


@changes("Emphysema", places.lungs)
def inflate_lungs(body: Anatomy, sign: Sign) -> None:
    """Long dark lungs over a flat diaphragm, a slim heart, few vessels."""
    body.base = [base + sign.grade(0.01, 0.05) for base in body.base]
    body.dome = [dome * sign.grade(0.8, 0.25) for dome in body.dome]
    body.air -= sign.grade(0.02, 0.07)
    body.heart_width *= sign.grade(0.98, 0.82)
    body.vessels *= sign.grade(0.9, 0.55)


@paints("Bulla")
def paint_bulla(scene: Scene, sign: Sign) -> None:
    """A large empty bubble with a hair-thin wall in an upper lung."""
    rng, within = sign.rng(), scene.lungs[sign.side]
    place = scene.at(sign.side, rng.uniform(0.5, 0.7), rng.uniform(0.15, 0.4), rng.uniform(0.35, 0.65))
    radii = (sign.grade(0.05, 0.08), sign.grade(0.06, 0.1))
    brush.blob(scene.canvas, place, radii, -sign.grade(0.06, 0.14), edge=0.1, within=within)
    ring = brush.ellipse(place, radii)
    brush.stroke(scene.canvas, [np.concatenate([ring, ring[:1]])], 0.005, sign.grade(0.12, 0.28), within=within)


@paints("Azygos Lobe")
def paint_azygos_fissure(scene: Scene, sign: Sign) -> None:
    """A curved hair line across the right apex, ending in a drop; it is always on the right."""
    places = [(0.75, 0.02, 0.55), (0.62, 0.2, 0.5), (0.1, 0.4, 0.47)]
    line = scene.line(RIGHT, places)
    brush.stroke(scene.canvas, [line], 0.007, sign.grade(0.18, 0.36), within=scene.lungs[RIGHT])
    brush.blob(scene.canvas, line[-1], (0.014, 0.024), sign.grade(0.2, 0.4))
