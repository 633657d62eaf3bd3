"""Self-distillation: a student's distribution over prototypes is to be that of a teacher which never had a gradient.

    cross_view        of other crops of the image (DINO: Caron et al. 2021, eq. 3)
    masked_patches    of patches that the student does not see (iBOT: Zhou et al. 2022, eq. 2)
    koleo             images' features keep away from their nearest neighbour (Sablayrolles et al. 2019, eq. 4)

A teacher's distribution is kept from collapsing by a moving centre (DINO, eq. 4) or by Sinkhorn-Knopp (SwAV: Caron et
al. 2020; section 4 of DINOv2, Oquab et al. 2023). All are of all workers' rows together: DINOv2's KoLeo is of a GPU's.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

from cxrlt_ray.objectives.terms.gather import gathered, joint_mean, share_of, workers

ROUNDS = 3  # of Sinkhorn-Knopp
CENTRE_MOMENTUM = 0.9
EPS = 1e-8  # of KoLeo


def centred(logits: torch.Tensor, centre: torch.Tensor, temperature: float) -> torch.Tensor:
    """The teacher's distributions [R, K] from its logits: softmax of (logits - centre) / temperature."""
    return F.softmax((logits.float() - centre) / temperature, dim=-1)


@torch.no_grad()
def moved_centre(centre: torch.Tensor, logits: torch.Tensor, momentum: float = CENTRE_MOMENTUM) -> torch.Tensor:
    """The centre [K] after a batch of all workers' logits [R, K]: momentum centre + (1 - momentum) their mean."""
    total = torch.cat([logits.float().sum(dim=0), logits.new_tensor([len(logits)], dtype=torch.float32)])
    if workers() > 1:
        dist.all_reduce(total)
    if total[-1] == 0:
        return centre
    return momentum * centre + (1 - momentum) * total[:-1] / total[-1]


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float, rounds: int = ROUNDS) -> torch.Tensor:
    """The teacher's distributions [R, K]: rows sum to 1, prototypes have nearly equal shares of all workers' rows.

    The logarithm of what DINOv2 computes: exp(logits / temperature) overflows for logits above 3 at .04.
    """
    scores = logits.float() / temperature
    for _ in range(rounds):
        scores = scores - _joint_logsumexp(scores)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp()


def cross_view(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean cross-entropy of pairs of two crops of an image, over pairs and all workers' images.

    student: logits [S, B, K] of S crops. teacher: distributions [T, B, K] of the first T of them, which are not
    compared with themselves.
    """
    logs = F.log_softmax(student.float() / temperature, dim=-1)
    pairs = -torch.einsum("tbk,sbk->tsb", teacher, logs)
    other = ~torch.eye(len(teacher), len(student), dtype=torch.bool, device=student.device)
    return joint_mean(pairs[other].mean(dim=0))


def masked_patches(
    student: torch.Tensor, teacher: torch.Tensor, image: torch.Tensor, images: int, temperature: float
) -> torch.Tensor:
    """The mean over all workers' images of the mean cross-entropy of an image's masked patches; 0 of one without any.

    student: logits [M, K], teacher: distributions [M, K] of masked patches; image: int64 [M], the image that a patch is
    of, among this worker's `images`.
    """
    losses = -(teacher * F.log_softmax(student.float() / temperature, dim=-1)).sum(dim=-1)
    count = torch.bincount(image, minlength=images).clamp(min=1)
    return joint_mean(losses.new_zeros(images).index_add(0, image, losses / count[image]))


def koleo(features: torch.Tensor) -> torch.Tensor:
    """The mean over all workers' rows of -log of the distance of a row's unit vector to its nearest neighbour.

    features: [B, D]. Of a single row it is 0. Two equal images in a batch have a distance of EPS, and a huge gradient.
    """
    x = F.normalize(features.float(), dim=-1, eps=EPS)
    share = share_of(x)
    if share.total < 2:
        return x.sum() * 0.0
    everyone = gathered(x, share)
    with torch.no_grad():
        cosines = x @ everyone.T
        cosines[torch.arange(len(x), device=x.device), share.own(x.device)] = -2.0
        nearest = cosines.argmax(dim=1)
    return joint_mean(-torch.log(F.pairwise_distance(x, everyone[nearest], eps=EPS) + EPS))


@torch.no_grad()
def entropies(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean entropy of all workers' distributions [R, K], and the entropy of their mean; both as shares of ln K.

    Their difference is what a prototype tells of the image: 0 where all images have one distribution, be it flat or
    a single prototype.
    """
    rows = _entropy(probabilities).sum().reshape(1)
    total = torch.cat([probabilities.sum(dim=0), rows, rows.new_tensor([len(probabilities)])])
    if workers() > 1:
        dist.all_reduce(total)
    mean = total[:-1] / total[-1].clamp(min=1)
    most = math.log(max(2, probabilities.shape[1]))
    return mean[-1] / most, _entropy(mean[:-1]) / most


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(probabilities).sum(dim=-1)


def _joint_logsumexp(scores: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exp over all workers' rows [R, K]: [K]."""
    own = scores.logsumexp(dim=0)
    if workers() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(workers())]
    dist.all_gather(parts, own)
    return torch.stack(parts).logsumexp(dim=0)
