"""`python -m cxrlt_ray.generate train|sample|filter`: X-rays of rare findings by a diffusion model, for training.

`train` learns the real images of the train split; `sample` draws images of tail findings, alone or with the findings
that accompany them in real images; `filter` keeps the images that a teacher recognises, which has not seen their source
patients, and that are not near-copies of a patient's image. Both results join a sweep by `--cohort synthetic=DIR`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxrlt_ray import cli, config
from cxrlt_ray.data.fingerprints import HashedSet, release_of, subject_keys
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.generation import cohort_folder, filtering
from cxrlt_ray.generation.config import GeneratorConfig, check_installed, load_config
from cxrlt_ray.generation.records import Filtered, GeneratedRecord, GeneratorRecord, Learnt, Sampled
from cxrlt_ray.generation.request import SAMPLE, SMOKE_IMAGES, TRAIN, GenerateRequest
from cxrlt_ray.storage import Store

__all__ = ["GenerateRequest", "main", "run"]

FEW = 5  # real images of a set; with fewer, generated ones are likely near-copies


def run(request: GenerateRequest) -> GeneratorRecord | GeneratedRecord:
    """Train a generator, draw images with it, or keep the good ones; returns the record of the result.

        from cxrlt_ray import generate
        generate.run(generate.GenerateRequest(action="train", source="/data/mimic", out="generators/mimic"))

    Each continues where an earlier process with the same options was stopped. Raises UsageError for options, files and
    findings that do not fit, CxrltError if the disk or a worker fails.
    """
    check_installed()
    if request.action == TRAIN:
        return _train(request)
    return _sample(request) if request.action == SAMPLE else _filter(request)


def _train(request: GenerateRequest) -> GeneratorRecord:
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.generation.training import Lesson, train_generator
    from cxrlt_ray.generation.training_rows import rows_of, subjects_fingerprint, training_part

    chosen = _config(request)
    data, manifest, findings = _data(request)
    part = training_part(manifest, request.views, print)
    start_ray(request.address)
    (shards,) = prepare(part, request.storage, [chosen.resolution])
    rows = rows_of(part, findings, shards.index().index.to_numpy())
    views = part.table["view"].value_counts()
    subjects, release = np.unique(rows.subject.astype(str)), release_of(manifest.source, data)
    learnt = Learnt(
        data=data,
        task=request.task,
        findings=findings,
        images=len(rows),
        subjects_count=len(subjects),
        cohort=manifest.fingerprint,
        subjects=subjects_fingerprint(rows.subject),
        release=release,
        seen=HashedSet.of(subject_keys(release, subjects), manifest.fingerprint),  # no random salt: it goes on by this
        shards=shards.store.uri,
        size=shards.size,
        views=request.views,
        view=str(views.index[0]),
    )
    print(f"Learning {learnt.images:,} images of {learnt.subjects_count:,} subjects, {len(findings)} findings")
    out = Path(str(request.out)).absolute()
    lesson = Lesson(rows, shards, learnt)
    record = train_generator(chosen, lesson, out, cli.say, request.seed, request.budget, request.smoke)
    print(f"The generator ({record.parameters:,} parameters, {record.steps:,} steps) is in {request.out}")
    print(f"Next: python -m cxrlt_ray.generate sample {request.out} --out FOLDER{' --smoke' * request.smoke}")
    return record


def _config(request: GenerateRequest) -> GeneratorConfig:
    """The configuration, overridden by the options. Raises UsageError for a wrong one."""
    chosen = load_config(request.config_name)
    return config.validate(GeneratorConfig, {**chosen.model_dump(), **request.overrides}, request.config_name)


def _data(request: GenerateRequest) -> tuple[str, Manifest, tuple[str, ...]]:
    """The data to learn, its manifest and the task's findings; a phantom if none is given."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.tasks import load_task
    from cxrlt_ray.search.run_data import PHANTOM_IMAGES, phantom

    data = request.source or phantom(
        request.storage, request.split_seed, SMOKE_IMAGES if request.smoke else PHANTOM_IMAGES
    )
    cohort = read_cohort(data, format=request.format, task=request.task, seed=request.split_seed)
    for note in cohort.notes:
        print(note)
    findings = load_task(request.task, cohort.manifest.findings).findings
    return Store(data).absolute().uri, cohort.manifest, findings


def _sample(request: GenerateRequest) -> GeneratedRecord:
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.generation.conditions import draw_conditions, tail_sets
    from cxrlt_ray.generation.sampling import read_generator, sample_into, tallies

    generator = read_generator(str(request.source))
    rows, findings = generator.rows, generator.rows.findings
    sets = tuple(request.findings or tail_sets(rows.targets, findings))
    conditions = draw_conditions(sets, rows.targets, findings, request.images_a_set, request.company, request.seed)
    for text, tally in tallies(conditions, rows).items():
        if tally.positives < FEW:
            print(f"Warning: of {text} there are {tally.positives} real images: what is drawn is likely near to those")
    how = Sampled(
        sets=tuple(dict.fromkeys(sets)),
        each=request.images_a_set,
        company=request.company,
        guidance=request.guidance,
        solver=request.solver,
        solver_steps=request.steps_of_solver,
        seed=request.seed,
        resolution=generator.record.config.resolution,
    )
    out = Store(str(request.out)).absolute()
    print(
        f"Drawing {len(conditions):,} images of {len(how.sets)} sets ({how.company} company, guidance {how.guidance:g})"
    )
    start_ray(request.address)
    record = sample_into(generator, conditions, how, out, cli.say)
    _report(out, record)
    print(f"Next: python -m cxrlt_ray.generate filter {request.out} --out FOLDER --teacher RUN")
    return record


def _filter(request: GenerateRequest) -> GeneratedRecord:
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.shards import LOSSLESS
    from cxrlt_ray.generation import judging
    from cxrlt_ray.generation.teacher import find_teacher

    generated = cohort_folder.read_generated(str(request.source))
    out = Store(str(request.out)).absolute()
    if out.uri == generated.store.uri or cohort_folder.is_whole(out):
        raise UsageError(f"--out {request.out} holds generated images: give another folder.")
    if generated.source is None:
        raise UsageError(
            f"{request.source} does not say what its images descend from ({cohort_folder.DRAWS} is not there), as one "
            "that was filtered does not: filter the folder that `generate sample` made."
        )
    teacher = None if request.teacher is None else find_teacher(request.teacher, request.storage)
    start_ray(request.address)
    manifest, of = judging.manifest_of(generated), generated.table["set"].to_numpy(object)
    (shards,) = judging.prepared(manifest, request.storage, [generated.record.learnt.size], LOSSLESS, print)
    seen = (
        judging.by_teacher(teacher, generated, manifest, request.storage, request.seen_teacher, print)
        if teacher
        else None
    )
    near = judging.beside_training(generated, manifest, shards, request.features, request.false_alarms, cli.say)
    agrees = None
    if teacher is not None and seen is not None:
        agrees = filtering.agreement(
            of, seen.scores, seen.real, teacher.findings, generated.findings, request.agreement
        )
        if seen.saw:
            print(
                f"Warning: the teacher has seen the source subjects of {seen.saw:,} images: recorded in generate.json"
            )
    else:
        print("No --teacher: nothing says that the images show what they were drawn for")
    copies = near.neighbours.distance < near.distance
    why = filtering.reasons(filtering.Judged(of, judging.readable(manifest, shards), copies, agrees), request.quota)
    by = (seen.scores, seen.real, teacher.findings) if teacher is not None and seen is not None else None
    filtered = Filtered(
        teacher=request.teacher,
        agreement=request.agreement,
        teacher_saw=seen.saw if seen else 0,
        features=request.features,
        false_alarms=request.false_alarms,
        distance=round(near.distance, 6),
        quota=request.quota,
    )
    tallies = filtering.counted(
        generated.record.tallies, of, why, generated.targets, generated.findings, by, generated.source
    )
    record = generated.record.model_copy(update={"filtered": filtered, "tallies": tallies})
    return _keep(generated, record, np.flatnonzero(why == ""), out)


def _keep(generated: cohort_folder.Generated, record: GeneratedRecord, kept: np.ndarray, out: Store) -> GeneratedRecord:
    """Write the kept images as a cohort, without patients' ids."""
    from cxrlt_ray.reporting.generation import tally_table

    if not len(kept):
        cli.console().print(tally_table(record.tallies))
        raise CxrltError("no image is kept: train the generator for longer, or ask for less by --agreement.")
    record = record.model_copy(update={"images": len(kept)})
    table = generated.table.iloc[kept]
    for path in table["path"]:
        out.write(path, generated.store.read(path))
    cohort_folder.write_labels(out, record, list(table["image_id"]), generated.targets[kept])
    _report(out, record, list(table["set"]))
    print(f"Next: python -m cxrlt_ray.sweep --cohort synthetic={out.uri} --space team_a")
    return record


def _report(out: Store, record: GeneratedRecord, of: Sequence[str] = ()) -> None:
    """Print the table, and write the contact sheet. of: the set of each image, in the order of the labels."""
    from cxrlt_ray.reporting.generation import ACROSS, contact_sheet, tally_table

    generated = cohort_folder.read_generated(out.uri)
    sets = np.array(of or list(generated.table["set"]), object)
    pictures = {}
    for text in dict.fromkeys(sets):
        paths = generated.table["path"].to_numpy()[sets == text][:ACROSS]
        pictures[str(text)] = [_picture(out, path) for path in paths]
    out.write(cohort_folder.SHEET, contact_sheet(pictures))
    cli.console().print(tally_table(record.tallies))
    print(f"{record.images:,} images in {out.uri}: look at {cohort_folder.SHEET} before you train on them")


def _picture(out: Store, path: str) -> np.ndarray:
    from cxrlt_ray.data.shards import decoded

    return decoded(out.read(path))


main = cli.command(
    GenerateRequest,
    run,
    """Draw X-rays of rare findings with a diffusion model, and keep those that are fit for training.

    python -m cxrlt_ray.generate train /data/mimic --out generator --config tiny --time-budget 2h
    python -m cxrlt_ray.generate sample generator --out drawn --each 100 --company real
    python -m cxrlt_ray.generate filter drawn --out synthetic --teacher RUN
    """,
    many=("--findings",),
)


if __name__ == "__main__":
    cli.run("generate")
