"""A text encoder: texts -> tokens -> a vector of each token -> one vector of each text.

To add one, nothing is needed: any encoder of transformers loads by its hub name or folder. A known name is a line in
encoder_spec.py; a pooling a function in POOLS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from cxrlt_ray.errors import UsageError
from cxrlt_ray.text.encoder_spec import AUTO, FROZEN, LONGEST, LORA, PROJECTED, TextSpec, check
from cxrlt_ray.text.loading import Loaded, load
from cxrlt_ray.text.lora import TARGETS, with_lora


@dataclass(frozen=True)
class Tokens:
    """The tokens of B texts, padded on the right.

    ids, mask: int64 [B, L], mask 1 where a token is and 0 where padding is. cut: texts that are longer than
    max_tokens and were cut. unknown: texts of which the vocabulary lacks more than half.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    cut: int = 0
    unknown: int = 0

    def to(self, device: torch.device) -> Tokens:
        """The same on a device."""
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device))


def first_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, L, E] -> [B, E]."""
    return hidden[:, 0]


def mean_of_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, L, E] -> [B, E], without padding."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, L, E] -> [B, E]: the last token that is no padding."""
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * places).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
POOLS: dict[str, Pool] = {
    "cls": first_token,
    "mean": mean_of_tokens,
    "last": last_token,
    PROJECTED: first_token,  # of projected tokens
}


class TextEncoder(nn.Module):
    """An encoder with its tokenizer, pooling and tuning.

    width: E of its vectors, of texts and of tokens. A frozen one stays in eval mode and has no gradients.
    """

    def __init__(self, loaded: Loaded, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tokenizer = loaded.tokenizer
        self.pooling = loaded.pooling if spec.pooling == AUTO else spec.pooling
        _check(loaded, spec, self.pooling)
        self.max_tokens = spec.max_tokens or min(LONGEST, loaded.longest)
        self.model = loaded.model
        self.projection = loaded.projection if self.pooling == PROJECTED else None
        hidden = int(loaded.model.config.hidden_size)
        self.width = self.projection.size if self.projection is not None else hidden
        if spec.tuning == LORA:
            self.requires_grad_(False)
            with_lora(self.model, _lora_targets(loaded, spec), spec.lora_rank, spec.lora_alpha, spec.lora_dropout)
        elif spec.tuning == FROZEN:
            self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> TextEncoder:
        """As a module's; a frozen encoder stays in eval mode."""
        return super().train(mode and self.spec.tuning != FROZEN)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The tokens of B texts; [B, L] with L at most max_tokens. A text without any gets one special token."""
        if not texts:
            empty = torch.zeros(0, 1, dtype=torch.int64)
            return Tokens(empty, empty.clone())
        batch = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, padding=False)
        rows: list[list[int]] = [ids or [self._filler()] for ids in batch["input_ids"]]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        if self.tokenizer.pad_token_id is not None:
            ids += self.tokenizer.pad_token_id
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.tensor(row)
            mask[k, : len(row)] = 1
        cut = sum(bool(encoding.overflowing) for encoding in batch.encodings)
        return Tokens(ids, mask, cut, sum(map(self._is_unknown, rows)))

    def tokens(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """A vector of each token, float [B, L, E] (through the projection, if that is the pooling), and the mask."""
        tokens = tokens.to(self.device)
        hidden = self.model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        return hidden if self.projection is None else self.projection(hidden), tokens.mask

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """A vector of each text, float [B, E], not normalised."""
        return POOLS[self.pooling](*self.tokens(tokens))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def fingerprint(self) -> str:
        """A hash of all that the vectors of tokens depend on: vocabulary, architecture, each bit of the weights."""
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        words = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
        config = self.model.config.to_dict()
        config = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
        digest = hashlib.sha256(json.dumps([words, config], sort_keys=True, default=str).encode())
        for name, tensor in self.state_dict().items():
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def _filler(self) -> int:
        """The token of an empty text, where the tokenizer adds none: GPT-2's begins and ends texts."""
        tokenizer = self.tokenizer
        fillers = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id, 0)
        return next(filler for filler in fillers if filler is not None)

    def _is_unknown(self, row: list[int]) -> bool:
        unknown = self.tokenizer.unk_token_id
        if unknown in (None, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            return False  # as GPT-2's, which has a token of each byte
        return 2 * row.count(unknown) > len(row) - int(self.tokenizer.num_special_tokens_to_add())


def build_text_encoder(spec: TextSpec) -> TextEncoder:
    """An encoder with its pretrained weights, in eval mode.

    Raises UsageError for a spec that it does not fit, CxrltError where the encoder cannot be had.
    """
    check(spec)
    return TextEncoder(load(spec.encoder), spec)


def _check(loaded: Loaded, spec: TextSpec, pooling: str) -> None:
    """Raise UsageError for settings that this encoder does not have."""
    if pooling == PROJECTED and loaded.projection is None:
        raise UsageError(f"text encoder '{spec.encoder}' has no projection: take another `pooling`; cxr-bert has one.")
    if pooling == "cls" and loaded.tokenizer.cls_token is None:
        raise UsageError(f"text encoder '{spec.encoder}' has no [CLS] token: take `pooling: last` or `mean`.")
    if spec.max_tokens is not None and spec.max_tokens > loaded.longest:
        raise UsageError(
            f"max_tokens is {spec.max_tokens:,}, but text encoder '{spec.encoder}' reads {loaded.longest:,} tokens at "
            "most."
        )
    if not loaded.tokenizer.is_fast:
        raise UsageError(f"text encoder '{spec.encoder}' has no fast tokenizer: add its tokenizer.json.")


def _lora_targets(loaded: Loaded, spec: TextSpec) -> tuple[str, ...]:
    """Those given, else the usual ones. Raises UsageError where there are none."""
    kind = loaded.model.config.model_type
    if not spec.lora_targets and kind not in TARGETS:
        raise UsageError(
            f"no lora_targets are known for text encoders of type '{kind}': name the layers of its attention."
        )
    return spec.lora_targets or TARGETS[kind]
