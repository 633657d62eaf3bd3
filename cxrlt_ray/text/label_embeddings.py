"""The label embeddings of a run: made once where the sweep runs, read by its trials wherever they run.

So a trial loads no text encoder for them, and all trials of a run ask by the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.text.finding_embeddings import finding_embeddings, texts_of

if TYPE_CHECKING:
    from cxrlt_ray.storage import Store
    from cxrlt_ray.text.descriptions import Own

FILE = "label_embeddings.safetensors"
Kind = tuple[str, str]  # a text encoder and a style of prompts


@dataclass(frozen=True)
class LabelEmbeddings:
    """Label embeddings of C findings.

    rows: float32 [C, E] by text encoder and style of prompts. texts: by style, a digest of each finding's texts [C].
    """

    findings: tuple[str, ...]
    rows: Mapping[Kind, np.ndarray]
    texts: Mapping[str, tuple[str, ...]]

    def of(self, kind: Kind, findings: Sequence[str]) -> np.ndarray | None:
        """float32 [len(findings), E]; None where they were not made."""
        if kind not in self.rows or not set(findings) <= set(self.findings):
            return None
        return self.rows[kind][[self.findings.index(finding) for finding in findings]]

    def check(self, descriptions: Own = None) -> None:
        """Raises UsageError where a finding has other texts now than these embeddings are of."""
        for style, digests in self.texts.items():
            now = _digests(self.findings, style, descriptions)
            if changed := [name for name, a, b in zip(self.findings, digests, now, strict=True) if a != b]:
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise UsageError(
                    f"the run was made with other texts (prompts: {style}) of {', '.join(changed[:3])}{more}: the "
                    "descriptions or prompts have changed since, and its trials would not compare; begin a new run."
                )

    def as_bytes(self) -> bytes:
        """The file that a run keeps."""
        from safetensors.numpy import save

        about = {"findings": json.dumps(self.findings), "texts": json.dumps(self.texts)}
        tensors = {"/".join(kind): np.ascontiguousarray(rows) for kind, rows in self.rows.items()}
        return save(tensors, about)

    @classmethod
    def read(cls, store: Store) -> LabelEmbeddings:
        """The file of a run. Raises CxrltError where it is damaged."""
        from safetensors import SafetensorError, safe_open

        with store.fetched(FILE) as path:
            try:
                with safe_open(path, framework="np") as file:
                    about = file.metadata()
                    rows = {_kind(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
                texts = {style: tuple(digests) for style, digests in json.loads(about["texts"]).items()}
                return cls(tuple(json.loads(about["findings"])), rows, texts)
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise CxrltError(f"{store.uri}/{FILE} is damaged ({error}): remove it, and resume the run.") from None


def make(findings: Sequence[str], kinds: Iterable[Kind], descriptions: Own, folder: Store | None) -> LabelEmbeddings:
    """The label embeddings of `findings` by every kind. folder: the storage of the shards, beside which they are kept.

    Raises as `finding_embeddings` does: UsageError for a finding without description, CxrltError where an encoder
    cannot be had.
    """
    kinds = list(dict.fromkeys(kinds))
    texts = {style: _digests(findings, style, descriptions) for style in dict.fromkeys(style for _, style in kinds)}
    rows = {(text, style): finding_embeddings(findings, text, style, descriptions, folder) for text, style in kinds}
    return LabelEmbeddings(tuple(findings), rows, texts)


def _digests(findings: Sequence[str], style: str, descriptions: Own) -> tuple[str, ...]:
    """Of each finding's texts."""
    texts = texts_of(findings, style, descriptions)
    return tuple(hashlib.sha256("\n".join(of_finding).encode()).hexdigest()[:16] for of_finding in texts)


def _kind(name: str) -> Kind:
    text, _, style = name.rpartition("/")
    return text, style
