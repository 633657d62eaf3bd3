"""What reading a text costs, counted from an encoder's shape, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

from cxrlt_ray.text.encoder_spec import FROZEN, LONGEST, LORA, MINILM, TUNED, TextSpec

BERT_BASE = (12, 768, 3072)  # layers, width, width of the feed-forward network
SHAPES = {MINILM: (6, 384, 1536), "biomedlm": (32, 2560, 10240)}  # as their config.json says; the others are BERTs
USUAL = 180  # tokens of a report: 120 words (MIMIC-CXR's mean is 114)
# forward, and backward through activations and weights, in forward passes
PASSES = {FROZEN: 1, LORA: 2, TUNED: 3}


def training_flops(spec: TextSpec) -> int:
    """Floating-point operations that a training step takes for one text of usual length.

    Of an encoder of the hub that is not known here, as for a BERT of base size.
    """
    layers, width, inner = _shape(spec.encoder)
    tokens = min(spec.max_tokens or LONGEST, USUAL)
    multiplied = 4 * width**2 + 2 * width * inner + 2 * tokens * width  # projections, feed-forward, attention
    return PASSES[spec.tuning] * 2 * layers * tokens * multiplied


def _shape(encoder: str) -> tuple[int, int, int]:
    if encoder in SHAPES or not (path := Path(encoder) / "config.json").is_file():
        return SHAPES.get(encoder, BERT_BASE)
    config = json.loads(path.read_text())
    width = config.get("hidden_size") or config.get("n_embd") or BERT_BASE[1]
    layers = config.get("num_hidden_layers") or config.get("n_layer") or BERT_BASE[0]
    return int(layers), int(width), int(config.get("intermediate_size") or config.get("n_inner") or 4 * width)
