"""Embeddings of texts on disk, beside the shards: parts that are only ever added, read as memory maps.

    STORAGE/features/KEY/features.json               what they are of, and the bytes they may come to
                        /texts-NAME.safetensors      texts uint8 [n, 32] (SHA-256), embeddings float16 [n, E]

KEY is a hash of the encoder, its weights' fingerprint, the pooling and max_tokens. A part names its KEY and its
checksum: one that was copied, cut short or changed is removed, and what it held is computed again. Texts themselves are
not stored. A part is float32 where its numbers leave half precision.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TextIO

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import Taken, claim

VERSION = 1  # of the layout and of what is computed; part of KEY
PREFIX, SUFFIX = "texts-", ".safetensors"
PAUSE = 1.0  # seconds between two looks at a store that another process writes


@dataclass(frozen=True)
class EmbeddingKey:
    """All that stored embeddings depend on but the texts. weights: TextEncoder.fingerprint."""

    encoder: str
    weights: str
    pooling: str
    max_tokens: int

    @property
    def name(self) -> str:
        """KEY: the directory's name."""
        content = [VERSION, "texts", dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """Embeddings of n texts. texts: their keys, S32 [n]. embeddings: float16 or float32 [n, E]."""

    texts: np.ndarray
    embeddings: np.ndarray


def text_keys(texts: Iterable[str]) -> np.ndarray:
    """The SHA-256 of each text, S32 [N], which sorts by bytes."""
    return np.frombuffer(
        b"".join(hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts), "S32"
    )


def as_part(texts: Sequence[str], embeddings: np.ndarray) -> Part:
    """Embeddings float32 [n, E] as they are kept: in half precision, where all of them fit it.

    Raises CxrltError for numbers that are not finite.
    """
    if not np.isfinite(embeddings).all():
        raise CxrltError("the text encoder gives numbers that are not finite: its weights are damaged.")
    with np.errstate(over="ignore"):
        half = embeddings.astype(np.float16)
    return Part(text_keys(texts), half if np.isfinite(half).all() else embeddings)


def write_part(store: Store, key: EmbeddingKey, part: Part) -> None:
    """Add a part, whole or not at all. Raises CxrltError where the disk does not take it."""
    import torch
    from safetensors.torch import save_file

    name = hashlib.sha256(part.texts.tobytes()).hexdigest()[:16]
    tensors = {
        "texts": torch.from_numpy(part.texts.view(np.uint8).reshape(-1, 32).copy()),
        "embeddings": torch.from_numpy(part.embeddings),
    }
    with store.place(f"{PREFIX}{name}{SUFFIX}") as path:
        save_file(tensors, path, {"key": key.name, "checksum": _checksum(part)})


def read_parts(store: Store, key: EmbeddingKey, known: dict[str, Part], mend: bool = False) -> dict[str, Part]:
    """All parts of a store by their file, those of `known` as they are.

    A damaged part is left out; with `mend`, which whoever holds the claim may say, it is removed, which a line says.
    """
    parts = {}
    for name in sorted(name for name in store.list() if name.startswith(PREFIX) and name.endswith(SUFFIX)):
        try:
            parts[name] = known.get(name) or _read_part(store, key, name)
        except CxrltError as error:
            if mend:
                cli.say(f"  {error}: its texts are computed again")
                store.delete(name)
    return parts


@contextmanager
def claimed(store: Store) -> Iterator[None]:
    """The claim on a store, once no other process has it."""
    waiting = False
    while True:
        try:
            with claim(store):
                yield
            return
        except Taken as other:
            if not waiting:
                cli.say(f"  {other} computes embeddings of texts: waiting for them")
            waiting = True
            time.sleep(PAUSE)


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings looked up by text: memory maps, or arrays where they are not stored.

    width: E. use: while it is open the store is not removed to make room.
    """

    parts: Sequence[Part]
    width: int
    use: TextIO | None = None

    def at(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, E], in the texts' order. Raises KeyError for a text that was not embedded."""
        rows = self.rows(text_keys(texts))
        if (rows < 0).any():
            raise KeyError(f"{(rows < 0).sum():,} of {len(rows):,} texts have no embedding")
        result = np.empty((len(rows), self.width), np.float32)
        part_of = np.searchsorted(self._begins, rows, side="right") - 1
        for number in np.unique(part_of):
            chosen = part_of == number
            result[chosen] = self.parts[number].embeddings[rows[chosen] - self._begins[number]]
        return result

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """The rows of texts by their keys, counted through all parts, int64 [N]; -1 where there is none."""
        ordered, order = self._index
        if not len(ordered):
            return np.full(len(keys), -1)
        place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
        return np.where(ordered[place] == keys, order[place], -1)

    @cached_property
    def _begins(self) -> np.ndarray:
        return np.cumsum([0, *(len(part.texts) for part in self.parts)])[:-1]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys in order, and the row of each."""
        keys = np.concatenate([np.empty(0, "S32"), *(part.texts for part in self.parts)])
        order = np.argsort(keys, kind="stable")
        return keys[order], order


def _read_part(store: Store, key: EmbeddingKey, name: str) -> Part:
    from safetensors import SafetensorError, safe_open

    assert store.local is not None
    path = store.local / name
    try:
        with safe_open(path, "pt") as content:
            metadata = content.metadata() or {}
            texts, embeddings = content.get_tensor("texts").numpy(), content.get_tensor("embeddings").numpy()
        part = Part(np.ascontiguousarray(texts).reshape(-1).view("S32"), embeddings)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise CxrltError(f"{path} is damaged ({type(error).__name__})") from None
    if metadata.get("key") != key.name:
        raise CxrltError(f"{path} holds embeddings of another encoder")
    if metadata.get("checksum") != _checksum(part) or len(part.texts) != len(embeddings):
        raise CxrltError(f"{path} is damaged (its checksum is another)")
    return part


def _checksum(part: Part) -> str:
    first = zlib.crc32(np.ascontiguousarray(part.texts).data.cast("B"))
    return f"{zlib.crc32(np.ascontiguousarray(part.embeddings).data.cast('B'), first):08x}"
