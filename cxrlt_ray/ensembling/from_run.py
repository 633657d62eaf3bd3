"""What an ensemble of a run starts from: the pool of its trials, and a warning where weights have seen the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.ensembling.costs import read_costs
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import AGAIN, ANOTHER, COPIES, Pool, Say, best_of_each, candidates, gather
from cxrlt_ray.ensembling.request import EnsembleRequest
from cxrlt_ray.ensembling.shortlist import first_pass_of
from cxrlt_ray.ensembling.tta import under_tta
from cxrlt_ray.runs.contamination import Contamination
from cxrlt_ray.runs.cost import gflops
from cxrlt_ray.runs.pretrain_record import BEGAN, contaminations, judged_splits, records_of
from cxrlt_ray.runs.store import Run
from cxrlt_ray.selection import takes_costs


def pool_of_run(
    request: EnsembleRequest, run: Run, manifest: Manifest, file: EnsembleFile, split: str | None, say: Say = print
) -> Pool:
    """The trials to choose among, plain or under test-time augmentation, with their costs where these are asked for.

    split: what members must be able to score; None: nothing.
    """
    transformed = file.used_space() != "probability" or file.used_aggregation() != "none" or file.gating != 0
    copies = COPIES + ANOTHER * transformed + AGAIN * request.explain
    trials = candidates(run, split, request.pruned, say)
    if file.best_of_each is not None:
        trials = best_of_each(trials, file.best_of_each, say)
    first = first_pass_of(file, request.seed)
    pool = gather(run, manifest, trials, say, most=request.most, copies=copies, first=first)
    pool = under_tta(pool, file.tta, split, request.seed, say)
    if takes_costs(file.selector) or request.explain:
        costs = read_costs(request.costs, pool.names) if request.costs else gflops(pool.trials, pool.tta)
        pool = replace(pool, costs=costs)
    return pool


def contaminations_of(run: Run, manifest: Manifest, pool: Pool, members: list[bool]) -> list[Contamination]:
    """What the pretraining of chosen members' weights has seen of the images that judge them.

    It is computed anew where pretrain.json is beside the weights still; else it is what the sweep found.
    """
    begun = sorted({trial.record.weights for trial, used in zip(pool.trials, members, strict=True) if used})
    sources = {source for weights in begun for source in weights.split(BEGAN)}
    kept = [seen for seen in run.record.seen if seen.weights in sources]
    known = {source for weights in begun for source, _ in records_of(weights)}
    if not known:
        return kept
    data, shards = run.record.data or "", run.shards()[0]
    splits = judged_splits(run.record.folds)
    anew = [seen for weights in begun for seen in contaminations(weights, manifest, data, shards, splits)]
    return list(dict.fromkeys([*anew, *(seen for seen in kept if seen.weights not in known)]))


def mimic_warnings(manifest: Manifest, pool: Pool, members: list[bool]) -> Iterator[str]:
    """A line for each chosen trial whose pretrained weights have seen images of MIMIC-CXR, where these are scored."""
    from cxrlt_ray.models.weights import saw_mimic

    if manifest.source not in ("cxrlt2023", "cxrlt2024"):  # 2026's images are of PadChest
        return
    for trial, used in zip(pool.trials, members, strict=True):
        if used and saw_mimic(trial.record.weights):
            yield (
                f"{trial.name}'s weights ({trial.record.weights}) were pretrained on images of MIMIC-CXR: where the "
                "scored images are of its training split (403 of task 2's 406 studies), the score promises too much."
            )
