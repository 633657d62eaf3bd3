"""PadChest: PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv(.gz), 16-bit PNG in folders 0 to 54.

`Labels` holds a Python list as text, such as "['pleural effusion', ' pneumonia']"; it is taken apart, never
evaluated. A label that it lists is 1, every other is 0. `unchanged` and `suboptimal study` say nothing of
findings: an image that has nothing else is not labelled, nor is one with `exclude`, of the projection EXCLUDE or
with an empty cell. A label that is none of the 190 is noted and left out.

The view is `Projection` (AP_horizontal is AP), else ViewPosition_DICOM. Images are stored as the detector
gave them: PhotometricInterpretation_DICOM tells those to be inverted (MONOCHROME1). Folders lie in the
directory or in images/; a resized export has all images in one folder images*. About twenty files of the
release are broken PNG: prepare puts them into quarantine. There is no split. Age is the year of the study less
that of birth. Children (Pediatric) are kept. A report stands in the table itself, hence TABLE#ROW for its path.

Source: Bustos et al., PadChest, Medical Image Analysis 66 (2020); its README for the columns; labels,
folders and views as public code reads them. Unverified, as the data is on request: that the list of labels is
whole, and that no PNG was inverted on export.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers import Raw, Request, register_reader
from cxrlt_ray.data.readers.columns import (
    MAX_AGE,
    Sheet,
    and_more,
    counted,
    quoted,
    read_sheet,
    sexes,
    views,
)
from cxrlt_ray.data.readers.files import folders, locations
from cxrlt_ray.data.readers.views import remarks_on_views
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_detail
from cxrlt_ray.storage import Store

TABLE = re.compile(r"PADCHEST_chest_x_ray_images_labels_160K.*\.csv(\.gz)?$", re.IGNORECASE)
TEXT = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "ViewPosition_DICOM", "Projection", "PhotometricInterpretation_DICOM", "Labels", "Report",
)  # fmt: skip
EXCLUDED = "exclude"
SAY_NOTHING = ("suboptimal study", "unchanged")
LIST = re.compile(r"""\[\s*(('[^']*'|"[^"]*")\s*(,\s*('[^']*'|"[^"]*")\s*)*)?\]""")
ITEM = re.compile(r"""'([^']*)'|"([^"]*)\"""")
FINDINGS = (
    "COPD signs", "Chilaiditi sign", "NSG tube", "abnormal foreign body", "abscess", "adenopathy", "air bronchogram",
    "air fluid level", "air trapping", "alveolar pattern", "aortic aneurysm", "aortic atheromatosis",
    "aortic button enlargement", "aortic elongation", "aortic endoprosthesis", "apical pleural thickening",
    "artificial aortic heart valve", "artificial heart valve", "artificial mitral heart valve", "asbestosis signs",
    "ascendent aortic elongation", "atelectasis", "atelectasis basal", "atypical pneumonia", "axial hyperostosis",
    "azygoesophageal recess shift", "azygos lobe", "blastic bone lesion", "bone cement", "bone metastasis",
    "breast mass", "bronchiectasis", "bronchovascular markings", "bullas", "calcified adenopathy",
    "calcified densities", "calcified fibroadenoma", "calcified granuloma", "calcified mediastinal adenopathy",
    "calcified pleural plaques", "calcified pleural thickening", "callus rib fracture", "cardiomegaly", "catheter",
    "cavitation", "central vascular redistribution", "central venous catheter",
    "central venous catheter via jugular vein", "central venous catheter via subclavian vein",
    "central venous catheter via umbilical vein", "cervical rib", "chest drain tube", "chronic changes",
    "clavicle fracture", "consolidation", "costochondral junction hypertrophy", "costophrenic angle blunting", "cyst",
    "dai", "descendent aortic elongation", "dextrocardia", "diaphragmatic eventration", "double J stent",
    "dual chamber device", "electrical device", "emphysema", "empyema", "end on vessel", "endoprosthesis",
    "endotracheal tube", "esophagic dilatation", "external foreign body", "fibrotic band", "fissure thickening",
    "flattened diaphragm", "fracture", "gastrostomy tube", "goiter", "granuloma", "ground glass pattern",
    "gynecomastia", "heart insufficiency", "heart valve calcified", "hemidiaphragm elevation", "hiatal hernia",
    "hilar congestion", "hilar enlargement", "humeral fracture", "humeral prosthesis", "hydropneumothorax",
    "hyperinflated lung", "hypoexpansion", "hypoexpansion basal", "increased density", "infiltrates",
    "interstitial pattern", "kerley lines", "kyphosis", "laminar atelectasis", "lepidic adenocarcinoma", "lipomatosis",
    "lobar atelectasis", "loculated fissural effusion", "loculated pleural effusion", "lung metastasis",
    "lung vascular paucity", "lymphangitis carcinomatosa", "lytic bone lesion", "major fissure thickening",
    "mammary prosthesis", "mass", "mastectomy", "mediastinal enlargement", "mediastinal mass", "mediastinal shift",
    "mediastinic lipomatosis", "metal", "miliary opacities", "minor fissure thickening", "multiple nodules",
    "nephrostomy tube", "nipple shadow", "nodule", "non axial articular degenerative changes", "normal", "obesity",
    "osteopenia", "osteoporosis", "osteosynthesis material", "pacemaker", "pectum carinatum", "pectum excavatum",
    "pericardial effusion", "pleural effusion", "pleural mass", "pleural plaques", "pleural thickening",
    "pneumomediastinum", "pneumonia", "pneumoperitoneo", "pneumothorax", "post radiotherapy changes", "prosthesis",
    "pseudonodule", "pulmonary artery enlargement", "pulmonary artery hypertension", "pulmonary edema",
    "pulmonary fibrosis", "pulmonary hypertension", "pulmonary mass", "pulmonary venous hypertension",
    "reservoir central venous catheter", "respiratory distress", "reticular interstitial pattern",
    "reticulonodular interstitial pattern", "rib fracture", "right sided aortic arch", "round atelectasis",
    "sclerotic bone lesion", "scoliosis", "segmental atelectasis", "single chamber device", "soft tissue mass",
    "sternoclavicular junction hypertrophy", "sternotomy", "subacromial space narrowing", "subcutaneous emphysema",
    "superior mediastinal enlargement", "supra aortic elongation", "surgery", "surgery breast", "surgery heart",
    "surgery humeral", "surgery lung", "surgery neck", "suture material", "thoracic cage deformation",
    "total atelectasis", "tracheal shift", "tracheostomy tube", "tuberculosis", "tuberculosis sequelae",
    "vascular hilar enlargement", "vascular redistribution", "ventriculoperitoneal drain tube",
    "vertebral anterior compression", "vertebral compression", "vertebral degenerative changes", "vertebral fracture",
    "volume loss",
)  # fmt: skip


def recognise(data: Store, labelled: bool) -> str | None:
    """The table, in the directory or one in it."""
    location = find_table(data)
    return location and f"{location[1]} in {location[0].uri}"


@register_reader(
    "padchest",
    "PADCHEST_chest_x_ray_images_labels_160K*.csv or .csv.gz, in it or a directory in it",
    recognise,
    FINDINGS,
)
def read(request: Request) -> Raw:
    """The table's rows."""
    location = find_table(request.data)
    if not location:
        raise CxrltError(f"{request.data.uri} holds no PadChest: no PADCHEST_chest_x_ray_images_labels_160K*.csv.")
    root, name = location
    sheet = read_table(root, name, ("ImageDir", *(["Labels"] if request.labelled else [])))
    problems: list[str] = []
    file = sheet.filled("ImageID", problems)
    table = details(sheet, problems).assign(
        image_id=file.str.replace(r"\.\w+$", "", regex=True),
        path=_paths(root, sheet.ids("ImageDir", problems), file),
        file=sheet.file,
        row=np.arange(1, len(file) + 1),
    )
    findings = tuple(c for c in FINDINGS if request.findings is None or c in request.findings)
    notes = [*sheet.notes, *remarks_on_views(sheet.file, *_seen(sheet))]
    # in one go: 190 columns assigned one by one would fragment the table
    table = pd.concat([table, _labels(sheet, file, findings, notes, problems)], axis=1)
    return Raw(table if request.labelled else table.assign(split="test"), findings, root.uri, notes, problems)


def find_table(data: Store) -> tuple[Store, str] | None:
    """Where PadChest's own table is, in `data` or a directory in it, and its name."""
    # the folders of 160,861 images are no place to look for a table
    below = [directory for directory in locations(data)[1:] if not re.search(r"/(\d+|images[^/]*)$", directory.uri)]
    near = [data, *below]
    return next(((directory, name) for directory in near for name in directory.list() if TABLE.match(name)), None)


def read_table(folder: Store, name: str, needed: tuple[str, ...] = ()) -> Sheet:
    """PadChest's own table. needed: columns beside its ids, without which CxrltError is raised."""
    sheet = read_sheet(folder, name, TEXT, TEXT)
    sheet.need("ImageID", "PatientID", "StudyID", *needed)
    return sheet


def details(sheet: Sheet, problems: list[str]) -> pd.DataFrame:
    """What the table says of each image beside its labels, by the manifest's names, a row an image."""
    photometric = sheet.text("PhotometricInterpretation_DICOM").str.upper()
    report = f"{sheet.file}#" + pd.Series(np.arange(1, sheet.table.num_rows + 1)).astype("str")
    return pd.DataFrame(
        {
            "study_id": sheet.ids("StudyID", problems),
            "subject_id": sheet.ids("PatientID", problems),
            "view": views(*_seen(sheet)),
            "sex": sexes(sheet.text("PatientSex_DICOM")),
            "age": _ages(sheet),
            "photometric": photometric.where(photometric.isin(["MONOCHROME1", "MONOCHROME2"])),
            "report": report.where(sheet.text("Report") != ""),
        }
    )


def _seen(sheet: Sheet) -> tuple[pd.Series, pd.Series]:
    """What says from where an image was taken, the better source first."""
    return sheet.text("Projection"), sheet.text("ViewPosition_DICOM")


def _ages(sheet: Sheet) -> pd.Series:
    """Years as float32; null where unknown or beyond MAX_AGE."""
    of_study = pd.to_numeric(sheet.text("StudyDate_DICOM").str[:4], errors="coerce")
    years = of_study - pd.to_numeric(sheet.text("PatientBirth"), errors="coerce")
    return years.where(years.between(0, MAX_AGE)).astype("float32")


def _paths(root: Store, folder: pd.Series, file: pd.Series) -> pd.Series:
    """FOLDER/NAME, images/FOLDER/NAME, or, where the numbered folders are nowhere, images*/NAME."""
    below = ["", *(f"{name}/" for name in folders(root) if name.startswith("images"))]
    first = next(iter(folder), "")
    inside = [directory for directory in below if root.exists(f"{directory}{first}")]
    if inside or len(below) == 1:
        return (inside or below)[0] + folder + "/" + file
    return below[1] + file


def _labels(
    sheet: Sheet, file: pd.Series, findings: tuple[str, ...], notes: list[str], problems: list[str]
) -> pd.DataFrame:
    """A column per finding, as Int8 [N]; each different cell is taken apart once."""
    codes, cells = pd.factorize(sheet.text("Labels"))
    lists = [_items(cell) for cell in cells]
    torn = np.isin(codes, [k for k, names in enumerate(lists) if names is None])
    if torn.any():
        first = int(np.flatnonzero(torn)[0])
        problems.append(
            f"{sheet.file}: column 'Labels', row {first + 1}{private_detail(file.iloc[first])}"
            f"{and_more(torn.sum() - 1)} should be a list such as ['cardiomegaly', 'pleural effusion']"
            f"{private_detail(cells[codes[first]][:60])}."
        )
    known = {name.lower(): name for name in FINDINGS}
    sets = [{known.get(name, name) for name in names or ()} for names in lists]
    unknown = sorted(set().union(*sets) - {*FINDINGS, *SAY_NOTHING, EXCLUDED})
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        notes.append(f"{counted(len(unknown), 'label')} not known and left out: {quoted(unknown[:5])}{more}.")
    labelled = np.array([bool(names - {*SAY_NOTHING}) and EXCLUDED not in names for names in sets], bool)
    unlabelled = ~labelled[codes] | (sheet.text("Projection").str.upper() == "EXCLUDE").to_numpy(bool)
    if unlabelled.any():
        count = counted(int(unlabelled.sum()), "image")
        notes.append(f"{count} not labelled: excluded by PadChest, or without a finding named.")
    positive = np.array([[name in names for name in findings] for names in sets], np.int8).reshape(len(sets), -1)
    values = positive[codes]
    return pd.DataFrame(
        {name: pd.arrays.IntegerArray(values[:, k].copy(), unlabelled.copy()) for k, name in enumerate(findings)},
        index=file.index,
    )


def _items(cell: str) -> list[str] | None:
    """The list in "['nodule', ' mass']", in small letters; [] for an empty cell, None where the cell holds no list."""
    if cell and not LIST.fullmatch(cell):
        return None
    return [name for pair in ITEM.findall(cell) if (name := "".join(pair).strip().lower())]
