"""Synthetic images with known truth: what the demo sends and what the tests hold the checkpoints to.

A phantom shows that the way from pixels to millimetres is right and that the checkpoint still works. It says nothing
about patients.
"""

from models.phantoms.breast import breast_cine, breast_ultrasound
from models.phantoms.chest import chest_balls, chest_ct
from models.phantoms.lymph_nodes import lymph_node_ct, lymph_node_volume
from models.phantoms.truth import Lesion, Truth

__all__ = [
    "Lesion",
    "Truth",
    "breast_cine",
    "breast_ultrasound",
    "chest_balls",
    "chest_ct",
    "lymph_node_ct",
    "lymph_node_volume",
]
