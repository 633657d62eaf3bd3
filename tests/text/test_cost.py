"""What a text costs to read, beside torch's own count of a real encoder's operations."""

from __future__ import annotations

import pytest
import torch
from text_models import bert_folder
from torch.utils.flop_counter import FlopCounterMode

from cxrlt_ray.text import cost
from cxrlt_ray.text.encoder_spec import TextSpec
from cxrlt_ray.text.encoders import build_text_encoder


@pytest.mark.parametrize("tokens", [16, 32])
def test_operations_are_those_that_torch_counts(tmp_path, tokens):
    spec = TextSpec(str(bert_folder(tmp_path / "bert")), max_tokens=tokens)
    encoder = build_text_encoder(spec)
    long = encoder.tokenize(["the heart is enlarged " * 20])
    assert long.ids.shape == (1, tokens)
    encoder.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.tokens(long)
    assert cost.training_flops(spec) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_tuning_costs_more_than_adapters_and_those_more_than_a_frozen_encoder():
    frozen, lora, tuned = (
        cost.training_flops(TextSpec("biomedlm", tuning=tuning)) for tuning in ("frozen", "lora", "tuned")
    )
    assert frozen * 3 == pytest.approx(tuned)
    assert frozen < lora < tuned
    assert frozen == pytest.approx(2 * 2.5e9 * cost.USUAL, rel=0.05)  # 2.7e9 weights, of which 2.5e9 multiply
    assert cost.training_flops(TextSpec("pubmedbert")) == cost.training_flops(TextSpec("someone/their-bert"))
