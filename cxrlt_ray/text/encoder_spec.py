"""What makes a text encoder, as a point of a search space and the store of embeddings name it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cxrlt_ray.errors import UsageError

MINILM = "minilm"
# the others of the hub, by the names that papers use
HUB = {
    "pubmedbert": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
    "med-kebert": "xmcmic/Med-KEBERT",
    "bio-clinicalbert": "emilyalsentzer/Bio_ClinicalBERT",
    "cxr-bert": "microsoft/BiomedVLP-CXR-BERT-specialized",
    "biomedlm": "stanford-crfm/BioMedLM",
}
AUTO, PROJECTED = "auto", "projected"
POOLINGS = (AUTO, "cls", "mean", "last", PROJECTED)
FROZEN, TUNED, LORA = "frozen", "tuned", "lora"
TUNINGS = (FROZEN, TUNED, LORA)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


LONGEST = 256  # tokens


@dataclass(frozen=True)
class TextSpec:
    """What makes a text encoder.

    encoder: `minilm` (offline, a package), a name of HUB, a folder that transformers saved, or a hub's OWNER/NAME.
    pooling: how the vectors of a text's tokens become one: `cls` (the first token), `mean` (without padding), `last`
    (the last token that is no padding), `projected` (the first token through CXR-BERT's projection), or `auto`: the
    encoder's own. tuning: `frozen`, `tuned` (all weights train) or `lora` (adapters of `lora_rank` train, scaled by
    `lora_alpha` / `lora_rank`, with dropout `lora_dropout` in 0..1, in the layers whose names end in `lora_targets`;
    none: those usual for the architecture). max_tokens: texts are cut after as many, special tokens included;
    None: after LONGEST, or as many as the encoder reads.
    """

    encoder: str = MINILM
    pooling: str = AUTO
    tuning: str = FROZEN
    lora_rank: int = 8
    lora_alpha: float = 32
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = ()
    max_tokens: int | None = None


def check(spec: TextSpec) -> None:
    """Raise UsageError for a value that is not allowed; nothing is loaded."""
    if not is_known(spec.encoder):
        raise UsageError(
            f"text encoder '{spec.encoder}' is none of {', '.join((MINILM, *HUB))}, no folder with a config.json, and "
            "no OWNER/NAME of the hub."
        )
    for key, value, allowed in (("pooling", spec.pooling, POOLINGS), ("tuning", spec.tuning, TUNINGS)):
        if value not in allowed:
            raise UsageError(f"text {key} '{value}' is none of {', '.join(allowed)}.")
    for key, number, fits, allowed_range in (
        ("max_tokens", spec.max_tokens, spec.max_tokens is None or spec.max_tokens >= 3, "3 or more"),
        ("lora_rank", spec.lora_rank, spec.lora_rank >= 1, "1 or more"),
        ("lora_alpha", spec.lora_alpha, spec.lora_alpha > 0, "above 0"),
        ("lora_dropout", spec.lora_dropout, 0 <= spec.lora_dropout < 1, "at least 0 and below 1"),
    ):
        if not fits:
            raise UsageError(f"text {key} is {number}: it must be {allowed_range}.")
    if spec.lora_targets and spec.tuning != LORA:
        raise UsageError(f"lora_targets act with `tuning: {LORA}` only, not with `tuning: {spec.tuning}`.")


def is_known(encoder: str) -> bool:
    """Whether it is a known name, a folder with a config.json, or reads as a name of the hub (which is not asked)."""
    if encoder in (MINILM, *HUB) or (Path(encoder) / "config.json").is_file():
        return True
    return not Path(encoder).exists() and _HUB_NAME.fullmatch(encoder) is not None
