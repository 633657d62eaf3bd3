"""Label embeddings [C, E] of findings: their texts in one style of prompts, read by one text encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

NAME = "name"  # the style that needs no description
BERT = 768
WIDTHS = {"minilm": 384, "cxr-bert": 128, "biomedlm": 2560}  # of those that are not 768; cxr-bert projects

if TYPE_CHECKING:
    from cxrlt_ray.storage import Store
    from cxrlt_ray.text.descriptions import Own


def finding_embeddings(
    findings: Sequence[str], text: str, prompts: str, descriptions: Own = None, folder: Store | None = None
) -> np.ndarray:
    """float32 [C, E] of norm 1: each finding's mean over its prompts of their embeddings, these of norm 1 too.

    text: a text encoder's name or folder (TextSpec.encoder). prompts: a style of text/prompts.py. descriptions: the
    user's own. folder: the storage beside whose shards embeddings are kept. Raises UsageError for an unknown style
    or encoder, for a finding without description (in style `name` its name serves), and for a name unfit for a table.
    """
    from cxrlt_ray.text.embeddings import embedded
    from cxrlt_ray.text.encoder_spec import TextSpec

    texts = texts_of(findings, prompts, descriptions)
    rows = _unit(embedded([prompt for group in texts for prompt in group], TextSpec(encoder=text), folder))
    ends = np.cumsum([len(group) for group in texts])[:-1]
    return _unit(np.stack([part.mean(axis=0) for part in np.split(rows, ends)]))


def texts_of(findings: Sequence[str], style: str, descriptions: Own = None) -> list[tuple[str, ...]]:
    """The texts that ask for each finding, [C] of one or more. Raises UsageError as `finding_embeddings` does."""
    from cxrlt_ray.text.descriptions import load_descriptions, look_up
    from cxrlt_ray.text.prompts import prompts

    if style != NAME:
        described = load_descriptions(findings, descriptions)
        return [prompts(described[finding], style) for finding in findings]
    known = look_up(findings, descriptions)
    return [
        prompts(description, style) if (description := known[finding]) and description.reviewed else (finding,)
        for finding in findings
    ]


def width_of(text: str) -> int:
    """E of a text encoder, without loading it: of a known name, or as a folder's config.json says; else 768, BERT's."""
    config = Path(text) / "config.json"
    if not config.is_file():
        return WIDTHS.get(text, BERT)
    values = json.loads(config.read_text())
    return int(values.get("hidden_size") or values.get("n_embd") or BERT)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows [N, E] at norm 1."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)).astype(np.float32)
