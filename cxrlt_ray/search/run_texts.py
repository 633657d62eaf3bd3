"""What a run keeps of the texts by which findings are asked for: the user's descriptions, and label embeddings.

All of it is made, or refused, where the sweep runs and before anything is prepared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cxrlt_ray.errors import UsageError
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.runs.store import Run
    from cxrlt_ray.search.request import SweepRequest
    from cxrlt_ray.search.space import Space
    from cxrlt_ray.text.corpus import Corpus
    from cxrlt_ray.text.descriptions import Description
    from cxrlt_ray.text.encoder_spec import TextSpec
    from cxrlt_ray.text.label_embeddings import LabelEmbeddings


@dataclass(frozen=True)
class RunTexts:
    """descriptions: the user's own. embeddings: of what trials learn or answer for; None where no head reads any."""

    descriptions: tuple[Description, ...] = ()
    embeddings: LabelEmbeddings | None = None

    def files(self) -> dict[str, bytes]:
        """The files of a run's directory that hold them, by name."""
        from cxrlt_ray.text.descriptions import KEPT, as_yaml
        from cxrlt_ray.text.label_embeddings import FILE

        files = {KEPT: as_yaml(*self.descriptions).encode()} if self.descriptions else {}
        return files if self.embeddings is None else {**files, FILE: self.embeddings.as_bytes()}


def own_descriptions(request: SweepRequest, existing: Run | None = None) -> tuple[Description, ...]:
    """The user's descriptions: those that a run that goes on has kept, or those that the request names."""
    from cxrlt_ray.text.descriptions import kept_descriptions, read_descriptions

    if existing:
        return kept_descriptions(existing.store)
    return () if request.descriptions is None else read_descriptions(request.descriptions)


def provenance_of_descriptions(path: str | None) -> str | None:
    """What a run's record keeps of where its descriptions came from: how many, and a digest of them."""
    from cxrlt_ray.text.descriptions import as_yaml, read_descriptions

    if path is None:
        return None
    own = read_descriptions(path)
    return f"{len(own)} of {path} (sha256 {hashlib.sha256(as_yaml(*own).encode()).hexdigest()[:12]})"


def trial_encoders(space: Space) -> list[TextSpec]:
    """The text encoders that the space's trials load: those of objectives that read texts, sentences or places."""
    from cxrlt_ray.objectives.registry import find_objective
    from cxrlt_ray.text.encoder_spec import TextSpec

    stages = [(stage, find_objective(stage.objective).needs) for c in space.kinds() for stage in c.staged()]
    read = [stage.objective_spec().text_spec() for stage, needs in stages if needs.texts]
    return list(dict.fromkeys([*read, *(TextSpec(str(s.text)) for s, needs in stages if needs.places or needs.rows)]))


def all_encoders(space: Space) -> list[TextSpec]:
    """Every text encoder of the space, of heads (frozen) and of objectives."""
    from cxrlt_ray.text.encoder_spec import TextSpec

    of_heads = [TextSpec(encoder=text) for text, _ in space.label_texts()]
    return list(dict.fromkeys([*of_heads, *trial_encoders(space)]))


def check_described(space: Space, asked: Sequence[str], own: Sequence[Description], given: bool) -> None:
    """Raises UsageError where an asked finding has no description, or descriptions were given that nothing reads."""
    from cxrlt_ray.text.finding_embeddings import texts_of

    kinds = space.label_texts()
    if given and not kinds:
        raise UsageError(f"--descriptions: search space {space.name} has no head that reads texts of findings.")
    for style in dict.fromkeys(style for _, style in kinds):
        texts_of(asked, style, own)


def check_encoders(space: Space, texts: RunTexts) -> None:
    """Build the text encoders that trials load, and say in a line which ones the space reads.

    Raises CxrltError where one cannot be had, naming what to install; UsageError where adapters match nothing in it.
    """
    from cxrlt_ray.text.encoders import build_text_encoder

    kinds = space.label_texts()
    rows = texts.embeddings.rows if texts.embeddings else {}
    lines = {text: f"{text} ({rows[text, style].shape[1]} numbers a text, stored)" for text, style in kinds}
    parts = list(lines.values())
    for spec in trial_encoders(space):
        parts.append(f"{spec.encoder} ({build_text_encoder(spec).width} numbers a text, {spec.tuning} in trials)")
    if parts:
        print(f"Text encoders: {', '.join(parts)}")


def run_texts(
    space: Space, findings: Sequence[str], storage: str, own: tuple[Description, ...], existing: Run | None
) -> RunTexts:
    """What the run keeps; label embeddings are computed for a new run, or for one that has none.

    findings: all that trials learn or answer for. Raises UsageError where a run that goes on has other texts than
    there are now, or a finding has none; CxrltError where an encoder cannot be had, naming what to install.
    """
    from cxrlt_ray.text import label_embeddings

    kinds = space.label_texts()
    if existing and existing.store.exists(label_embeddings.FILE):
        kept = label_embeddings.LabelEmbeddings.read(existing.store)
        kept.check(own)
        if all(kind in kept.rows for kind in kinds):
            return RunTexts(own, kept)
    embeddings = label_embeddings.make(findings, kinds, own, Store(storage)) if kinds else None
    return RunTexts(own, embeddings)


def store_vectors(space: Space, corpora: Iterable[Corpus], manifest: Manifest, storage: str) -> None:
    """Compute what frozen encoders make of the texts that trials read, once for all, and keep it beside the shards."""
    from cxrlt_ray.text.embeddings import open_embeddings

    kinds = list(dict.fromkeys(_stored_texts(space)))
    for corpus in corpora:
        second = bool(corpus.has_second.any())  # where a space searches how often, some trials draw them
        for spec, draw in kinds:
            open_embeddings(corpus.drawable(manifest, draw, second), spec, Store(storage))


def _stored_texts(space: Space) -> Iterator[tuple[TextSpec, str]]:
    """The frozen encoders of objectives to which a text's vector is enough, with the kind of text."""
    from cxrlt_ray.objectives.registry import find_objective
    from cxrlt_ray.text.encoder_spec import FROZEN, TextSpec

    for stage in (stage for config in space.kinds() for stage in config.staged()):
        needs = find_objective(stage.objective).needs
        if needs.vectors and stage.text_tuning == FROZEN:
            yield stage.objective_spec().text_spec(), stage.text_draw
        if needs.rows:
            yield TextSpec(encoder=str(stage.text)), "sentence"
