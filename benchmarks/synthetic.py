"""What generated images are worth: are copies caught, do they show what they should, how far from real, what is gained.

Four pieces, each kept in build/synthetic and taken from there the next time, so that the whole can be cut:

    copies        planted near-copies (noise, mirror image, crop, JPEG) among real images of other subjects
    conditioning  AUROC, on generated images, of a teacher of other subjects, beside its value on test images
    distance      FID and KID in frozen features, beside those of two halves of the real subjects
    tail          AP of tail findings: real images alone; real positives shown as often again as images are generated;
                  generated beside real ones (findings with the company they keep, or alone); generated first, then real

    python benchmarks/synthetic.py --pieces copies --write    # minutes
    python benchmarks/synthetic.py --write                    # a generator of --minutes, three seeds an arm: hours
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from report import options, publish

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.training.job import Job

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "synthetic"
NIH = HERE.parents[1] / "shared" / "data" / "nih384"
PIECES = ("copies", "conditioning", "distance", "tail")
KINDS = ("noise", "mirror image", "crop", "JPEG")
FALSE_ALARMS, NOISE, CROP, JPEG = 0.01, 8.0, 0.9, 30  # gray levels, share of the edge, quality
SIZE, PHANTOM_SIZE = 64, 128
HEAD_SETS = 5


def altered(image: np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    """A near-copy of an image uint8 [H, W]."""
    import cv2

    if kind == "noise":
        return (image + random.normal(0, NOISE, image.shape)).round().clip(0, 255).astype(np.uint8)
    if kind == "mirror image":
        return np.ascontiguousarray(image[:, ::-1])
    if kind == "crop":
        height, width = (round(CROP * edge) for edge in image.shape)
        top, left = (int(random.integers(0, a - b + 1)) for a, b in zip(image.shape, (height, width), strict=True))
        return np.ascontiguousarray(image[top : top + height, left : left + width])
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG])[1], cv2.IMREAD_GRAYSCALE)


def real_pictures(dataset: str, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """`count` images of a data set, drawn at random, and their subjects."""
    import cv2

    from cxrlt_ray.data.cohort import read_cohort

    folder = phantom(max(count, 600), 0) if dataset == "phantom" else str(NIH)
    manifest = read_cohort(folder, task="auto").manifest
    table = manifest.table.sample(min(count, len(manifest.table)), random_state=0)
    pictures = [cv2.imread(f"{manifest.root}/{path}", cv2.IMREAD_GRAYSCALE) for path in table["path"]]
    return pictures, table["subject_id"].to_numpy(str)


def phantom(images: int, seed: int) -> str:
    """The folder of a phantom cohort, drawn where it is missing."""
    from cxrlt_ray.phantom import write_phantom

    folder = BUILD / f"phantom-{images}-{seed}"
    write_phantom(str(folder), images=images, size=PHANTOM_SIZE, seed=seed)
    return str(folder)


def copies_of(dataset: str, count: int) -> dict[str, float]:
    """Shares caught of each kind of planted copy of `2/3 count` training images, and of held-out subjects' images."""
    import torch

    from cxrlt_ray.generation.copies import Whitening, fit_detector
    from cxrlt_ray.generation.frozen_features import BATCH, VIEWS, WHOLE, describer

    pictures, subject = real_pictures(dataset, count)
    random = np.random.default_rng(0)
    names = random.permutation(np.unique(subject))
    training = np.isin(subject, names[: 2 * len(names) // 3])
    describe, whitening = describer(), None

    def features(images: Sequence[np.ndarray], view: Any = WHOLE, mirrored: bool = False) -> np.ndarray:
        seen = [view.apply(image[:, ::-1] if mirrored else image) for image in images]
        parts = [torch.from_numpy(np.stack(seen[k : k + BATCH])) for k in range(0, len(seen), BATCH)]
        values = np.concatenate([describe(part).numpy() for part in parts])
        return values if whitening is None else whitening(values)

    learnt = [picture for picture, kept in zip(pictures, training, strict=True) if kept]
    held = [picture for picture, kept in zip(pictures, training, strict=True) if not kept]
    whitening = Whitening.of(features(learnt))
    views = [features(learnt, view) for view in VIEWS]
    detector = fit_detector(views, features(learnt, mirrored=True), subject[training], FALSE_ALARMS)
    result = {"training": float(len(learnt)), "held out": float(len(held)), "distance": detector.distance}
    result["false alarms"] = float(detector.are_copies(features(held), features(held, mirrored=True)).mean())
    for kind in KINDS:
        planted = [altered(picture, kind, random) for picture in learnt[: len(held)]]
        result[kind] = float(detector.are_copies(features(planted), features(planted, mirrored=True)).mean())
        print(f"{dataset}, {kind}: {result[kind]:.3f} caught", flush=True)
    return result


def copies_lines(args: Any) -> list[str]:
    """The table of planted copies."""
    lines = [
        "Near-copies by frozen features: caught of planted ones, and false alarms on held-out subjects (aimed at 1 %).",
        "",
        f"| data | training | held out | {' | '.join(KINDS)} | false alarms |",
        "|" + "---|" * (len(KINDS) + 4),
    ]
    for dataset in ("phantom", "nih384") if NIH.exists() else ("phantom",):
        row = kept(f"copies-{dataset}-{args.copies}", lambda name=dataset: copies_of(name, args.copies))
        shares = [f"{row[kind]:.1%}" for kind in KINDS]
        cells = [dataset, f"{row['training']:.0f}", f"{row['held out']:.0f}", *shares, f"{row['false alarms']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def kept(name: str, make: Callable[[], Any]) -> Any:
    """A piece's result from build/synthetic, made and kept there where it is missing."""
    path = BUILD / f"{name}.json"
    if not path.exists():
        result = make()
        BUILD.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    return json.loads(path.read_text())


def halves(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """The training subjects in two halves: those that the generator learns, and those that the teacher learns."""
    training = manifest.of_split("train").table["subject_id"].unique()
    order = np.random.default_rng(0).permutation(np.sort(training))
    return order[: len(order) // 2], order[len(order) // 2 :]


def without_training(manifest: Manifest, subjects: np.ndarray) -> Manifest:
    """The manifest without the training images of `subjects`."""
    table = manifest.table
    return manifest.where(~((table["split"] == "train") & table["subject_id"].isin(subjects)).to_numpy())


def generator(args: Any) -> str:
    """The folder of a generator of one half of the phantom's training subjects, trained for --minutes."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.generation.config import load_config
    from cxrlt_ray.generation.records import GENERATOR, Learnt
    from cxrlt_ray.generation.training import Lesson, train_generator
    from cxrlt_ray.generation.training_rows import rows_of, subjects_fingerprint, training_part

    out = BUILD / f"generator-{args.images}-{args.minutes}"
    if (out / GENERATOR).exists():
        return str(out)
    data = phantom(args.images, 0)
    manifest = read_cohort(data, task="task1").manifest
    part = training_part(without_training(manifest, halves(manifest)[1]), "frontal", print)
    config = load_config("tiny")
    (shards,) = prepare(part, str(BUILD), [config.resolution])
    rows = rows_of(part, manifest.findings, shards.index().index.to_numpy())
    learnt = Learnt(
        data=data, task="task1", findings=manifest.findings, images=len(rows),
        subjects_count=len(np.unique(rows.subject)), cohort=manifest.fingerprint,
        subjects=subjects_fingerprint(rows.subject), shards=shards.store.uri, size=shards.size, view="PA",
    )  # fmt: skip
    train_generator(config, Lesson(rows, shards, learnt), out, print, budget=60 * args.minutes)
    return str(out)


def drawn(args: Any, company: str, sets: Sequence[str], each: int) -> str:
    """The folder of images that the generator draws of `sets`."""
    from cxrlt_ray.generation.cohort_folder import is_whole
    from cxrlt_ray.generation.conditions import draw_conditions
    from cxrlt_ray.generation.records import Sampled
    from cxrlt_ray.generation.sampling import read_generator, sample_into
    from cxrlt_ray.storage import Store

    made = read_generator(generator(args))
    out = Store(str(BUILD / f"drawn-{args.images}-{args.minutes}-{company}-{len(sets)}x{each}-{args.solver_steps}"))
    if not is_whole(out):
        how = Sampled(
            sets=tuple(sets), each=each, company=company, guidance=2.0, solver="ddim", solver_steps=args.solver_steps,
            seed=0, resolution=made.record.config.resolution,
        )  # fmt: skip
        rows = made.rows
        conditions = draw_conditions(sets, rows.targets, rows.findings, each, company, 0)
        sample_into(made, conditions, how, out, print)
    return out.uri


def trained_scores(
    name: str, manifest: Manifest, config: dict[str, Any], seed: int, images: Manifest, called: str = "test"
) -> np.ndarray:
    """Scores [N, C] of `images`, `called` so, by the trial `name` on `manifest`; both are kept in build/synthetic."""
    from ablations import ROWS, config_of
    from cache import job

    from cxrlt_ray import models
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.training.job import images_of
    from cxrlt_ray.training.trial import train
    from cxrlt_ray.training.validation import predict_images

    def make() -> list[list[float]]:
        (shards,) = prepare(manifest, str(BUILD), [SIZE])
        shared: Job = job(BUILD / f"run-{name}", manifest, (shards,), manifest.findings)
        base = config_of(ROWS[0], seed, shared).model_dump()
        chosen = type(config_of(ROWS[0], seed, shared)).model_validate({**base, "resolution": SIZE, **config})
        train(shared, f"T{seed}", chosen, {}, lambda _: None)
        model = models.load(Path(shared.run.uri) / "trials" / f"T{seed}" / "fold-0")[0]
        (own,) = prepare(images, str(BUILD), [SIZE])
        scored = job(BUILD / f"scored-{name}-{called}", images, (own,), manifest.findings)
        return predict_images(scored, chosen, model, images_of(images, manifest.findings)).tolist()

    return np.array(kept(f"scores-{name}-{called}-{seed}", make), np.float64)


def as_manifest(folder: str, findings: tuple[str, ...]) -> Manifest:
    """A folder of generated images as images to score, in the order of their ids."""
    from cxrlt_ray.generation.cohort_folder import read_generated
    from cxrlt_ray.generation.judging import manifest_of

    generated = read_generated(folder)
    manifest = manifest_of(generated)
    labels = generated.table[list(generated.findings)].reset_index(drop=True).astype("Int8")
    others = manifest.table.drop(columns=list(generated.findings), errors="ignore")
    table = pd.concat([others, labels.mask(labels < 0)], axis=1)
    return type(manifest)(table, findings, manifest.source, manifest.root)


def conditioning_lines(args: Any) -> list[str]:
    """AUROC of five head findings on generated and on real test images, by a teacher of other subjects."""
    from cxrlt_ray import cli
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.generation.teacher import auroc_interval

    manifest = read_cohort(phantom(args.images, 0), task="task1").manifest
    findings = manifest.findings
    targets = manifest.of_split("train").targets()
    order = np.argsort(-(targets == 1).sum(axis=0), kind="stable")
    sets = [findings[c] for c in order if findings[c] != "Normal"][:HEAD_SETS]
    images = as_manifest(drawn(args, "alone", sets, args.each), findings)
    teacher = without_training(manifest, halves(manifest)[0])
    test = manifest.of_split("test")
    label = f"{args.images}-{args.minutes}-{args.epochs}"
    longer = {"epochs": 2 * args.epochs}  # a weak teacher would judge nothing
    generated = trained_scores(f"teacher-{label}", teacher, longer, 0, images, f"drawn-{args.each}-{args.solver_steps}")
    real = trained_scores(f"teacher-{label}", teacher, longer, 0, test)
    lines = ["| finding | AUROC, generated | AUROC, real test images |", "|---|---|---|"]
    for name in sets:
        column = findings.index(name)
        own = auroc_interval(images.targets()[:, column], generated[:, column], images.table["image_id"].to_numpy())
        other = auroc_interval(test.targets()[:, column], real[:, column], test.table["subject_id"].to_numpy())
        lines.append(f"| {name} | {cli.ranged(*own)} | {cli.ranged(*other)} |")
    return lines


def distance_lines(args: Any) -> list[str]:
    """FID and KID of generated images to one half of the real subjects, beside the other half's."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.evaluation.generated import frechet_distance, kernel_distance
    from cxrlt_ray.generation.conditions import tail_sets
    from cxrlt_ray.generation.frozen_features import describer, features_of

    def make() -> list[float]:
        manifest = read_cohort(phantom(args.images, 0), task="task1").manifest
        own, other = halves(manifest)
        frontal = manifest.where(manifest.table["view"].isin(["PA", "AP"]))
        parts = [frontal.where(frontal.table["subject_id"].isin(half)).of_split("train") for half in (own, other)]
        sets = tail_sets(manifest.of_split("train").targets(), manifest.findings)
        parts.append(as_manifest(drawn(args, "real", sets, args.each), manifest.findings))
        describe, features = describer(pooled=True), []
        for part in parts:
            (shards,) = prepare(part, str(BUILD), [SIZE])
            features += features_of(shards, part.table["image_id"].to_numpy(), describe)
        count = min(map(len, features))
        one, two, generated = (values[:count] for values in features)
        floor = (frechet_distance(one, two), kernel_distance(one, two))
        return [count, *floor, frechet_distance(generated, two), kernel_distance(generated, two)]

    count, *values = kept(f"distance-{args.images}-{args.minutes}-{args.each}-{args.solver_steps}", make)
    lines = [f"| {count:.0f} images a side | FID | KID x 1000 |", "|---|---|---|"]
    for name, fid, kid in (("real to real", *values[:2]), ("generated to real", *values[2:])):
        lines.append(f"| {name} | {fid:.1f} | {1000 * kid:.1f} |")
    return lines


def again(args: Any, manifest: Manifest, sets: Sequence[str]) -> str:
    """A cohort of real tail positives, each as often as takes to come to --each a set; marked, so that none weighs."""
    folder = BUILD / f"again-{args.images}-{args.each}"
    if (folder / "labels.csv").exists():
        return str(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    training, rows = manifest.of_split("train"), []
    for name in sets:
        positive = np.flatnonzero(training.targets((name,))[:, 0] == 1)
        rows += np.resize(positive, args.each).tolist()
    table = training.table.iloc[rows].reset_index(drop=True)
    ids = [f"r{k:06d}" for k in range(len(table))]
    for name, path in zip(ids, table["path"], strict=True):
        shutil.copy(Path(training.root) / path, folder / "images" / f"{name}{Path(path).suffix}")
    paths = [f"images/{name}{Path(path).suffix}" for name, path in zip(ids, table["path"], strict=True)]
    labels = table[["view", *training.findings]]
    pd.concat([pd.DataFrame({"image_id": ids, "path": paths, "subject_id": ids}), labels], axis=1).to_csv(
        folder / "labels.csv", index=False
    )
    return str(folder)


def tail_lines(args: Any) -> list[str]:
    """Test AP by arm, against the real images alone and against real positives shown as often."""
    from ablation_page import System, lines_of

    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.generation.conditions import tail_sets
    from cxrlt_ray.training.job import images_of

    data = phantom(args.images, 0)
    plain = read_cohort(data, task="task1").manifest
    sets = tail_sets(plain.of_split("train").targets(), plain.findings)
    cohorts = {"synthetic": drawn(args, "real", sets, args.each), "alone": drawn(args, "alone", sets, args.each)}
    cohorts["again"] = again(args, plain, sets)
    manifests = {"": plain}
    for name, folder in cohorts.items():
        mapping = BUILD / f"{name}.yaml"
        mapping.write_text("reader: table\nsynthetic: true\nfindings: {}\n")
        manifests[name] = read_cohort(data, task="task1", others={str(mapping): folder}).manifest
    first = [{"epochs": 2, "cohorts": "synthetic"}, {"epochs": args.epochs, "cohorts": "main"}]
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "real positives as often again": ("again", {"cohorts": "all", "epochs": args.epochs}),
        "real images alone": ("", {"epochs": args.epochs}),
        "generated beside real, real company": ("synthetic", {"cohorts": "all", "epochs": args.epochs}),
        "generated beside real, alone": ("alone", {"cohorts": "all", "epochs": args.epochs}),
        "generated first, then real": ("synthetic", {"stages": first}),
    }
    test = plain.of_split("test")
    label = f"{args.images}-{args.minutes}-{args.each}-{args.solver_steps}-{args.epochs}"
    systems = [
        System("", name, [
            trained_scores(f"tail-{label}-{number}", manifests[cohort], config, seed, test)
            for seed in range(args.seeds)
        ])
        for number, (name, (cohort, config)) in enumerate(arms.items())
    ]  # fmt: skip
    tail = np.isin(plain.findings, sets)  # what is drawn: the tail, the rarest where there is none
    rare = [System(s.group, s.name, [scores[:, tail] for scores in s.scores]) for s in systems]
    images = images_of(test, tuple(np.array(plain.findings)[tail]))
    lines = lines_of(rare, images, test.table["subject_id"].to_numpy(), np.ones(tail.sum(), bool))
    head = "| | training images | AP of what is drawn | against real positives as often | of which tail | |"
    return [head, "|---|---|---|---|---|---|", *lines.values()]


def main() -> None:
    numbers = {"images": 4000, "minutes": 60, "each": 100, "seeds": 3, "epochs": 12, "copies": 450}
    parser = options(__doc__, {**numbers, "solver-steps": 50})
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES)
    args = parser.parse_args()
    if set(args.pieces) - {"copies"}:
        from cxrlt_ray.cluster.start import start_ray

        start_ray()
    made = {"copies": copies_lines, "conditioning": conditioning_lines, "distance": distance_lines, "tail": tail_lines}
    lines = []
    for piece in args.pieces:
        lines += [f"### {piece}", "", *made[piece](args), ""]
    conditions = f": the phantom of {args.images:,} images, {args.each} generated images a set."
    if set(args.pieces) - {"copies"}:
        from cxrlt_ray.generation.sampling import read_generator

        steps = read_generator(generator(args)).record.steps
        conditions += f" The generator learnt for {args.minutes} min, {steps:,} steps."
    whole = len(args.pieces) == len(PIECES)
    name, title = ("", "") if whole else (f"-{'-'.join(args.pieces)}", f": {', '.join(args.pieces)}")
    publish(f"synthetic{name}", f"Generated images{title}", conditions, lines, args.write)


if __name__ == "__main__":
    main()
