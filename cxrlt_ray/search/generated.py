"""Whether generated images may train beside a run's data: their generator must not have learnt who judges the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from cxrlt_ray.data.fingerprints import HashedSet, release_of, subject_keys
from cxrlt_ray.data.joining import PHANTOM
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import GENERATED_MARKER
from cxrlt_ray.storage import Store

JUDGING = ("val", "holdout", "development", "test")


def check_generators(manifest: Manifest, data: str, cohorts: Mapping[str, str]) -> Iterator[str]:
    """What to tell of the generated ones among `cohorts`, name -> directory. data: the main cohort's directory.

    Raises UsageError where a generator has learnt subjects of a split that judges the run, and CxrltError for a
    generate.json that is damaged.
    """
    main = manifest.of_cohort(MAIN)
    release = release_of(manifest.source, data)
    for name, path in cohorts.items():
        store = Store(path.removeprefix(PHANTOM))
        if not store.exists(GENERATED_MARKER):
            continue
        if (learnt := _learnt(store)) is None:
            yield (
                f"Cohort {name}: its {GENERATED_MARKER} is of before generators kept whom they learnt: whether this "
                "run is judged on some of them is not known."
            )
            continue
        for split in JUDGING:
            subjects = main.of_split(split).table["subject_id"].unique()
            if count := int(learnt.holds(subject_keys(release, subjects)).sum()):
                raise UsageError(
                    f"--cohort {name}={path}: its generator has learnt {count:,} of the {len(subjects):,} subjects of "
                    f"split {split}, by whom this run is judged. Train the generator on this run's training subjects "
                    "(`generate train --split-seed`, the sweep's --seed), or split the data as the generator's were, "
                    "without --holdout where there are folds."
                )


def _learnt(store: Store) -> HashedSet | None:
    """The subjects that a generator learnt; None where its record is of before they were kept."""
    content = store.read_json(GENERATED_MARKER)
    try:
        seen = content["learnt"].get("seen")
        return None if seen is None else HashedSet.model_validate(seen)
    except (KeyError, TypeError, AttributeError, ValidationError):
        raise CxrltError(f"{store.uri}/{GENERATED_MARKER} is damaged: draw the images anew.") from None
