"""The phantom cohort as files: the CSVs of CXR-LT 2024 and of MIMIC-CXR-JPG, columns, order and types as released.

Label tables are joined from byte strings rather than written cell by cell: 377,110 rows in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1, TASK2, TASK3
from cxrlt_ray.phantom.labels import NEGATED, POSITIVE, SILENT, UNCERTAIN, PhantomCohort

RELEASE = "cxr-lt-2024"
ID_COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "fpath")
CHEXPERT = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
VIEW_CODES = {
    "AP": "antero-posterior",
    "PA": "postero-anterior",
    "LATERAL": "lateral",
    "LL": "left lateral",
    "LAO": "left anterior oblique",
    "RAO": "right anterior oblique",
    "LPO": "left posterior oblique",
    "XTABLE LATERAL": "lateral",
}
RACES = {
    "WHITE": 0.61, "BLACK/AFRICAN AMERICAN": 0.16, "HISPANIC/LATINO - PUERTO RICAN": 0.05, "ASIAN": 0.03,
    "WHITE - RUSSIAN": 0.02, "OTHER": 0.05, "UNKNOWN": 0.08,
}  # fmt: skip


def image_paths(cohort: PhantomCohort) -> list[str]:
    """Each image's path relative to the root: files/p10/p10000032/s50414267/DICOM.jpg."""
    subject, study = _ids(cohort)
    return [
        f"files/p{str(p)[:2]}/p{p}/s{s}/{d}.jpg"
        for p, s, d in zip(subject, study, cohort.images["dicom_id"], strict=True)
    ]


def report_paths(cohort: PhantomCohort) -> list[str]:
    """Each study's report, relative to the root: files/p10/p10000032/s50414267.txt."""
    subject = cohort.subjects["subject_id"].to_numpy()[cohort.studies["subject"]].tolist()
    return [
        f"files/p{str(p)[:2]}/p{p}/s{s}.txt" for p, s in zip(subject, cohort.studies["study_id"].tolist(), strict=True)
    ]


def write_tables(root: Path, cohort: PhantomCohort, size: int, seed: int) -> Iterator[str]:
    """Write every CSV and list of both releases under `root`; yields the name of each group when written."""
    rng = np.random.default_rng([seed, 2])
    paths = image_paths(cohort)
    yield from _write_release(root / RELEASE, cohort, paths)
    _write_mimic(root, cohort, paths, size, rng)
    yield "MIMIC-CXR-JPG"
    _write_people(root, cohort, rng)
    yield "MIMIC-IV"


def _ids(cohort: PhantomCohort) -> tuple[list[int], list[int]]:
    """subject_id and study_id of every image, as integers."""
    study = cohort.images["study"].to_numpy()
    subject = cohort.studies["subject"].to_numpy()[study]
    return cohort.subjects["subject_id"].to_numpy()[subject].tolist(), cohort.studies["study_id"].to_numpy()[
        study
    ].tolist()


def _write_release(folder: Path, cohort: PhantomCohort, paths: list[str]) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    study = cohort.images["study"].to_numpy()
    split = cohort.studies["split"].to_numpy()[study]
    views = cohort.images["view"].fillna("").tolist()
    prefixes = np.array(
        [
            f"{d},{p},s{s},{v},{VIEW_CODES.get(v, '')},{f}"
            for d, p, s, v, f in zip(cohort.images["dicom_id"], *_ids(cohort), views, paths, strict=True)
        ],
        object,
    )
    files: dict[str, tuple[np.ndarray, Sequence[str]]] = {
        "train_labeled": (np.flatnonzero(split == "train"), TASK1),
        **{
            f"{stem}_labeled_task{number}": (np.flatnonzero(split == name), findings)
            for stem, name in (("development", "val"), ("test", "test"))
            for number, findings in ((1, TASK1), (2, TASK2), (3, TASK3))
        },
    }
    files["test_labeled_task2"] = (cohort.gold, TASK2)
    # by subject and study, as in the release; the order of drawing would reveal the splits
    order = np.lexsort((study, cohort.studies["subject"].to_numpy()[study]))
    rank = np.empty(len(order), int)
    rank[np.lexsort((np.arange(len(study)), *map(np.asarray, reversed(_ids(cohort)))))] = np.arange(len(order))
    for name, (rows, findings) in files.items():
        rows = rows[np.argsort(rank[rows])]
        _write_labels(folder / f"{name}.csv", prefixes[rows], cohort.labels[study[rows]], findings)
        yield name
    rows = np.argsort(rank)
    _write_labels(folder / "labels.csv", prefixes[rows], cohort.labels[study[rows]], ALL_FINDINGS, split[rows])
    (folder / "CLASSES.txt").write_text("".join(f"{name}\n" for name in TASK1))
    (folder / "EVAL_CLASSES.txt").write_text("".join(f"{name}\n" for name in ALL_FINDINGS))
    yield "labels"


def _write_labels(
    path: Path, prefixes: np.ndarray, labels: np.ndarray, findings: Sequence[str], split: np.ndarray | None = None
) -> None:
    """One label table: `prefixes` [n] the id columns as text, `labels` bool [n, 45] in ALL_FINDINGS' order."""
    width = 2 * len(findings)
    cells = np.full((len(prefixes), width), ord(","), np.uint8)
    cells[:, 1::2] = ord("0") + labels[:, [ALL_FINDINGS.index(name) for name in findings]]
    text = cells.tobytes().decode("ascii")
    header = ",".join([*ID_COLUMNS, *findings, *(["split"] if split is not None else [])])
    ends = [""] * len(prefixes) if split is None else [f",{name}" for name in split]
    with path.open("w") as file:
        file.write(header + "\n")
        file.writelines(
            f"{prefix}{text[row * width : (row + 1) * width]}{end}\n"
            for row, (prefix, end) in enumerate(zip(prefixes, ends, strict=True))
        )


def _write_mimic(root: Path, cohort: PhantomCohort, paths: list[str], size: int, rng: np.random.Generator) -> None:
    study = cohort.images["study"].to_numpy()
    subject_id, study_id = (np.asarray(column) for column in _ids(cohort))
    order = np.lexsort((cohort.images["dicom_id"].to_numpy().astype("S44"), study_id, subject_id))
    paired = np.zeros(len(cohort.studies), bool)
    paired[study[cohort.images["lateral"].to_numpy()]] = True
    procedure = np.where(paired[study], "CHEST (PA AND LAT)", "CHEST (PORTABLE AP)")
    days = pd.Timestamp("2110-01-01") + pd.to_timedelta(rng.integers(0, 36_500, len(cohort.studies)), unit="D")
    time = rng.integers(0, 86_400, len(cohort.studies))
    clock = time // 3600 * 10_000 + time // 60 % 60 * 100 + time % 60 + rng.integers(0, 1000, len(time)) / 1000
    view = cohort.images["view"]
    metadata = pd.DataFrame(
        {
            "dicom_id": cohort.images["dicom_id"],
            "subject_id": subject_id,
            "study_id": study_id,
            "PerformedProcedureStepDescription": procedure,
            "ViewPosition": view,
            "Rows": size,
            "Columns": size,
            "StudyDate": days.strftime("%Y%m%d").astype(int).to_numpy()[study],
            "StudyTime": clock[study],
            "ProcedureCodeSequence_CodeMeaning": procedure,
            "ViewCodeSequence_CodeMeaning": view.map(VIEW_CODES),
            "PatientOrientationCodeSequence_CodeMeaning": np.where(paired[study], "Erect", ""),
        }
    )
    _write_gz(root / "mimic-cxr-2.0.0-metadata.csv.gz", metadata.iloc[order])
    # MIMIC's own split is independent of the challenge's: nearly all of it is train
    luck = rng.random(len(cohort.subjects))
    own = np.select([luck < 0.008, luck < 0.022], ["validate", "test"], "train")
    split = pd.DataFrame(
        {
            "dicom_id": cohort.images["dicom_id"],
            "study_id": study_id,
            "subject_id": subject_id,
            "split": own[cohort.studies["subject"].to_numpy()[study]],
        }
    )
    _write_gz(root / "mimic-cxr-2.0.0-split.csv.gz", split.iloc[order])
    (root / "IMAGE_FILENAMES").write_text("".join(f"{paths[index]}\n" for index in order))
    chexpert = _chexpert(cohort)
    _write_gz(root / "mimic-cxr-2.0.0-chexpert.csv.gz", chexpert)
    # the second labeller agrees except in a few cells
    negbio = chexpert.copy()
    names = list(CHEXPERT)
    negbio[names] = negbio[names].where(rng.random((len(negbio), len(names))) > 0.01)
    _write_gz(root / "mimic-cxr-2.0.0-negbio.csv.gz", negbio)


def _chexpert(cohort: PhantomCohort) -> pd.DataFrame:
    """MIMIC's CheXpert table: per study 1.0 affirmed, 0.0 denied, -1.0 uncertain, empty if not mentioned."""
    value = np.full(4, np.nan, np.float32)
    value[[POSITIVE, NEGATED, UNCERTAIN]] = 1, 0, -1  # UNCERTAIN is -1: the last entry
    table = pd.DataFrame(
        {
            "subject_id": cohort.subjects["subject_id"].to_numpy()[cohort.studies["subject"]],
            "study_id": cohort.studies["study_id"],
        }
    )
    for name in CHEXPERT:
        column = ALL_FINDINGS.index("Normal" if name == "No Finding" else name)
        table[name] = value[cohort.mention[:, column]]
    assert SILENT == 2
    return table.sort_values(["subject_id", "study_id"])


def _write_people(root: Path, cohort: PhantomCohort, rng: np.random.Generator) -> None:
    """MIMIC-IV's patients and admissions; a tenth of the subjects was never admitted."""
    subjects = cohort.subjects.sort_values("subject_id")
    count = len(subjects)
    year = rng.integers(2110, 2200, count)
    patients = pd.DataFrame(
        {
            "subject_id": subjects["subject_id"],
            "gender": np.where(subjects["female"], "F", "M"),
            "anchor_age": subjects["age"],
            "anchor_year": year,
            "anchor_year_group": rng.choice(["2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"], count),
            "dod": None,
        }
    )
    _write_gz(root / "patients.csv.gz", patients)
    admitted = rng.random(count) < 0.9
    stays = pd.to_datetime(pd.Series(year[admitted].astype(str))) + pd.to_timedelta(
        rng.integers(0, 500_000, admitted.sum()), unit="m"
    )
    share = np.array(list(RACES.values()))
    admissions = pd.DataFrame(
        {
            "subject_id": subjects["subject_id"].to_numpy()[admitted],
            "hadm_id": 20_000_000 + rng.choice(10_000_000, admitted.sum(), replace=False),
            "admittime": stays.to_numpy(),
            "dischtime": (stays + pd.Timedelta(days=3)).to_numpy(),
            "admission_type": rng.choice(["EW EMER.", "OBSERVATION ADMIT", "URGENT"], admitted.sum()),
            "race": rng.choice(list(RACES), admitted.sum(), p=share / share.sum()),
            "hospital_expire_flag": 0,
        }
    )
    _write_gz(root / "admissions.csv.gz", admissions)


def _write_gz(path: Path, table: pd.DataFrame) -> None:
    # no timestamp in the header: the same cohort gives the same bytes
    table.to_csv(path, index=False, compression={"method": "gzip", "compresslevel": 1, "mtime": 0})
