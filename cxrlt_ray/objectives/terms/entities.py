"""Two texts of a concept: contrast over a knowledge graph (KAD: Zhang et al. 2023, section 4.2).

Pairs are (name, definition) of a concept, and (head [SEP] relation, tail) of a relation, where both texts stand for the
tail's concept. All texts of one concept are positives of each other. A row's loss is the mean of -log softmax over its
positives (the outer form of Khosla et al. 2020, eq. 2, across the two sides); the loss is the mean of both directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cxrlt_ray.objectives.terms.gather import gathered, joint_mean, share_of


def entity_contrast(
    first: torch.Tensor, second: torch.Tensor, concept: torch.Tensor, scale: torch.Tensor | float
) -> torch.Tensor:
    """The contrast of paired texts [B, D] of concepts int64 [B], over all workers' pairs. scale: the factor of cosines.

    With as many concepts as pairs it is `contrast.info_nce`.
    """
    first, second = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    share = share_of(first)
    positive = (concept.unsqueeze(1) == gathered(concept, share).unsqueeze(0)).float()
    directions = []
    for query, keys in ((first, second), (second, first)):
        logs = (scale * query @ gathered(keys, share).T).log_softmax(dim=1)
        directions.append(joint_mean(-(positive * logs).sum(dim=1) / positive.sum(dim=1)))
    return (directions[0] + directions[1]) / 2
