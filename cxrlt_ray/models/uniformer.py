"""UniFormer (Li et al. 2022), which timm lacks: local blocks of convolutions, then blocks of self-attention.

    uniformer_small, uniformer_base               21.5 and 49.8 million parameters with a classifier of 1,000
    uniformer_base.cxrmate_rrg24                  base, as trained on chest X-rays in aehrc/cxrmate-rrg24 at 384 px
    uniformer_base_ls                             base with layer scales (uniformer_base_ls_in1k.pth)
    uniformer_small_dim32, uniformer_base_dim32   attention heads of 32: the files uniformer_*_tl_224, *_tl_384
    test_uniformer                                the same layout in small

Each of four stages begins with a convolution as wide as its stride (4, 2, 2, 2) and a layer norm over channels. In the
first two stages a block adds a depth-wise 3x3 convolution, a 1x1, depth-wise 5x5, 1x1 convolution and a network of 1x1
convolutions; in the last two the 3x3 convolution, self-attention over all positions and a network of linear layers. So
attention costs memory and time by the square of (edge / 16)^2 positions: 576 at 384 px.

Tensors have the names of Sense-X/UniFormer, whose files `checkpoint:` reads, under any prefix. Heads of 32 and of 64
have tensors of the same shapes: a file does not tell them apart. Importing this module makes the names known to timm.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

STRIDE = 32
RATIO = 4  # of a block's hidden width to its own
SCALE = 1e-6  # that layer scales begin with
CXRMATE = "encoder.uniformer."  # where aehrc/cxrmate-rrg24 keeps it
SENSE_X = "Sense-X/uniformer_image"


class Embedding(nn.Module):
    """A convolution as wide as its stride, and a layer norm over the channels of each position."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Conv2d(channels, width, stride, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Network(nn.Module):
    """Two layers with a GELU between them: 1x1 convolutions of a map, or linear layers of tokens."""

    def __init__(self, width: int, linear: bool) -> None:
        super().__init__()
        hidden = RATIO * width
        self.fc1 = nn.Linear(width, hidden) if linear else nn.Conv2d(width, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width) if linear else nn.Conv2d(hidden, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape that it is given."""
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention of tokens [B, N, width], in heads of `head` numbers."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, width]."""
        q, k, v = self.qkv(x).unflatten(2, (3, -1, self.head)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LocalBlock(nn.Module):
    """A block of the first two stages, of maps [B, width, H, W]: `attn` is a depth-wise 5x5 convolution."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = Network(width, linear=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape that it is given."""
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class GlobalBlock(nn.Module):
    """A block of the last two stages, of maps [B, width, H, W]: attention over all positions."""

    def __init__(self, width: int, head: int, drop_path: float, scaled: bool) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, head), Network(width, linear=True)
        self.drop_path, self.scaled = DropPath(drop_path), scaled
        if scaled:
            self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((width,), SCALE)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape that it is given."""
        x = x + self.pos_embed(x)
        shape, x = x.shape, x.flatten(2).transpose(1, 2)
        added = self.attn(self.norm1(x))
        x = x + self.drop_path(self.gamma_1 * added if self.scaled else added)
        added = self.mlp(self.norm2(x))
        x = x + self.drop_path(self.gamma_2 * added if self.scaled else added)
        return x.transpose(1, 2).reshape(shape)


class UniFormer(nn.Module):
    """The image model, with the interface of a timm backbone.

    depths, widths: of the four stages. head: numbers of an attention head. img_size: the edge of images, which is only
    checked. Raises ValueError for one that is no multiple of 32.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        widths: tuple[int, int, int, int],
        head: int = 64,
        scaled: bool = False,
        img_size: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if img_size is not None and img_size % STRIDE:
            raise ValueError(f"its positions stand {STRIDE} px apart")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = widths[3]
        channels = (in_chans, *widths[:3])
        embeddings = [Embedding(*sizes, 2 if k else 4) for k, sizes in enumerate(zip(channels, widths, strict=True))]
        self.patch_embed1, self.patch_embed2, self.patch_embed3, self.patch_embed4 = embeddings
        rates = iter(drop_path_rate * k / max(sum(depths) - 1, 1) for k in range(sum(depths)))
        self.blocks1, self.blocks2 = (
            nn.ModuleList(LocalBlock(width, next(rates)) for _ in range(depth))
            for depth, width in zip(depths[:2], widths[:2], strict=True)
        )
        self.blocks3, self.blocks4 = (
            nn.ModuleList(GlobalBlock(width, head, next(rates), scaled) for _ in range(depth))
            for depth, width in zip(depths[2:], widths[2:], strict=True)
        )
        self.norm = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], num_classes) if num_classes else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The feature map [B, widths[3], H / 32, W / 32] of normalised pixels [B, in_chans, H, W]."""
        x = pixels
        for stage in "1234":
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"blocks{stage}"):
                x = block(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The mean over positions, and the classifier's outputs of it; the map once unpooled."""
        x = x.mean(dim=(2, 3)) if self.global_pool else x
        return x if pre_logits else self.head(x)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits, or pooled features without a classifier."""
        return self.forward_head(self.forward_features(pixels))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; global_pool "" leaves the feature map as it is."""
        self.num_classes, self.global_pool = num_classes, self.global_pool if global_pool is None else global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers by name, for learning rates that differ by layer, in timm's form; an embedding before its stage."""
        stages = [(r"^blocks(\d)" if coarse else r"^blocks(\d)\.(\d+)", None), (r"^patch_embed(\d)", (-1,))]
        return {"stem": r"^patch_embed1", "blocks": [*stages, (r"^norm\.", (99_999,))]}


def checkpoint_filter_fn(state: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a published file under the model's names: of CXRMate's file those of its image encoder."""
    tensors = state.get("model", state)
    inner = {name.removeprefix(CXRMATE): tensor for name, tensor in tensors.items() if name.startswith(CXRMATE)}
    return inner or dict(tensors)


def _config(edge: int = 224, **source: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, edge, edge),
        "pool_size": (edge // STRIDE, edge // STRIDE),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed1.proj",
        "classifier": "head",
        **source,
    }


default_cfgs = generate_default_cfgs(
    {
        "uniformer_small.in1k": _config(hf_hub_id=SENSE_X, hf_hub_filename="uniformer_small_in1k.pth", license="mit"),
        "uniformer_base.in1k": _config(hf_hub_id=SENSE_X, hf_hub_filename="uniformer_base_in1k.pth", license="mit"),
        "uniformer_base.cxrmate_rrg24": _config(
            384, hf_hub_id="aehrc/cxrmate-rrg24", num_classes=0, license="apache-2.0"
        ),
        "uniformer_base_ls": _config(),
        "uniformer_small_dim32": _config(384),
        "uniformer_base_dim32": _config(384),
        "test_uniformer": _config(64),
    }
)
SMALL = {"depths": (3, 4, 8, 3), "widths": (64, 128, 320, 512)}
BASE = {"depths": (5, 8, 20, 7), "widths": (64, 128, 320, 512)}


def _create(name: str, pretrained: bool, layout: dict[str, Any], options: dict[str, Any]) -> Any:
    return build_model_with_cfg(
        UniFormer, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **{**layout, **options}
    )


@register_model
def uniformer_small(pretrained: bool = False, **options: Any) -> Any:
    """UniFormer-S: 18 blocks."""
    return _create("uniformer_small", pretrained, SMALL, options)


@register_model
def uniformer_base(pretrained: bool = False, **options: Any) -> Any:
    """UniFormer-B: 40 blocks."""
    return _create("uniformer_base", pretrained, BASE, options)


@register_model
def uniformer_base_ls(pretrained: bool = False, **options: Any) -> Any:
    """UniFormer-B with layer scales in the blocks of attention."""
    return _create("uniformer_base_ls", pretrained, {**BASE, "scaled": True}, options)


@register_model
def uniformer_small_dim32(pretrained: bool = False, **options: Any) -> Any:
    """UniFormer-S with attention heads of 32."""
    return _create("uniformer_small_dim32", pretrained, {**SMALL, "head": 32}, options)


@register_model
def uniformer_base_dim32(pretrained: bool = False, **options: Any) -> Any:
    """UniFormer-B with attention heads of 32."""
    return _create("uniformer_base_dim32", pretrained, {**BASE, "head": 32}, options)


@register_model
def test_uniformer(pretrained: bool = False, **options: Any) -> Any:  # noqa: PT028  it is no test
    """The layout of UniFormer-S in small: 5 blocks, 128 wide, one and two attention heads."""
    layout = {"depths": (1, 1, 2, 1), "widths": (16, 32, 64, 128)}
    return _create("test_uniformer", pretrained, layout, options)
