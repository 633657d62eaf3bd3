"""Heads that know a finding by its text alone: tokens [B, N, D] and label embeddings [C, E] -> logits [B, C].

    query_decoder  a transformer decoder whose queries are the label embeddings (teams B and H)
    pair           image and text features joined, a network on every pair (team G)
    film           the text modulates image features and weighs them by an attention map (team I)
    bilinear       a linear classifier whose weights are a linear map of the text
    similarity     the cosine of image and text, in the space that `clip`, `siglip` or `mama` has learnt (team C)

No weight belongs to a finding, so that a model answers for any that has an embedding (asking.py). `query_text` in
heads.py is of this kind too. Every embedding is brought to the norm sqrt(E), as layers expect it: its direction counts.
To add one: a subclass of `TextHead` under `@register_head("name")`.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d, normalize, relu

from cxrlt_ray.models.attention import PreNormDecoderLayer, width_for
from cxrlt_ray.models.features import POOLS
from cxrlt_ray.models.heads import Head, register_head
from cxrlt_ray.models.precision import in_full_precision
from cxrlt_ray.models.spec import OWN_POOL, ModelSpec


def of_length(embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings [..., E], each of norm sqrt(E); zeros stay zeros."""
    return normalize(embeddings, dim=-1) * math.sqrt(embeddings.shape[-1])


class TextHead(Head):
    """The base of these heads. embeddings: [C, E], part of the checkpoint, never trained."""

    needs_embeddings = True
    embeddings: torch.Tensor

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec)
        assert embeddings is not None
        self.register_buffer("embeddings", embeddings)

    @property
    def texts(self) -> torch.Tensor:
        """The label embeddings [C, E], each of norm sqrt(E); zeros stay zeros."""
        return of_length(self.embeddings)


@register_head("query_decoder")
class QueryDecoder(TextHead):
    """A query network: label embeddings are queries of L decoder layers over the image's tokens, all read out alike.

    KAD (Zhang et al. 2023), UniChest (Dai et al. 2024), whose cross-attention has the pooled feature mixed in
    (`query_pooled` .4), and MedKLIP (Wu et al. 2023), which reads two outputs a finding out for cross-entropy
    (`query_outputs` 2: the logit is their difference, whose sigmoid is the softmax). Tokens go through
    Linear-ReLU-Linear, label embeddings through Linear-GELU-Linear, as in KAD; four heads, feed-forward 1,024.
    Ours differs: the width is that of the features, `query_width` at most; the pooled feature is the projected tokens'
    mean.

    Without `query_self_attention` a logit depends on the image and its own finding's embedding only. With it, as in all
    three papers, queries attend to each other: a logit depends on the findings that the model was trained with. Those
    stay its company when it is asked for others: of K + C embeddings the last C are findings to answer for, and attend
    to the first K and to themselves alone, so that none of the C changes another's logit.
    """

    SETTINGS = ("query_layers", "query_width", "query_self_attention", "query_pooled", "query_outputs")
    gives_queries = True

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec, embeddings)
        self.width = width = min(spec.query_width, width_for(features))
        self.company = len(self.embeddings) - findings
        self.self_attention = spec.query_self_attention
        self.embed = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))
        self.ask = nn.Sequential(nn.Linear(self.embeddings.shape[1], width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(width, spec.drop_rate, spec.query_self_attention, spec.query_pooled)
            for _ in range(spec.query_layers)
        )
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(width, spec.query_outputs)
        self.drop = nn.Dropout(spec.drop_rate)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        return self.logits(self.decoded(tokens))

    def decoded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Each finding's query after the last layer, [B, C, width], with dropout: what its logit is read from."""
        queries, tokens = self.ask(self.texts).unsqueeze(0), self.embed(tokens)
        mask = self._mask() if self.self_attention else None
        for layer in self.layers:
            queries = layer(queries, tokens, mask)
        return self.drop(self.norm(queries[:, self.company :]))

    def logits(self, decoded: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of what `decoded` gave."""
        outputs = self.read(decoded)
        return outputs[..., 0] if outputs.shape[2] == 1 else outputs[..., 1] - outputs[..., 0]

    def _mask(self) -> torch.Tensor | None:
        """Which query attends to which, bool [K + C, K + C]; None where all attend to all."""
        if not self.company:
            return None
        count = len(self.embeddings)
        mask = torch.eye(count, dtype=torch.bool, device=self.embeddings.device)
        mask[:, : self.company] = True
        return mask


@register_head("pair")
class Pair(TextHead):
    """Pooled image feature and label embedding, each projected to 512, joined, and scored by 512-ReLU-1.

    The VLM of team G (`Glourier/MICCAI2024-ZeroShotCXR`), which asks one finding of an image at a time; ours scores all
    findings at once, so the first layer of the joined 1,024 features is computed as the image's part plus the text's.
    """

    needs_map = False
    WIDTH = 512

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec, embeddings)
        self.pool = POOLS["avg" if spec.pool == OWN_POOL else spec.pool]()
        self.embed, self.ask = nn.Linear(features, self.WIDTH), nn.Linear(self.embeddings.shape[1], self.WIDTH)
        self.join, self.read = nn.Linear(2 * self.WIDTH, self.WIDTH), nn.Linear(self.WIDTH, 1)
        self.drop = nn.Dropout(spec.drop_rate)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        of_image, of_text = self.join.weight.split(self.WIDTH, dim=1)
        image = self.embed(self.pool(tokens)) @ of_image.T
        text = self.ask(self.texts) @ of_text.T + self.join.bias
        joined = relu(image.unsqueeze(1) + text.unsqueeze(0))  # [B, C, 512]
        return self.read(self.drop(joined)).squeeze(2)


@register_head("film")
class FiLM(TextHead):
    """Feature-wise linear modulation by the text (Perez et al. 2018), local attention, and a network: team I's head.

    With x' = gamma(c) x + beta(c) of the global feature g, the mean token, and the local features l_i, all projected to
    256:  a_i = sigmoid(W2 ReLU(W1 [g'; l_i'])),  v = sum_i a_i l_i' / sum_i a_i,  logit = MLP 256-128 of [c; g'; v; s].
    I (`PabloMessina/MedVQA`) takes all a_i for s, which ties the weights to one grid. Ours takes a's distribution: its
    values sorted and averaged in SUMMARY equal parts, from the smallest to the largest. That exists at any grid and for
    a study's joined views, but no longer says where: positions must reach the logit through v.
    The hidden layer of W1 takes 512 bytes a finding and token of an image in training.
    """

    gives_maps = True
    WIDTH, HIDDEN, SUMMARY = 256, 128, 8
    FINDINGS = 8  # whose hidden layer is in memory at a time, outside of training

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec, embeddings)
        text = self.embeddings.shape[1]
        self.to_global, self.to_local = nn.Linear(features, self.WIDTH), nn.Linear(features, self.WIDTH)
        self.gamma, self.beta = nn.Linear(text, self.WIDTH), nn.Linear(text, self.WIDTH)
        self.look, self.weigh = nn.Linear(2 * self.WIDTH, self.HIDDEN), nn.Linear(self.HIDDEN, 1)
        self.wide = nn.Linear(text + 2 * self.WIDTH + self.SUMMARY, 256)
        self.narrow, self.read = nn.Linear(256, 128), nn.Linear(128, 1)
        self.drop = nn.Dropout(spec.drop_rate)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        return self.with_maps(tokens)[0]

    def with_maps(self, tokens: torch.Tensor, phrases: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, C], and the attention a [B, C, N] in 0..1 that each finding pays to each token.

        phrases: embeddings [K, E] of more texts that are asked for, after the findings: then of C + K texts.
        """
        texts = self.texts if phrases is None else torch.cat([self.texts, of_length(phrases)])
        gamma, beta = self.gamma(texts), self.beta(texts)  # [C, W]
        whole, local = self.to_global(tokens.mean(dim=1)), self.to_local(tokens)  # [B, W], [B, N, W]
        whole = gamma * whole.unsqueeze(1) + beta  # [B, C, W]
        parts = zip(gamma.split(self.FINDINGS), beta.split(self.FINDINGS), whole.split(self.FINDINGS, 1), strict=True)
        maps = torch.cat([self._attention(*part, local) for part in parts], dim=1)
        share = maps / maps.sum(dim=2, keepdim=True).clamp(min=1e-6)
        seen = gamma * (share.to(local.dtype) @ local) + beta  # sum_i share_i (gamma l_i + beta): the shares sum to 1
        summary = adaptive_avg_pool1d(maps.sort(dim=2).values, self.SUMMARY)
        asked = texts.expand(len(tokens), -1, -1)
        joined = torch.cat([part.to(seen.dtype) for part in (asked, whole, seen, summary)], dim=2)
        return self.read(self.drop(relu(self.narrow(relu(self.wide(joined)))))).squeeze(2), maps

    def _attention(
        self, gamma: torch.Tensor, beta: torch.Tensor, whole: torch.Tensor, local: torch.Tensor
    ) -> torch.Tensor:
        """Attention [B, c, N] of c findings. gamma, beta: [c, W]. whole: [B, c, W], modulated. local: [B, N, W], plain.

        The modulation of local features is taken into W1, whose part for them is then [c, H, W]: no [B, c, N, W].
        """
        of_global, of_local = self.look.weight.split(self.WIDTH, dim=1)  # [H, W]
        per_finding = (gamma.unsqueeze(1) * of_local).flatten(0, 1)  # [c H, W]
        constant = whole @ of_global.T + beta @ of_local.T + self.look.bias  # [B, c, H]
        hidden = (local @ per_finding.T).unflatten(2, (len(gamma), -1)) + constant.unsqueeze(1)  # [B, N, c, H]
        return self.weigh(relu(hidden)).squeeze(3).transpose(1, 2).float().sigmoid()


@register_head("bilinear")
class Bilinear(TextHead):
    """x^T W t + u . t + v of the mean token x and the direction t of the label embedding: a linear classifier whose
    weights are made of the text (ALE, Akata et al. 2016, eq. 3, with a bias).

    For up to E findings it fits what head `linear` can, and learns it as fast: where hidden layers join image and text
    (pair, film), a few epochs of a small cohort are not enough (docs/zeroshot.md).
    """

    needs_map = False
    BIAS = -2.0  # the probability .12: most findings are absent

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec, embeddings)
        self.pool = POOLS["avg" if spec.pool == OWN_POOL else spec.pool]()
        text = self.embeddings.shape[1]
        self.weigh, self.bias = nn.Linear(features, text, bias=False), nn.Linear(text, 1)
        nn.init.zeros_(self.bias.weight)
        nn.init.constant_(self.bias.bias, self.BIAS)
        self.drop = nn.Dropout(spec.drop_rate)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        texts = normalize(self.embeddings, dim=1)
        return self.weigh(self.drop(self.pool(tokens))) @ texts.T + self.bias(texts).T


@register_head("similarity")
class Similarity(TextHead):
    """The cosine of image and text, as CLIP is asked without labels (Radford et al. 2021), and as team C asked MaMA.

    logit = scale (cos(embed(x), ask(c)) - threshold(c)) of the mean token x and label embedding c, both projected to
    WIDTH. A stage of `clip`, `siglip` or `mama` before it trains both projections and the scale on images and their
    texts (objectives/pretraining.py); without one they begin at random. The threshold depends on the text alone: it
    moves a finding's probability, and never the order of images.
    """

    needs_map = False
    WIDTH, SCALE, THRESHOLD = 512, 10.0, 0.3

    def __init__(self, features: int, findings: int, spec: ModelSpec, embeddings: torch.Tensor | None = None) -> None:
        super().__init__(features, findings, spec, embeddings)
        self.pool = POOLS["avg" if spec.pool == OWN_POOL else spec.pool]()
        text = self.embeddings.shape[1]
        self.embed, self.ask = nn.Linear(features, self.WIDTH), nn.Linear(text, self.WIDTH)
        self.log_scale, self.threshold = nn.Parameter(torch.tensor(math.log(self.SCALE))), nn.Linear(text, 1)
        nn.init.zeros_(self.threshold.weight)
        nn.init.constant_(self.threshold.bias, self.THRESHOLD)
        self.drop = nn.Dropout(spec.drop_rate)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        image, text = self.embed(self.drop(self.pool(tokens))), self.ask(self.texts)
        with in_full_precision(image.device):
            cosines = normalize(image.float(), dim=1) @ normalize(text.float(), dim=1).T
            return self.log_scale.exp() * (cosines - self.threshold(self.texts).T)

    @torch.no_grad()
    def take(self, embed: nn.Linear, ask: nn.Linear, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        """The projections of image and text, the scale, and the bias of logits where there is one, of a contrast."""
        self.embed.load_state_dict(embed.state_dict())
        self.ask.load_state_dict(ask.state_dict())
        self.log_scale.copy_(scale.log())
        if bias is not None:
            self.threshold.bias.fill_(-float(bias / scale))
