"""What makes a trial, besides the data it is given: one flat record, and the stages that change parts of it.

To add a search dimension: a field here, read where it acts. A stage is a mapping of fields that differ while it
lasts, `epochs` among them; what it does not name is as it was in the stage before.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from cxrlt_ray.config import Config
from cxrlt_ray.data.image_transform import edge_of
from cxrlt_ray.data.manifest import MAIN
from cxrlt_ray.objectives import registry
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.objectives.registry import Objective, ObjectiveSpec

if TYPE_CHECKING:
    from cxrlt_ray.models.spec import ModelSpec, TrainedPart

Scalar = bool | int | float | str | None
OUTSIDE, ALL = "outside", "all"  # of `cohorts`, beside MAIN; else names joined by +
LOOKS = ("flip", "crops", "zooms")  # of `tta`, joined by +
# what the checkpoint of the stage before cannot follow, or what is the trial's as a whole
WHOLE = {"backbone", "in_chans", "pretrained", "checkpoint", "init_from", "refit", "tta", "seed", "stages", "system"}


class TrialConfig(Config):
    """Everything that makes a trial, besides the data it is given."""

    backbone: str
    resolution: Annotated[int, Field(ge=16, le=4096)]
    epochs: Annotated[int, Field(ge=1)]
    system: str = ""  # a name that other parameters' `when` may look at
    # weights to begin with
    pretrained: bool = True
    checkpoint: str | None = None
    init_from: str | None = None  # RUN/TRIAL, or RUN: its best trial of this backbone
    # the model
    head: str = "linear"
    pool: str = "own"
    fusion: str = "none"
    queries: str | None = None  # a file of label embeddings
    text: str | None = None  # or the encoder that makes them: minilm, another known name, a folder, a hub's OWNER/NAME
    prompts: str = "name"  # of texts of this style
    query_layers: Annotated[int, Field(ge=1, le=8)] = 4  # of head query_decoder, as all query_*
    query_width: Annotated[int, Field(ge=32, le=2048, multiple_of=32)] = 768  # at most; the features' where fewer
    query_self_attention: bool = False
    query_pooled: Annotated[float, Field(ge=0, le=4)] = 0.0
    query_outputs: Annotated[int, Field(ge=1, le=2)] = 1
    in_chans: Literal[1, 3] = 3
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    frozen_backbone: bool = False
    frozen_layers: Annotated[int, Field(ge=0)] = 0  # of the backbone, from the stem on, that stay as they were
    image_lora: Annotated[int, Field(ge=0)] = 0  # rank of adapters in the backbone, which alone train; 0: all of it
    image_lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    image_lora_targets: str = "qkv"  # names of layers, joined by +; timm's vision transformers have qkv
    # of a frozen backbone: augmented copies of an image, one an epoch in turn; 0: the image as it is; None: it is
    # augmented anew in every epoch, and its features are not stored
    feature_copies: Annotated[int, Field(ge=0, le=64)] | None = 0
    fresh_head: bool = False  # a stage begins with a new head
    # what a stage is trained for
    objective: str = "multilabel"
    objective_settings: dict[str, float] = Field(default={})
    # the texts that an objective reads, by the encoder `text`
    text_draw: Literal["report", "section", "sentence", "statement"] = "report"  # of a study's report, each epoch
    text_reworded: Annotated[float, Field(ge=0, le=1)] = 0.5  # how often of its second wording (--reworded) instead
    text_pooling: Literal["auto", "cls", "mean", "last", "projected"] = "auto"
    text_tuning: Literal["frozen", "tuned", "lora"] = "frozen"
    lora_rank: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    lora_targets: str | None = None  # names of layers, joined by +; those usual for the architecture without
    max_tokens: Annotated[int, Field(ge=3)] = 256  # after which a text is cut
    # the loss
    loss: str = "bce"
    loss_settings: dict[str, float] = Field(default={})
    class_weight_exponent: Annotated[float, Field(ge=0, le=1)] = 0.5
    smooth_pos: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # label smoothing: of ones, of zeros
    smooth_neg: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    logit_adjust: Annotated[float, Field(ge=0, le=2)] = 0.0  # tau of the shift after training; 0: none
    learns: Literal["all", "head", "tail"] = "all"  # tail: findings of less than 1 % of images alone; head: the others
    # the optimiser
    lr: Annotated[float, Field(gt=0)] = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of lr, from each layer of the backbone to the one before
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    weight_decay_end: Annotated[float, Field(gt=0)] | None = None  # by a cosine over a stage's steps; None: it stays
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    schedule: Literal["cosine", "stable"] = "cosine"  # stable: lr stays until it decays at the end
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2  # of a stable schedule's steps
    steps: Annotated[int, Field(ge=0)] = 0  # of the optimizer, after which a stage ends; 0: those of its epochs
    frozen_steps: Annotated[int, Field(ge=0)] = 0  # of a stage, in which its backbone stays as it was: heads warm up
    patience: Annotated[int, Field(ge=0)] = 0  # epochs without a better one after which a stage ends; 0: none
    patience_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0  # by what share an epoch must be better
    batch_size: Annotated[int, Field(ge=1)] = 32  # images; studies where views are fused
    accumulation: Annotated[int, Field(ge=1)] = 1
    clip_norm: Annotated[float, Field(ge=0)] = 1.0  # 0: no clipping
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no average
    swa_start: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the epochs after which weights are averaged
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on a GPU, where it saves more than it costs
    # the images
    cohorts: str = MAIN  # that train: main, outside, all, or names joined by +
    sampler: Literal["natural", "sqrt", "class_aware", "repeat_factor"] = "natural"
    mix: Literal["none", "mixup", "cutmix", "balanced_mixup"] = "none"
    mix_alpha: Annotated[float, Field(gt=0)] = 0.4
    augment: Annotated[float, Field(ge=0, le=1)] = 0.3
    tail_augment: Annotated[float, Field(ge=0, le=1)] = 0.0  # of images with a tail finding, where more than augment
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    crop: Annotated[float, Field(ge=0.25, le=1)] = 1.0  # of the edge: random in training, central after it
    # the end
    tta: str = "none"  # test-time augmentation that is tried on validation: flip, crops, zooms, joined by +
    refit: bool = False  # train on train and validation images at last, and score the test images with that
    stages: tuple[dict[str, Scalar], ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> TrialConfig:
        if self.ema_decay and self.swa_start < 1:
            raise ValueError("ema_decay and swa_start < 1 average weights twice: give one of them")
        if self.weight_decay_end is not None and not self.weight_decay:
            raise ValueError("weight_decay_end needs a weight_decay above 0 to begin with")
        if self.fusion != "none" and self.mix != "none":
            raise ValueError(f"mix: {self.mix} mixes images, which a study's views cannot be (fusion: {self.fusion})")
        if self.tta != "none" and (strange := set(self.tta.split("+")) - set(LOOKS)):
            raise ValueError(f"tta: '{sorted(strange)[0]}' is none of {', '.join(LOOKS)}, joined by +, or none")
        if self.image_lora and self.frozen_backbone:
            raise ValueError("image_lora trains adapters of the backbone, which frozen_backbone forbids: give one")
        if self.frozen_layers and (self.frozen_backbone or self.image_lora):
            other = "frozen_backbone" if self.frozen_backbone else "image_lora"
            raise ValueError(f"frozen_layers are of a backbone whose other layers are trained: leave out {other}")
        if self.objective not in (known := registry.all_objectives()):
            raise ValueError(f"there is no objective '{self.objective}'; there are {', '.join(known)}")
        if fault := registry.fault_of(self.objective, self.objective_settings):
            raise ValueError(fault)
        if fault := self._objective_fault(known[self.objective]):
            raise ValueError(f"objective: {self.objective} {fault}")
        for k, stage in enumerate(self.stages):
            if "epochs" not in stage:
                raise ValueError(f"stages.{k} has no `epochs`")
        self.staged()
        return self

    def _objective_fault(self, objective: type[Objective]) -> str:
        """What of the configuration does not fit the objective, or nothing."""
        needs, set_ = objective.needs, self.fusion != "none" or self.mix != "none"
        if needs.anew and set_:
            company = "a study's text" if needs.texts else "another image of a study" if needs.pairs else ""
            what = f"{company} beside an image" if company else "several crops of an image"
            return f"takes {what}: leave fusion and mix at none"
        if needs.texts and self.text is None and not self.stages:
            return "reads texts: give it a text encoder, such as `text: minilm`"
        if needs.texts and (fault := self._comparing_fault()):
            return fault
        if needs.texts and self.compile == "on":
            return "reads texts of every length, for each of which a network is compiled anew: leave compile at auto"
        if needs.eager and set_ and not needs.single:
            return "masks patches of one image: leave fusion and mix at none"
        if needs.eager and self.compile == "on":
            drawn = "sentences" if needs.rows else "crops or masks"
            return f"draws its {drawn} at random, for each of which a network is compiled: leave compile at auto"
        if needs.map and self.pool == "own" and not self._keeps_map():
            return "compares patches: take `pool: avg`, which keeps the backbone's feature map"
        if self.learns != "all" and objective.predicts and not objective.learns_part and not self.stages:
            return f"learns all findings of a task: leave learns at all, not {self.learns}"
        if not self.stages and (fault := self._reading_fault(needs)):
            return fault
        if self.text_tuning != "lora" and self.lora_targets:
            return f"has text_tuning: {self.text_tuning}, which has no use for lora_targets: take `text_tuning: lora`"
        return ""

    def _keeps_map(self) -> bool:
        """Whether the head needs the backbone's feature map, so that `pool: own` keeps it."""
        from cxrlt_ray.models.heads import HEADS

        return self.head not in HEADS or HEADS[self.head].needs_map

    def _comparing_fault(self) -> str:
        """What does not fit a head that takes over the space of a contrast, or nothing."""
        if self.head != "similarity":
            return ""
        what = "gives head similarity its space, in which findings are known by the encoder as it is"
        if self.pool not in ("own", "avg"):
            return f"{what}, and images by their mean: take `pool: avg`, not {self.pool}"
        for name in ("text_tuning", "text_pooling"):
            if (value := getattr(self, name)) != (default := type(self).model_fields[name].default):
                return f"{what}: leave {name} at {default}, not {value}"
        return f"{what}: give `text` and `prompts`, not queries" if self.queries else ""

    def _reading_fault(self, needs: registry.Needs) -> str:
        """What does not fit an objective that looks into a head which reads texts, or nothing."""
        if needs.heads and self.head not in needs.heads:
            return f"looks into head {' or '.join(needs.heads)}, not {self.head}: take `head: {needs.heads[0]}`"
        if needs.single and (self.fusion != "none" or self.mix != "none"):
            what = "asks an image for sentences of reports" if needs.rows else "looks at where a finding is in an image"
            return f"{what}: leave fusion and mix at none"
        what = "texts of places" if needs.places else "sentences of reports"
        if (needs.places or needs.rows) and self.text is None:
            return f"reads {what}: give it a text encoder, such as `text: minilm`"
        if (needs.places or needs.rows) and self.text_tuning != "frozen":
            return f"reads {what} by a frozen encoder: leave text_tuning at frozen"
        if needs.rows and self.queries:
            return "compares findings with sentences by one text encoder: give `text` and `prompts`, not queries"
        if needs.own_loss and (self.loss != "bce" or self.smooth_pos or self.smooth_neg):
            return "has a loss of its own, of labels as they are: leave loss at bce, smooth_pos and smooth_neg at 0"
        return ""

    def beginning_fault(self) -> str:
        """What is wrong with the weights that the first stage begins with, or nothing."""
        first = self.staged()[0]
        if first.fusion == "none" or not first.frozen_backbone or self.pretrained or self.checkpoint:
            return ""
        return (
            f"fusion: {first.fusion} on a frozen backbone that nothing has trained: put a stage that trains it first, "
            "or give its weights by init_from or checkpoint"
        )

    def staged(self) -> list[TrialConfig]:
        """The trial's stages, each as a trial of its own; one without `stages`."""
        if not self.stages:
            return [self]
        now = {**self.model_dump(exclude={"stages"}), "fresh_head": False}
        stages = []
        for stage in self.stages:
            fields = {name: value for name, value in stage.items() if name in TrialConfig.model_fields}
            settings = {name: value for name, value in stage.items() if name not in TrialConfig.model_fields}
            own = registry.setting_names() if settings else set()
            if "loss" in fields:
                now["loss_settings"] = losses_settings(str(fields["loss"]))
            if "objective" in fields:
                now["objective_settings"] = registry.settings_of(str(fields["objective"]))
            now = {**now, **fields}
            for kind, names in (("objective_settings", own & set(settings)), ("loss_settings", set(settings) - own)):
                now[kind] = {**now[kind], **{name: value for name, value in settings.items() if name in names}}
            stages.append(TrialConfig.model_validate(now))
            now["fresh_head"] = False
        for before, after in itertools.pairwise(stages):
            before._check_space(after)
        return stages

    def _check_space(self, after: TrialConfig) -> None:
        """Raises ValueError where the stage after this one cannot go on with the space of its contrast."""
        if self.head != "similarity" or after.head != self.head or after.fresh_head:
            return
        for name in ("pool", "text"):
            if (one := getattr(self, name)) != (other := getattr(after, name)):
                raise ValueError(
                    f"head similarity has the space of the stage before: leave {name} at {one}, not {other}"
                )

    @property
    def edge(self) -> int:
        """Of images in pixels before `crop` takes its part: shards of this edge need not be enlarged."""
        return edge_of(self.resolution, self.crop)

    @property
    def total_epochs(self) -> int:
        """Of all stages."""
        return sum(stage.epochs for stage in self.staged())

    def spec(self) -> ModelSpec:
        """The models.ModelSpec of this trial (of its first state, where there are stages)."""
        from cxrlt_ray.models import ModelSpec
        from cxrlt_ray.models.heads import HEADS

        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelSpec)}
        if (head := HEADS.get(self.head)) and not head.needs_embeddings:
            values |= {"text": None, "prompts": ModelSpec.prompts}  # an objective reads texts, of this stage or another
        return ModelSpec(**values)

    def text_fault(self) -> str:
        """What is wrong with a text encoder that no stage reads, or nothing."""
        from cxrlt_ray.models.heads import HEADS

        stages = self.staged()
        reads = any(
            HEADS[stage.head].needs_embeddings or registry.find_objective(stage.objective).needs.texts
            for stage in stages
            if stage.head in HEADS
        )
        if reads or all(stage.text is None for stage in stages):
            return ""
        heads = ", ".join(name for name, head in HEADS.items() if head.needs_embeddings)
        return f"text: {self.text}, which neither head {self.head} nor an objective reads: take one of {heads}"

    def objective_spec(self) -> ObjectiveSpec:
        """What the objective of this stage reads of the configuration."""
        return ObjectiveSpec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ObjectiveSpec)})

    @property
    def trained_part(self) -> TrainedPart:
        """The models.TrainedPart of the backbone."""
        from cxrlt_ray.models import TrainedPart

        targets = tuple(self.image_lora_targets.split("+"))
        return TrainedPart(self.frozen_backbone, self.frozen_layers, self.image_lora, self.image_lora_alpha, targets)

    @property
    def metric(self) -> Metric:
        """What judges the trial: the metric of its last stage's objective."""
        return registry.find_objective(self.staged()[-1].objective).metric

    @property
    def frozen_copies(self) -> int | None:
        """How many augmented copies an image has in a stage with a frozen backbone, 0: it is shown as it is.

        None: the backbone is trained, or an image is augmented or mixed anew each time it is shown.
        """
        needs = registry.find_objective(self.objective).needs
        # a network that looks into the head is given images
        anew = needs.anew or needs.heads or self.mix != "none" or self.tail_augment > self.augment
        if not self.frozen_backbone or anew or self.feature_copies is None:
            return None
        return self.feature_copies if self.augment or self.flip or self.crop < 1 else 0

    def specs(self) -> list[ModelSpec]:
        """The models.ModelSpec of every stage; the first alone takes pretrained weights."""
        first, *others = [stage.spec() for stage in self.staged()]
        return [first, *(dataclasses.replace(spec, pretrained=False, checkpoint=None) for spec in others)]


def losses_settings(loss: str) -> dict[str, float]:
    """The settings of a loss with their defaults; imports torch."""
    from cxrlt_ray.objectives import losses

    return losses.settings(loss)
