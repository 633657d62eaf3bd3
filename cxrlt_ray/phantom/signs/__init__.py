"""The 45 findings as drawn signs, each in its own place: registries (registry.py) that the modules here fill.

    heart.py     heart, great vessels, mediastinum, hila
    airspace.py  what makes a lung whiter, and what makes it darker
    pleura.py    pleura, free air and fluid
    bones.py     fractures, spine, devices
    places.py    where a changed anatomy can be seen

A sign either changes the anatomy before it is painted (`@changes`: a wide heart) or is painted onto it
(`@paints`: a nodule), or both. Its details are drawn from the study's own random numbers, so that all
images of a study show the same nodule; `strength` grades how plain it is.
"""

from cxrlt_ray.phantom.signs import airspace, bones, heart, pleura
from cxrlt_ray.phantom.signs.registry import CHANGES, GENERAL, PAINTS, PLACES, Sign, changes, drawn, paints

__all__ = [
    "CHANGES",
    "GENERAL",
    "PAINTS",
    "PLACES",
    "Sign",
    "airspace",
    "bones",
    "changes",
    "drawn",
    "heart",
    "paints",
    "pleura",
]
