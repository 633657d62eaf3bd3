"""Small text encoders with tokenizers of their own, as folders that transformers saved."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SENTENCE = "the heart is enlarged no pleural effusion scoliosis of spine left right lung clear small large bulla ."
WORDS = SENTENCE.split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ly"]
WIDTH, POSITIONS = 16, 64


def bert_folder(
    folder: Path,
    seed: int = 0,
    words: list[str] = VOCABULARY,
    embeddings: int = len(VOCABULARY),
    positions: int = POSITIONS,
) -> Path:
    """A BERT of two layers with a WordPiece vocabulary, saved with the head it was pretrained with."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=embeddings,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def gpt2_folder(folder: Path, seed: int = 0) -> Path:
    """A GPT-2 of two layers with byte-pair encoding, as BioMedLM's: no [CLS], no token for padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    end = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **end).save_pretrained(folder)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=400,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def cxr_bert_folder(folder: Path, size: int = 6) -> Path:
    """As CXR-BERT's page: a BERT and its projection in one file, and code that must not be run."""
    from safetensors.torch import load_file, save_file

    bert_folder(folder)
    content = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "code_of_hub.Config", "AutoModel": "code_of_hub.Model", "AutoTokenizer": "code_of_hub.T"}
    content |= {"model_type": "cxr-bert", "projection_size": size, "auto_map": code}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "code_of_hub.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')\n")
    shapes = {"dense_to_hidden": (size, WIDTH), "LayerNorm": (size,), "dense_to_output": (size, size)}
    tensors = load_file(folder / "model.safetensors")
    for name, shape in shapes.items():
        tensors[f"cls_projection_head.{name}.weight"] = torch.randn(shape)
        tensors[f"cls_projection_head.{name}.bias"] = torch.randn(shape[0])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
