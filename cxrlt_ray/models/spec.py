"""What makes a classifier, as a search space's point and a saved model name it."""

from __future__ import annotations

from dataclasses import dataclass

NO_FUSION = "none"
OWN_POOL = "own"


@dataclass(frozen=True)
class ModelSpec:
    """What makes a classifier.

    backbone: a name that backbones.py knows. resolution: the edge of its square images, in pixels. pretrained: start
    from weights, those of `checkpoint` (a path or URI) or the backbone's own. in_chans: 1 or 3, the backbone's input
    channels. drop_rate, drop_path: probabilities in 0..1. pool: own (the backbone's; avg where a fusion or head needs
    the feature map), avg, max or gem, for heads that do not pool themselves.

    A head that reads label embeddings has them from a file, `queries`, or from the text encoder `text` (a name or
    folder, text/encoders.py), given texts of each finding in the style `prompts` (text/prompts.py). query_*: of the
    head query_decoder (models/text_heads.py).
    """

    backbone: str
    resolution: int
    pretrained: bool = True
    checkpoint: str | None = None
    head: str = "linear"
    in_chans: int = 3
    drop_rate: float = 0.0
    drop_path: float = 0.0
    pool: str = OWN_POOL
    fusion: str = NO_FUSION
    queries: str | None = None
    text: str | None = None
    prompts: str = "name"
    query_layers: int = 4
    query_width: int = 768
    query_self_attention: bool = False
    query_pooled: float = 0.0
    query_outputs: int = 1

    @property
    def label_texts(self) -> tuple[str | None, str | None, str | None]:
        """Where label embeddings come from: two models with the same have the same of a finding."""
        return (self.queries, self.text, self.prompts if self.text else None)


@dataclass(frozen=True)
class TrainedPart:
    """What of a backbone is trained.

    frozen: nothing. layers: all but so many first ones (`first_layers`). rank: where above 0, adapters of this rank
    and `alpha` alone, in the layers named `targets`.
    """

    frozen: bool = False
    layers: int = 0
    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
