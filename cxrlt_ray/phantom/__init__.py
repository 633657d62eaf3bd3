"""The built-in cohort: procedural chest X-rays in exactly the layout of CXR-LT 2024 over MIMIC-CXR-JPG.

    labels.py    subjects, studies, images, their findings, and what reports mention
    tree.py      the CSV files
    anatomy.py   a chest without findings
    signs/       the 45 findings as drawn signs
    brush.py     the drawing tools
    pictures.py  one picture
    reports.py   one report
    wordings.py  the findings in words
    options.py   what makes reading it harder

    python -m cxrlt_ray.phantom DIR --images 2400 --size 128 --seed 0
    python -m cxrlt_ray.phantom DIR --images 2400 --for-text           # for systems that read

`--for-text` makes a cohort on which a reading system can fail (options.py): reports leave out a quarter of the true
findings and word half of the rest without the finding's name, wordings kept for prompts stand in no training report,
and task 3's findings are as frequent as in the challenge; in the test split they come without their usual company, 60
studies of each or more. It also writes boxes.csv in DIR: image_id, finding, x, y, width, height,
pixels of the written image, a row for each separate part of a drawn sign.

`--hidden-bias .5` draws one sign at half its contrast in one sex or age band: labels are as before, sex and age stand
in patients.csv.gz as in MIMIC-IV, and nothing else tells of it. At 0 all bytes are those of a phantom without it.

The same arguments give the same bytes, whatever the number of processes. `phantom.json`, written last, marks a
complete tree. Until then `phantom.unfinished.json` holds the arguments, and a second call continues where the first was
stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cxrlt_ray import cli, output
from cxrlt_ray.cluster.processors import available_processors
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.phantom.options import PLAIN, PhantomOptions, checked, combined
from cxrlt_ray.privacy import PHANTOM_MARKER

if TYPE_CHECKING:
    from cxrlt_ray.phantom.labels import PhantomCohort
    from cxrlt_ray.phantom.pictures import Box

VERSION = 1  # of the drawings: raise it with every change of a picture, a label or a report
UNFINISHED = "phantom.unfinished.json"
MIN_IMAGES, MIN_SIZE, MAX_SIZE = 200, 32, 4096
BOXES = "boxes.csv"
STUDIES_A_JOB = 40
FEW_JOBS = 4  # below, a process's start (0.7 s) would cost more than it saves


@dataclass(frozen=True)
class Study:
    """What a process needs to write a study: its report, and its images as (dicom_id, path, lateral, portable)."""

    subject_id: int
    study_id: int
    training: bool
    report: str
    images: tuple[tuple[str, str, bool, bool], ...]
    findings: dict[str, tuple[float, int]]
    mention: tuple[int, ...]
    strength: tuple[float, ...]
    side: tuple[int, ...]
    faded: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What is written: the arguments of `write_phantom`."""

    images: int
    size: int
    seed: int
    pictures: bool
    options: PhantomOptions

    @property
    def arguments(self) -> dict[str, Any]:
        """As phantom.json keeps them; options only where they are not the plain phantom's."""
        own = {"images": self.images, "size": self.size, "seed": self.seed, "pictures": self.pictures}
        return own | {"version": VERSION} | self.options.changed()


def write_phantom(
    folder: str | Path,
    images: int = 2400,
    size: int = 128,
    seed: int = 0,
    *,
    pictures: bool = True,
    options: PhantomOptions = PLAIN,
    say: Callable[[str], Any] = print,
    processes: int | None = None,
) -> None:
    """Write a cohort of `images` pictures of `size` x `size` pixels under `folder`; without `pictures` only the tables.

    Returns at once if exactly that cohort exists. `processes` defaults to the machine's cores.
    Raises UsageError for arguments out of range and for a folder that holds something else.
    """
    root = Path(folder)
    _check(images, size, seed, processes)
    if checked(options).boxes and not pictures:
        raise UsageError("--boxes are of drawn signs: leave out --no-pictures, or give --no-boxes.")
    plan = Plan(images, size, seed, pictures, options)
    if _is_whole(root, plan.arguments):
        return
    try:
        _write(root, plan, say, processes or available_processors())
    except OSError as error:
        raise CxrltError(f"the phantom cohort cannot be written to {root}: {error.strerror or error}.") from None


def main(
    folder: Annotated[Path, cli.argument("where to write the tree")],
    images: Annotated[int, cli.option("number of images")] = 2400,
    size: Annotated[int, cli.option("edge of an image, pixels")] = 128,
    seed: Annotated[int, cli.option("another seed is another cohort")] = 0,
    pictures: Annotated[bool, cli.option("draw images and write reports, or write only tables")] = True,
    processes: Annotated[int | None, cli.option("number of processes that draw; default: all cores")] = None,
    for_text: Annotated[
        bool,
        cli.option("harder for text: the options below at .25, .5, wordings for prompts, 60, on, on", "--for-text"),
    ] = False,
    unmentioned: Annotated[float | None, cli.option("share of true findings that reports leave out")] = None,
    indirect: Annotated[float | None, cli.option("share of mentions without the finding's name")] = None,
    held_out: Annotated[
        Path | None, cli.option("file of texts, one per line, that no training report contains")
    ] = None,
    apart: Annotated[
        int | None, cli.option("fewest test studies of each of task 3's findings, drawn independently of others")
    ] = None,
    true_counts: Annotated[bool | None, cli.option("task 3's findings as frequent as in the challenge")] = None,
    enriched: Annotated[
        float | None, cli.option("fewest training and validation studies of each of task 3's findings, as a share")
    ] = None,
    boxes: Annotated[bool | None, cli.option(f"write {BOXES}: where each sign is drawn")] = None,
    hidden_bias: Annotated[float, cli.option("share by which one sign is fainter in one group of patients")] = 0.0,
    hidden_finding: Annotated[str, cli.option("with --hidden-bias: whose sign")] = PLAIN.hidden_finding,
    hidden_group: Annotated[
        str, cli.option("with --hidden-bias: F, M or an age band, such as 18-39")
    ] = PLAIN.hidden_group,
) -> None:
    """Write a cohort of procedural chest X-rays in the CXR-LT 2024 layout.

    python -m cxrlt_ray.phantom phantom --images 2400 --size 128 --seed 0

    python -m cxrlt_ray.phantom tables --images 377110 --no-pictures

    python -m cxrlt_ray.phantom read --images 2400 --for-text --held-out prompts.txt

    python -m cxrlt_ray.phantom biased --images 8000 --hidden-bias .5 --hidden-finding Pneumothorax --hidden-group F
    """
    options = combined(
        for_text,
        _lines(held_out) if held_out else (),
        unmentioned=unmentioned,
        indirect=indirect,
        apart=apart,
        true_counts=true_counts,
        enriched=enriched,
        boxes=boxes,
        hidden_bias=hidden_bias,
        hidden_finding=hidden_finding,
        hidden_group=hidden_group,
    )
    write_phantom(folder, images, size, seed, pictures=pictures, options=options, processes=processes)
    following = f"sweep task1 --data {shlex.quote(str(folder))}" if pictures else f"cohort {shlex.quote(str(folder))}"
    line = f"{folder}: a phantom cohort of {images:,} images. Next: python -m cxrlt_ray.{following}"
    output.result(line, [str(folder)], images=images)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without the empty ones. Raises UsageError where it cannot be read or has none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"--held-out {path} cannot be read: {reason}.") from None
    if not lines:
        raise UsageError(f"--held-out {path} has no line of text.")
    return lines


def _check(images: int, size: int, seed: int, processes: int | None) -> None:
    if images < MIN_IMAGES:
        raise UsageError(
            f"--images {images} is too few for every finding to stand in each split: give {MIN_IMAGES} or more."
        )
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError(f"--size {size} is out of range: give {MIN_SIZE} to {MAX_SIZE} pixels.")
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative: give 0 or more.")
    if processes is not None and processes < 1:
        raise UsageError(f"--processes {processes} is too few: give 1 or more.")


def _is_whole(root: Path, arguments: dict[str, Any]) -> bool:
    """Whether the tree of these arguments is complete. Raises UsageError if `root` holds anything else."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file: give a new or empty folder for the phantom cohort.")
    if not root.is_dir() or not any(root.iterdir()):
        return False
    for name in (PHANTOM_MARKER, UNFINISHED):
        if (root / name).is_file():
            existing = _read(root / name)
            if existing == arguments:
                return name == PHANTOM_MARKER
            raise UsageError(
                f"{root} holds another phantom cohort ({_describe(existing)}; asked for {_describe(arguments)}): "
                "give another folder, or delete that one."
            )
    raise UsageError(f"{root} holds other files than a phantom cohort's: give a new or empty folder.")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    return content if isinstance(content, dict) else {}


def _describe(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in arguments.items()) or "unreadable"


def _write(root: Path, plan: Plan, say: Callable[[str], Any], processes: int) -> None:
    from cxrlt_ray.phantom.labels import draw_cohort
    from cxrlt_ray.phantom.reports import wording_of
    from cxrlt_ray.phantom.tree import write_tables

    started = time.monotonic()
    wording_of(plan.options, training=True)  # before a file is written: what cannot be worded is refused
    cohort = draw_cohort(plan.images, plan.seed, plan.options)
    root.mkdir(parents=True, exist_ok=True)
    (root / UNFINISHED).write_text(json.dumps(plan.arguments))
    for _ in write_tables(root, cohort, plan.size, plan.seed):
        pass
    say(f"  tables of {plan.images:,} images written in {time.monotonic() - started:.1f} s")
    if plan.pictures:
        boxes = _write_studies(root, list(_studies(cohort, plan.options)), plan, say, processes)
        if plan.options.boxes:
            _write_boxes(root / BOXES, boxes)
    # renamed last: the marker stands for a complete tree
    os.replace(root / UNFINISHED, root / PHANTOM_MARKER)


def _write_boxes(path: Path, boxes: list[tuple[str, Box]]) -> None:
    """The boxes of (image_id, box), in the ids' order, as a CSV."""
    rows = (",".join(map(str, (image_id, *box))) for image_id, box in sorted(boxes, key=lambda row: row[0]))
    _write_file(path, "\n".join(["image_id,finding,x,y,width,height", *rows, ""]).encode())


def _studies(cohort: PhantomCohort, options: PhantomOptions) -> Iterator[Study]:
    """The cohort study by study, as plain values that can be sent to a process."""
    import numpy as np

    from cxrlt_ray.data.tasks import ALL_FINDINGS
    from cxrlt_ray.phantom.labels import in_group
    from cxrlt_ray.phantom.tree import image_paths, report_paths

    paths, reports = image_paths(cohort), report_paths(cohort)
    dicoms, lateral = cohort.images["dicom_id"].tolist(), cohort.images["lateral"].tolist()
    portable = (cohort.images["view"] == "AP").tolist()
    bounds = np.searchsorted(cohort.images["study"], np.arange(len(cohort.studies) + 1)).tolist()
    subjects = cohort.subjects["subject_id"].to_numpy()[cohort.studies["subject"]].tolist()
    training = (cohort.studies["split"] == "train").tolist()
    faded = in_group(cohort, options.hidden_group)[cohort.studies["subject"].to_numpy()] & (options.hidden_bias > 0)
    for k, study_id in enumerate(cohort.studies["study_id"].tolist()):
        strength, side = cohort.strength[k].tolist(), cohort.side[k].tolist()
        yield Study(
            subject_id=subjects[k],
            study_id=study_id,
            training=training[k],
            report=reports[k],
            images=tuple((dicoms[i], paths[i], lateral[i], portable[i]) for i in range(bounds[k], bounds[k + 1])),
            findings={ALL_FINDINGS[f]: (strength[f], side[f]) for f in np.flatnonzero(cohort.truth[k]).tolist()},
            mention=tuple(cohort.mention[k].tolist()),
            strength=tuple(strength),
            side=tuple(side),
            faded={options.hidden_finding: 1 - options.hidden_bias} if faded[k] else {},
        )


def _write_studies(
    root: Path, studies: list[Study], plan: Plan, say: Callable[[str], Any], processes: int
) -> list[tuple[str, Box]]:
    """Draw all images and write all reports, over several processes, with progress lines; the boxes if asked for."""
    jobs = [studies[k : k + STUDIES_A_JOB] for k in range(0, len(studies), STUDIES_A_JOB)]
    started = time.monotonic()
    boxes: list[tuple[str, Box]] = []
    for _, part in cli.with_progress(_done_jobs(jobs, root, plan, processes), plan.images, say, lambda job: job[0]):
        boxes += part
    rate = plan.images / (time.monotonic() - started)
    say(f"  {plan.images:,} of {plan.images:,} images drawn, {rate:,.0f} images/s, 0 s left")
    return boxes


def _done_jobs(
    jobs: list[list[Study]], root: Path, plan: Plan, processes: int
) -> Iterator[tuple[int, list[tuple[str, Box]]]]:
    """Run the jobs; yields the number of images of each as it is done, and its boxes."""
    if processes == 1 or len(jobs) < FEW_JOBS:
        yield from (_write_job(job, root, plan) for job in jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # spawned, not forked: the caller may be running threads (Ray, torch)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(_write_job, job, root, plan) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _write_job(job: list[Study], root: Path, plan: Plan) -> tuple[int, list[tuple[str, Box]]]:
    """Write some studies' reports and those of their images that are missing; the number of images, and the boxes."""
    from cxrlt_ray.phantom.pictures import Picture, draw_picture, draw_with_boxes, encode
    from cxrlt_ray.phantom.reports import wording_of, write_report

    wordings = {training: wording_of(plan.options, training) for training in (True, False)}
    boxes: list[tuple[str, Box]] = []
    for study in job:
        said = (study.mention, study.strength, study.side, study.study_id, plan.seed)
        _write_file(root / study.report, write_report(*said, wordings[study.training]).encode())
        for dicom_id, path, lateral, portable in study.images:
            picture = Picture(
                study.subject_id, study.study_id, dicom_id, lateral, portable, study.findings, study.faded
            )
            if plan.options.boxes:  # of an image that is there, too: only drawing tells them
                image, own = draw_with_boxes(picture, plan.size, plan.seed)
                boxes += [(dicom_id, box) for box in own]
                _write_file(root / path, encode(image))
            elif not (root / path).exists():
                _write_file(root / path, encode(draw_picture(picture, plan.size, plan.seed)))
    return sum(len(study.images) for study in job), boxes


def _write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, since an existing file is not written again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
