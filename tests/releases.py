"""Releases of chest X-rays in their exact formats, made on the spot: what readers are tested on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlt_ray.data.tasks import TASK1_2026, TASK2
from cxrlt_ray.phantom import labels, tree

RELEASE = tree.RELEASE


def write_cxrlt2024(root: Path, images: int = 1200) -> None:
    """The phantom's tables: the release's and MIMIC's own formats, without images or reports."""
    root.mkdir(parents=True, exist_ok=True)
    for _ in tree.write_tables(root, labels.draw_cohort(images, 0), 64, 0):
        pass


def write_cxrlt2023(root: Path) -> None:
    """The 2024 tables as the 2023 release had them."""
    write_cxrlt2024(root / "all")
    (root / "cxr-lt-2023").mkdir()
    (root / "all" / "patients.csv.gz").rename(root / "patients.csv.gz")
    files = {"train_labeled": "train", "development_labeled_task2": "development", "test_labeled_task2": "test"}
    for old, new in files.items():
        table = pd.read_csv(root / "all" / RELEASE / f"{old}.csv", dtype={"study_id": str}, keep_default_na=False)
        table = table[[*tree.ID_COLUMNS, *TASK2]].rename(columns={"fpath": "path", "Normal": "No Finding"})
        table.to_csv(root / "cxr-lt-2023" / f"{new}.csv", index=False)
    for file in (root / "all").rglob("*.csv*"):
        file.unlink()


def write_nih(root: Path) -> None:
    """The 2017 table with its comma at the ends of lines and ages such as 058Y; twelve folders cut to two."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    ]
    names = ["Mass", "Pleural_Thickening|Mass", "No Finding", "Hernia"]
    for k in range(40):
        lines.append(
            f"{k:08d}_000.png,{names[k % 4]},{k % 2},{k // 2},{40 + k % 30:03d}Y,{'MF'[k % 2]},PA,2682,2749,0.1,0.1,"
        )
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(f"{k:08d}_000.png" for k in range(30)))
    (root / "test_list.txt").write_text("\n".join(f"{k:08d}_000.png" for k in range(30, 38)))
    for folder, numbers in (("images_001/images", range(20)), ("images_002/images", range(20, 38))):
        (root / folder).mkdir(parents=True)
        for k in numbers:
            (root / folder / f"{k:08d}_000.png").touch()


def write_chexpert(root: Path) -> None:
    """CheXpert-v1.0-small with -1, empty cells, laterals; valid has no uncertain cell."""
    release = root / "CheXpert-v1.0-small"
    release.mkdir(parents=True, exist_ok=True)
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"]
    findings = ["No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Pleural Effusion"]
    rows = []
    for k in range(1, 41):
        where = f"patient{k:05d}/study1"
        values = [["1.0", "", "", ""], ["", "1.0", "-1.0", "0.0"], ["", "0.0", "1.0", "1.0"]][k % 3]
        rows.append(
            [f"CheXpert-v1.0-small/train/{where}/view1_frontal.jpg", "Female", 60 + k % 9, "Frontal", "AP", *values]
        )
        if k % 4 == 0:
            rows.append([f"CheXpert-v1.0-small/train/{where}/view2_lateral.jpg", "Female", 60, "Lateral", "", *values])
    pd.DataFrame(rows, columns=[*header, *findings]).to_csv(release / "train.csv", index=False)
    valid = [
        [
            f"CheXpert-v1.0-small/valid/patient{k}/study1/view1_frontal.jpg",
            "Unknown",
            0,
            "Frontal",
            "PA",
            0.0,
            1.0,
            0.0,
            1.0,
        ]
        for k in (64541, 64542)
    ]
    pd.DataFrame(valid, columns=[*header, *findings]).to_csv(release / "valid.csv", index=False)


def write_table(root: Path, count: int = 60) -> None:
    """A plain labels.csv with all optional columns, one that is no finding, and cells that are not labelled."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "image_id": [f"i{k:03d}" for k in range(count)],
            "path": [f"{k:03d}.jpg" for k in range(count)],
            "subject_id": [f"{k // 2:04d}" for k in range(count)],
            "study_id": [f"t{k // 2}" for k in range(count)],
            "view": ["PA", "ll"] * (count // 2),
            "sex": ["f", "M"] * (count // 2),
            "age": 50,
            "scanner": "GE",
            "Mass": rng.integers(0, 2, count),
            "Nodule": pd.array(rng.integers(0, 2, count), "Int8"),
            "split": np.repeat(["train", "valid", "test"], count // 3),
        }
    )
    table.loc[:9, "Nodule"] = pd.NA
    table.to_csv(root / "labels.csv", index=False)


VINDR = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation",
    "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst",
    "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis",
    "Other diseases", "No finding",
)  # fmt: skip


def write_vindr(root: Path, count: int = 30) -> None:
    """annotations/ with three rows an image of train, one of test, where a column is called otherwise; ID.dicom."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    ids = {
        "train": [f"{k:032x}" for k in rng.permutation(count)],
        "test": [f"{k:032x}" for k in range(count, count + 8)],
    }
    for split, images in ids.items():
        readers = ["R8", "R9", "R10"] if split == "train" else [""]
        truth = (rng.random((len(images), len(VINDR))) < 0.3).astype(int)
        rows = [(image, reader, *truth[k]) for k, image in enumerate(images) for reader in readers]
        table = pd.DataFrame(rows, columns=["image_id", "rad_id", *VINDR])
        if split == "test":
            table = table.drop(columns="rad_id").rename(columns={"Other diseases": "Other disease"})
        table.to_csv(root / "annotations" / f"image_labels_{split}.csv", index=False)
        (root / split).mkdir()
        for image in images:
            (root / split / f"{image}.dicom").touch()


BRAX = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Lung Opacity", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip


def write_brax(root: Path, count: int = 40) -> None:
    """1.1.0's spreadsheet, two images a study, ages in groups, labels 1.0, 0.0, -1.0 and empty; images/ as PNG."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(count):
        below = f"id_{k // 2:08x}/Study_{k // 2}.5/Series_{k}.7/image-{k:08d}-17"
        labels = rng.choice(["1.0", "0.0", "-1.0", ""], len(BRAX), p=[0.3, 0.3, 0.1, 0.3])
        meta = [f"Anonymized_DICOMs/{below}.dcm", f"images/{below}.png", f"id_{k // 2:08x}", "MF"[k // 2 % 2]]
        meta += [["35", "85 or more"][k // 2 % 2], f"{k // 4}", "20110203", *labels]
        rows.append([k, *meta, ["PA", "L"][k % 2], 2500, 2048, 3])
        (root / "images" / below).parent.mkdir(parents=True)
        (root / "images" / f"{below}.png").touch()
    columns = ["", "DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate"]
    columns += [*BRAX, "ViewPosition", "Rows", "Columns", "Manufacturer"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "master_spreadsheet_update.csv", index=False)


PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_COLUMNS = (
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM",
    "PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM",
    "SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM",
    "Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime",
    "RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations",
    "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS",
)  # fmt: skip


def write_padchest(root: Path, count: int = 40) -> None:
    """The table as it was printed: an unnamed index, lists as Python and numpy write them, over several lines."""
    root.mkdir(parents=True, exist_ok=True)
    cells = ["['normal']", "['pleural effusion', ' cardiomegaly']", "['unchanged']", "['NSG tube', 'suboptimal study']"]
    cells += ["['hiatal hernia', 'aortic elongation', 'unchanged']"]
    rows = []
    for k in range(count):
        row = dict.fromkeys(PADCHEST_COLUMNS, "")
        row |= {
            "": k,
            "ImageID": f"2168401113669640{k:06d}_00-0{k}.png",
            "ImageDir": k % 2,
            "StudyID": f"21684{k // 2}",
        }
        row |= {
            "StudyDate_DICOM": 20140915,
            "PatientID": f"839860488694292331637988235681460{k // 2:06d}",
            "PatientBirth": "1930.0",
        }
        row |= {"PatientSex_DICOM": "F", "ViewPosition_DICOM": "POSTEROANTERIOR", "Projection": ["PA", "L"][k % 2]}
        row |= {"PhotometricInterpretation_DICOM": f"MONOCHROME{1 + k % 2}", "Labels": cells[k // 2 % len(cells)]}
        row |= {"Report": "sin hallazg , de interes .", "labelCUIS": "['C0032227' 'C0018800'\n 'C0003504']"}
        rows.append(row)
        (root / str(k % 2)).mkdir(exist_ok=True)
        (root / str(k % 2) / row["ImageID"]).touch()
    pd.DataFrame(rows, columns=PADCHEST_COLUMNS).to_csv(root / PADCHEST, index=False)


CXRLT2026_ROUNDED = "3.24e+38"


def write_cxrlt2026(root: Path, count: int = 60) -> None:
    """The training table shuffled in rows and columns, PatientID rounded; Removal.csv; a test; PadChest's own table.

    Subjects have two images each, a frontal one and a lateral one. An image that Removal.csv names is in training, and
    the last one that trains is not on disk.
    """
    rng = np.random.default_rng(0)
    write_padchest(root, count)
    padchest = pd.read_csv(root / PADCHEST, dtype=str, keep_default_na=False)
    labels = (rng.random((count, len(TASK1_2026))) < 0.3).astype(int)
    table = pd.DataFrame(labels, columns=TASK1_2026)
    table = table.assign(ImageID=padchest["ImageID"], StudyDate_DICOM="20140915", PatientID=CXRLT2026_ROUNDED)
    train, test = table.iloc[: count - 10], table.iloc[count - 10 :]
    order = rng.permutation(len(table.columns))
    train.sample(frac=1, random_state=0).iloc[:, order].to_csv(root / "CXRLT_2026_training.csv", index=False)
    test[["ImageID"]].to_csv(root / "CXRLT_2026_TEST_ALL_TASK1.csv", index=False)
    test[["ImageID"]].to_csv(root / "CXRLT_2026_TEST_ALL_TASK2.csv", index=False)
    removed = [train["ImageID"].iloc[0], "216840111366964_that_is_nowhere.png"]
    pd.DataFrame({"ImageID": removed, "reason": "x"}).to_csv(root / "Removal.csv", index=False)
    (root / "images").mkdir()
    for folder in ("0", "1"):
        for file in (root / folder).iterdir():
            file.rename(root / "images" / file.name)
        (root / folder).rmdir()
    (root / "images" / train["ImageID"].iloc[-1]).unlink()


WRITERS: dict[str, Callable[[Path], None]] = {
    "cxrlt2024": write_cxrlt2024,
    "cxrlt2023": write_cxrlt2023,
    "nih": write_nih,
    "chexpert": write_chexpert,
    "table": write_table,
    "vindr": write_vindr,
    "brax": write_brax,
    "padchest": write_padchest,
    "cxrlt2026": write_cxrlt2026,
}
