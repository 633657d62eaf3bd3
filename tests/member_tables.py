"""Labels and members' predictions as a user would have them, in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.ensembling.members import Members, read_members
from cxrlt_ray.errors import CxrltError

FINDINGS = ["Mass", "Nodule", "Round(ed) Atelectasis", "Normal"]
IMAGES = 30


def labels() -> pd.DataFrame:
    """Labels as the release has them: metadata first, two images a subject, some cells empty."""
    rng = np.random.default_rng(0)
    codes = pd.DataFrame(rng.integers(0, 2, (IMAGES, 4)), columns=FINDINGS).astype("Int64")
    codes.loc[3, "Mass"] = pd.NA
    ids = [f"{k:04d}" for k in range(IMAGES)]  # as numbers they would lose their zeros
    head = {"dicom_id": ids, "subject_id": [f"00{k // 2}" for k in range(IMAGES)], "study_id": range(IMAGES)}
    return pd.concat([pd.DataFrame({**head, "fpath": [f"files/{k}.jpg" for k in ids], "split": "val"}), codes], axis=1)


def scores(seed: int) -> pd.DataFrame:
    values = np.random.default_rng(seed).random((IMAGES, 4)).astype(np.float32)
    return pd.concat([labels()[["dicom_id"]], pd.DataFrame(values, columns=FINDINGS)], axis=1)


def shuffled(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=seed).sample(frac=1, axis=1, random_state=seed)


class Folder:
    """Files of a user: labels.csv and members; `read` reads the members, `told` is the sentence that refuses them."""

    def __init__(self, path: Path):
        self.path = path
        self.write("labels.csv", labels())

    def write(self, name: str, frame: pd.DataFrame) -> str:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(self.path / name, index=False)
        return str(self.path / name)

    def three(self) -> list[str]:
        return [self.write(f"{name}.csv", scores(seed)) for seed, name in enumerate("abc")]

    def read(self, paths, **options) -> Members:
        return read_members(paths, str(self.path / "labels.csv"), **options)

    def told(self, paths, **options) -> str:
        with pytest.raises(CxrltError) as caught:
            self.read(paths, **options)
        message = str(caught.value).replace(f"{self.path}/", "")
        assert message.endswith(".")
        return message


def same(one: Members, other: Members) -> bool:
    return (
        one.names == other.names
        and one.findings == other.findings
        and all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("image_id", "predictions", "targets", "groups")
        )
    )


def arrays(**changes) -> dict[str, np.ndarray]:
    table = labels()
    whole = {
        "predictions": np.stack([scores(seed)[FINDINGS] for seed in range(3)]),
        "targets": table[FINDINGS].fillna(-1).to_numpy(np.int8),
        "groups": table["subject_id"].to_numpy(str),
        "members": np.array(["a", "b", "c"]),
        "image_id": table["dicom_id"].to_numpy(str),
        "findings": np.array(FINDINGS),
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


def archive(folder: Folder, **changes) -> str:
    np.savez(folder.path / "all.npz", **arrays(**changes))
    return str(folder.path / "all.npz")
