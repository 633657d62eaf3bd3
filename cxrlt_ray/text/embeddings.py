"""Embeddings of texts by a frozen encoder: each distinct text once, kept beside the shards, many by Ray Data.

Texts that are not stored yet are sorted by length, so that little is padding, and go in parts of PART texts to the
encoder: in this process, or, from MANY texts on and where Ray runs, to actors. Both compute the same batches. A part is
stored as soon as it is done: what is computed survives the process. Memory holds a part, and 32 bytes a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.cluster.memory import available_memory
from cxrlt_ray.data.features import FeatureStorage, features_bound, features_folder
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store
from cxrlt_ray.text.embedding_store import (
    EmbeddingKey,
    Part,
    TextEmbeddings,
    as_part,
    claimed,
    read_parts,
    text_keys,
    write_part,
)
from cxrlt_ray.text.encoder_spec import FROZEN, TextSpec

if TYPE_CHECKING:
    from cxrlt_ray.text.encoders import TextEncoder

PART = 8192  # texts of a file, and of a call of an actor
BATCH = 64  # texts of a forward pass
MANY = 20_000  # distinct texts to compute, from which on Ray Data is worth its start
SHARE_OF_MEMORY = 0.5  # for the actors' weights


def embedded(texts: Sequence[str], spec: TextSpec, folder: Store | None) -> np.ndarray:
    """The embeddings of N texts by a frozen encoder, float32 [N, E] in their order, rounded to half precision.

    folder: the storage of the shards, beside which they are kept; None: they are not kept. A line says how many texts
    were cut or hold hardly a word that the encoder knows. An empty text has the embedding of no words. Raises
    UsageError for an encoder that is tuned or does not fit the spec, CxrltError for one that cannot be had.
    """
    return open_embeddings(texts, spec, folder).at(texts)


def open_embeddings(
    texts: Iterable[str],
    spec: TextSpec,
    folder: Store | None,
    by_ray: bool = True,
    encoder: TextEncoder | None = None,
) -> TextEmbeddings:
    """As `embedded`, but looked up by text as they are needed: for more texts than memory holds embeddings of.

    by_ray: whether many may go to actors; not from within a trial, which has the processors that they would wait for.
    encoder: of the spec, where it is loaded already.
    """
    from cxrlt_ray.text.encoders import build_text_encoder

    if spec.tuning != FROZEN:
        raise UsageError(f"embeddings are kept of a frozen text encoder, not with `tuning: {spec.tuning}`.")
    encoder = encoder or build_text_encoder(spec)
    distinct = list(dict.fromkeys(texts))
    if folder is None:
        return TextEmbeddings(list(_computed(distinct, encoder, by_ray)), encoder.width)
    key = EmbeddingKey(spec.encoder, encoder.fingerprint(), encoder.pooling, encoder.max_tokens)
    storage = FeatureStorage(features_folder(folder), features_bound(folder))
    return _Kept(storage, key, encoder, by_ray).of(distinct)


@dataclass(frozen=True)
class _Kept:
    """Embeddings of an encoder that are kept in a store of `storage`."""

    storage: FeatureStorage
    key: EmbeddingKey
    encoder: TextEncoder
    by_ray: bool

    def of(self, texts: Sequence[str]) -> TextEmbeddings:
        """The embeddings of distinct texts; those that are missing are computed and added."""
        try:
            use = self.storage.enter(self.key, 0)
            assert use is not None
            store = self.storage.store(self.key)
            parts = read_parts(store, self.key, {})
            known = self._opened(parts, use)
            missing = _missing(known, texts)
            room = self.storage.enter(self.key, len(missing) * (2 * self.encoder.width + 32)) if missing else use
        except (CxrltError, OSError) as error:
            cli.say(f"  {str(error).rstrip('.')}: embeddings of texts are not kept")
            return TextEmbeddings(list(_computed(texts, self.encoder, self.by_ray)), self.encoder.width)
        if not missing:
            return known
        if room is None:
            cli.say(f"  no room in {self.storage.folder} (--features-gb, free disk): embeddings of texts are not kept")
            return self._opened(_numbered([*known.parts, *_computed(missing, self.encoder, self.by_ray)]), use)
        with room, claimed(store):
            parts = read_parts(store, self.key, parts, mend=True)  # another process may have added some meanwhile
            missing = _missing(self._opened(parts, use), texts)
            unkept = list(self._add(store, missing))
            parts = read_parts(store, self.key, parts)
        return self._opened(parts | _numbered(unkept), use)

    def _add(self, store: Store, texts: Sequence[str]) -> Iterator[Part]:
        """Compute and store parts; those that cannot be written are given back, which a line says once."""
        written = True
        for part in _computed(texts, self.encoder, self.by_ray):
            try:
                if written:
                    write_part(store, self.key, part)
            except CxrltError as error:
                cli.say(f"  {str(error).rstrip('.')}: embeddings of texts are not kept")
                written = False
            if not written:
                yield part

    def _opened(self, parts: dict[str, Part], use: TextIO) -> TextEmbeddings:
        return TextEmbeddings(list(parts.values()), self.encoder.width, use)


def _numbered(parts: Iterable[Part]) -> dict[str, Part]:
    return {f"unkept {number}": part for number, part in enumerate(parts)}


def _missing(known: TextEmbeddings, texts: Sequence[str]) -> list[str]:
    rows = known.rows(text_keys(texts))
    return [text for text, row in zip(texts, rows.tolist(), strict=True) if row < 0]


def _computed(texts: Sequence[str], encoder: TextEncoder, by_ray: bool) -> Iterator[Part]:
    """The embeddings of distinct texts, part by part, the longest texts first."""
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    pieces = [ordered[begin : begin + PART] for begin in range(0, len(ordered), PART)]
    cut = unknown = 0
    many = by_ray and len(texts) >= MANY and _ray_runs()
    results = _by_ray(pieces, encoder) if many else _here(pieces, encoder)
    for piece, result in cli.with_progress(results, len(texts), cli.say, lambda pair: len(pair[0]), "texts"):
        cut, unknown = cut + result.cut, unknown + result.unknown
        yield as_part(piece, result.embeddings)
    for count, what in (
        (cut, f"are longer than {encoder.max_tokens} tokens and were cut"),
        (unknown, f"hold hardly a word that {encoder.spec.encoder} knows"),
    ):
        if count:
            cli.say(f"  {count:,} of {len(texts):,} texts {what}")


@dataclass(frozen=True)
class _Result:
    """Of n texts: embeddings float32 [n, E], and how many were cut or are of unknown words."""

    embeddings: np.ndarray
    cut: int
    unknown: int


def _embed(texts: Sequence[str], encoder: TextEncoder) -> _Result:
    """The embeddings of texts, in batches of BATCH as they stand."""
    import torch

    rows, cut, unknown = [], 0, 0
    with torch.inference_mode():
        for begin in range(0, len(texts), BATCH):
            tokens = encoder.tokenize(texts[begin : begin + BATCH])
            rows.append(encoder(tokens).float().cpu().numpy())
            cut, unknown = cut + tokens.cut, unknown + tokens.unknown
    return _Result(np.concatenate(rows), cut, unknown)


def _here(pieces: Sequence[Sequence[str]], encoder: TextEncoder) -> Iterator[tuple[Sequence[str], _Result]]:
    """Each piece with its result, computed in this process, on its GPU if there is one."""
    import torch

    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    for piece in pieces:
        yield piece, _embed(piece, encoder)


def _ray_runs() -> bool:
    import sys

    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _by_ray(pieces: Sequence[Sequence[str]], encoder: TextEncoder) -> Iterator[tuple[Sequence[str], _Result]]:
    """As `_here`, as they come from actors on the cluster's GPUs, or on its CPUs where it has none."""
    import ray

    from cxrlt_ray.cluster.start import data_context

    data_context()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    size = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    fitting = int(SHARE_OF_MEMORY * (available_memory() or size) / size)
    actors = gpus or min(cpus, fitting)
    rows = [{"number": number, "texts": list(piece)} for number, piece in enumerate(pieces)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Embedder,
        fn_constructor_kwargs={"encoder": ray.put(encoder.cpu())},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(actors, len(pieces)))),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    for row in dataset.iter_rows():
        values = np.frombuffer(row["embeddings"], np.float32).reshape(-1, encoder.width)
        yield pieces[row["number"]], _Result(values, int(row["cut"]), int(row["unknown"]))


class _Embedder:
    """An actor with the encoder."""

    def __init__(self, encoder: Any) -> None:
        import ray
        import torch

        self.encoder: TextEncoder = ray.get(encoder)
        self.encoder.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A piece's embeddings as bytes: one row, which Ray Data does not split."""
        result = _embed([str(text) for text in batch["texts"][0]], self.encoder)
        return {
            "number": batch["number"],
            "embeddings": np.array([result.embeddings.tobytes()], object),
            "cut": np.array([result.cut]),
            "unknown": np.array([result.unknown]),
        }
