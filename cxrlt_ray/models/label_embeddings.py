"""Label embeddings for heads that read them: of a text encoder, or a file with one row for each finding.

Rows of a file are matched by name if it has names.
.parquet, .csv: a column of names (text), all other columns numbers. .npz: an array `embeddings` [C, E], optionally
`names` [C]. .safetensors: a tensor `embeddings` [C, E] in the findings' order, or a tensor [E] under each name.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd
    import torch


def embeddings_of(spec: ModelSpec, findings: int | Sequence[str]) -> torch.Tensor:
    """float32 [C, E], from the file or the text encoder that `spec` names; zeros for a number of findings."""
    import torch

    if spec.queries:
        if isinstance(findings, int):
            return torch.zeros(findings, width(spec.queries))
        return torch.as_tensor(read(spec.queries, findings))
    assert spec.text is not None
    from cxrlt_ray.text.finding_embeddings import finding_embeddings, width_of

    if isinstance(findings, int):
        return torch.zeros(findings, width_of(spec.text))
    return torch.as_tensor(finding_embeddings(findings, spec.text, spec.prompts))


def read(uri: str, findings: Sequence[str]) -> np.ndarray:
    """float32 [C, E], one row for each of `findings`.

    Raises UsageError naming the findings that the file does not have, or its number of rows where it has no names.
    """
    names, rows = _table(uri)
    if names is None:
        if len(rows) != len(findings):
            raise UsageError(
                f"{uri} has {len(rows)} label embeddings without names, the task has {len(findings)} findings: give "
                "one row a finding in the task's order, or names."
            )
        return rows
    missing = [finding for finding in findings if finding not in names]
    if missing:
        raise UsageError(f"{uri} has no label embedding for {', '.join(missing)}: add a row for each.")
    return rows[[names.index(finding) for finding in findings]]


def width(uri: str) -> int:
    """E, the length of the file's embeddings."""
    return _table(uri)[1].shape[1]


@lru_cache(maxsize=8)
def _table(uri: str) -> tuple[list[str] | None, np.ndarray]:
    from cxrlt_ray.storage import Store

    store, name = Store.holding(uri)
    kind = name.rpartition(".")[2].lower()
    if kind not in _READERS:
        raise UsageError(f"{uri}: label embeddings are read from .{', .'.join(_READERS)} only.")
    content = store.read(name)
    try:
        names, rows = _READERS[kind](content)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{uri} cannot be read as label embeddings ({reason}).") from None
    if rows.ndim != 2 or not rows.size or (names is not None and len(names) != len(rows)):
        raise UsageError(f"{uri}: label embeddings are one row a finding, not of shape {rows.shape}.")
    if not np.isfinite(rows).all():
        raise UsageError(f"{uri} has label embeddings that are not finite numbers.")
    if names is not None and len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{uri} has two label embeddings for {duplicate}.")
    return names, rows.astype(np.float32)


def _from_table(table: pd.DataFrame) -> tuple[list[str] | None, np.ndarray]:
    import pandas as pd

    index = [c for c in table if str(c).startswith("Unnamed: ") and table[c].tolist() == list(range(len(table)))]
    table = table.drop(columns=index)  # which pandas wrote along
    texts = [column for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    if len(texts) > 1:
        raise ValueError(f"columns {', '.join(map(str, texts))} are no numbers; one may hold the names")
    names = [str(name) for name in table[texts[0]]] if texts else None
    return names, table.drop(columns=texts).to_numpy(np.float64)


def _parquet(content: bytes) -> tuple[list[str] | None, np.ndarray]:
    import pandas as pd

    return _from_table(pd.read_parquet(io.BytesIO(content)))


def _csv(content: bytes) -> tuple[list[str] | None, np.ndarray]:
    from cxrlt_ray.data.table_file import parsed_table

    return _from_table(parsed_table(content, "the file").table.to_pandas(ignore_metadata=True))


def _npz(content: bytes) -> tuple[list[str] | None, np.ndarray]:
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    return [str(name) for name in arrays["names"]] if "names" in arrays else None, arrays["embeddings"]


def _safetensors(content: bytes) -> tuple[list[str] | None, np.ndarray]:
    from safetensors.torch import load

    tensors = {name: tensor.float().numpy() for name, tensor in load(content).items()}
    if set(tensors) == {"embeddings"}:
        return None, tensors["embeddings"]
    return list(tensors), np.stack(list(tensors.values()))


_READERS = {"parquet": _parquet, "csv": _csv, "npz": _npz, "safetensors": _safetensors}
