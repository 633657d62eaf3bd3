"""The phantom cohorts that zero-shot learning is measured on, one for each seed, in build/zeroshot.

Each has a training, a validation and a test split, drawn with `--for-text`: reports that leave findings out and name
half of the rest otherwise, and a test split with 60 studies or more of each finding of task 3, without its company. The
texts of --held-out, one a line, are kept out of the training reports too: the prompts that will be asked by.

    python benchmarks/zeroshot_data.py --images 4000 --size 128 --seeds 0 1 2 --held-out prompts.txt

Prints the images of each finding of task 3 in each split, by the truth that was drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

BUILD = Path(__file__).parents[1] / "build" / "zeroshot"
SPLITS = ("train", "val", "test")


def cohorts(
    images: int,
    size: int,
    seeds: Sequence[int],
    held_out: Iterable[str] = (),
    apart: int | None = None,
    enriched: float = 0.0,
) -> list[Path]:
    """The directories of the cohorts of `seeds`, drawn where they are not there yet.

    apart: in how many test studies each finding of task 3 is at least; 60 without, 0 for as many as there happen to be.
    enriched: in what share of the training and validation studies each is at least.
    """
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.phantom.options import combined

    options = combined(True, held_out, apart=apart, enriched=enriched)
    # another choice of texts is another cohort
    named = options.changed()["held_out"].rpartition(" ")[2]
    own = ("" if apart is None else f"-apart{apart}") + (f"-enriched{enriched:g}" if enriched else "")
    folders = [BUILD / f"{images}x{size}-{seed}-{named}{own}" for seed in seeds]
    for folder, seed in zip(folders, seeds, strict=True):
        write_phantom(folder, images, size, seed, options=options)
    return folders


def counts(folder: Path) -> pd.DataFrame:
    """Images of each finding of task 3 (rows) in each split (columns), as labels.csv has them."""
    from cxrlt_ray.data.tasks import TASK3

    labels = pd.read_csv(folder / "cxr-lt-2024" / "labels.csv", usecols=["split", *TASK3])
    return labels.groupby("split")[list(TASK3)].sum().T[list(SPLITS)]


def main() -> None:
    """Draw the cohorts and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--enriched", type=float, default=0.0, help="share of the studies to learn from with each")
    parser.add_argument("--held-out", type=Path, help="file of texts, one a line")
    args = parser.parse_args()
    texts = args.held_out.read_text(encoding="utf-8").splitlines() if args.held_out else []
    held_out = [text for text in texts if text.strip()]
    for folder in cohorts(args.images, args.size, args.seeds, held_out, enriched=args.enriched):
        print(f"{folder}\n{counts(folder).to_string()}\n")


if __name__ == "__main__":
    main()
