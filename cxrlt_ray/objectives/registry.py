"""Objectives by name: what a stage of a trial is trained for.

To add one: a module in this folder with a subclass of `Objective` under `@register_objective("name")`. Search spaces,
the training loop, the dry run and the tests that all objectives must pass find it by itself.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.metric import VAL_MAP, Metric

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.data.image_boxes import BoxesOfImages
    from cxrlt_ray.models import Classifier
    from cxrlt_ray.storage import Store
    from cxrlt_ray.text.corpus import Corpus
    from cxrlt_ray.text.descriptions import Description
    from cxrlt_ray.text.encoder_spec import TextSpec

    Targets = Sequence[tuple[float, torch.Tensor]]  # (share, float [B, K]): several where images are mixed
    Inputs = tuple[torch.Tensor, ...]


# what settings of losses and objectives may be: in words, and as a test
ABOVE_ZERO: tuple[str, Callable[[float], bool]] = ("above 0", lambda value: value > 0)
NOT_NEGATIVE: tuple[str, Callable[[float], bool]] = ("0 or more", lambda value: value >= 0)
COUNT: tuple[str, Callable[[float], bool]] = ("a whole number from 1", lambda value: value >= 1 and value == int(value))


@dataclass(frozen=True)
class Setting:
    """A number that an objective takes from the search space: its default, and the values that are allowed."""

    default: float
    allowed: str = "a number"
    fits: Callable[[float], bool] = lambda value: True


@dataclass(frozen=True)
class ObjectiveSpec:
    """What makes an objective, besides the training images: the fields of a trial's configuration that it may read.

    settings: the objective's own, by name; those that are missing have their defaults.
    """

    objective: str = "multilabel"
    objective_settings: Mapping[str, float] = field(default_factory=dict)
    loss: str = "bce"
    loss_settings: Mapping[str, float] = field(default_factory=dict)
    class_weight_exponent: float = 0.5
    smooth_pos: float = 0.0
    smooth_neg: float = 0.0
    logit_adjust: float = 0.0
    learns: str = "all"
    text: str | None = None
    text_pooling: str = "auto"
    text_tuning: str = "frozen"
    lora_rank: int = 8
    lora_alpha: float = 32.0
    lora_targets: str | None = None
    max_tokens: int = 256
    crop: float = 1.0
    seed: int = 0

    def text_spec(self) -> TextSpec:
        """The text encoder. Raises UsageError where none is given."""
        from cxrlt_ray.text.encoder_spec import TextSpec

        if self.text is None:
            raise UsageError(f"objective {self.objective} reads texts: give it a text encoder, such as `text: minilm`.")
        targets = tuple(self.lora_targets.split("+")) if self.lora_targets else ()
        return TextSpec(
            self.text,
            self.text_pooling,
            self.text_tuning,
            self.lora_rank,
            self.lora_alpha,
            lora_targets=targets,
            max_tokens=self.max_tokens,
        )


@dataclass(frozen=True)
class Needs:
    """What a batch of an objective holds.

    labels: targets from the manifest; images without any label still come. soft_targets: stored predictions beside
    them. crops: how many independently augmented copies of each image the network is given, as that many tensors uint8
    [B, H, W]; with more than one, images are neither mixed nor fused by study. pairs: beside each image another one of
    its study, or the same one augmented anew where there is no other. texts: a text of each image's study; images whose
    study has no report do not come. map: the backbone's feature map, before it is pooled. whole: the loss is of all
    images of a batch together, so that a batch is never cut into pieces to fit a device. heads: names of the heads that
    it works with; () for any. single: an image is seen by itself, neither mixed nor fused by study. places: texts of
    places, by the frozen encoder `text`. own_loss: it takes no registered loss, nor smoothed labels. statements, boxes:
    what reports state of an image, and boxes of findings in it, in a run that has any. eager: the network is not
    compiled: it draws at random, and its shapes differ from batch to batch. pseudo_labels: soft targets in the place of
    missing labels, in a run that has any. rows: which training images a batch has, and sentences of reports, by the
    frozen encoder `text`. vectors: of a text one vector is enough, so that a frozen encoder's are computed once and
    stored.

    The network is called with pixels uint8 [B, H, W]; with pairs also the others' pixels, and studies int64 [B]; with
    texts also the two tensors of the objective's `tokenize`, such as ids and mask int64 [B, L], and numbers of texts
    int64 [B], equal for equal texts; with rows also the images' places among the training images, int64 [B].
    """

    labels: bool = True
    soft_targets: bool = False
    crops: int = 1
    pairs: bool = False
    texts: bool = False
    map: bool = False
    whole: bool = False
    heads: tuple[str, ...] = ()
    single: bool = False
    places: bool = False
    own_loss: bool = False
    statements: bool = False
    boxes: bool = False
    eager: bool = False
    pseudo_labels: bool = False
    rows: bool = False
    vectors: bool = False

    @property
    def anew(self) -> bool:
        """Whether a batch holds more than an image and its labels: then images are neither mixed nor fused by study."""
        return self.crops > 1 or self.pairs or self.texts


@dataclass(frozen=True)
class Evidence:
    """What a run has on N training images beside targets, as far as the objective's needs ask for it.

    findings: names of the targets' columns [C]. corpus, report: texts of studies, and the study of each image in them,
    int64 [N], -1 for none. boxes: where findings are in the images. counted: labels int8 [M, C] of the real images by
    which findings are weighed, where some or all of the training images are generated. descriptions: the user's own,
    which come before the package's.
    """

    findings: tuple[str, ...] = ()
    corpus: Corpus | None = None
    report: np.ndarray | None = None
    boxes: BoxesOfImages | None = None
    counted: np.ndarray | None = None
    descriptions: tuple[Description, ...] = ()
    storage: Store | None = None


class Objective(ABC):
    """What a stage is trained for.

    An objective says what batches it needs, builds what it needs beside the classifier (projections, a teacher), gives
    the loss, and either predictions or a score of its own by which epochs, ASHA and Optuna judge. The classifier goes
    on into the next stage, whatever that stage's objective is.

    targets: int8 [N, C] of the training images, 1, 0 or -1 (no label), by the findings that are trained. soft: float32
    [N, C] in [0, 1], nan where there is none; None without soft targets. asks: its validation labels are those of the
    findings that were hidden from the model, for runs that ask for findings by text. learns_part: it can be trained on
    a part of the findings (`learns: head` or `tail`). carries: beginnings of the names, in the network's state dict, of
    what goes on beside the classifier into a next stage of the same objective.
    """

    needs: ClassVar[Needs] = Needs()
    settings: ClassVar[Mapping[str, Setting]] = {}
    metric: ClassVar[Metric] = VAL_MAP
    predicts: ClassVar[bool] = True
    asks: ClassVar[bool] = False
    learns_part: ClassVar[bool] = False
    carries: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        spec: ObjectiveSpec,
        targets: np.ndarray,
        soft: np.ndarray | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self.spec, self.targets, self.soft, self.evidence = spec, targets, soft, evidence or Evidence()
        if fault := fault_of(spec.objective, spec.objective_settings):
            raise UsageError(f"{fault}.")
        if self.needs.soft_targets and soft is None:
            raise UsageError(
                f"objective {spec.objective} learns stored predictions: give them by `sweep --soft-targets PATH`."
            )

    def setting(self, name: str) -> float:
        """The value of one of the objective's own settings."""
        return float(self.spec.objective_settings.get(name, self.settings[name].default))

    def table(self) -> np.ndarray:
        """What the loss learns from: float32 [N, K], a row a training image. Without labels: [N, 0]."""
        return np.empty((len(self.targets), 0), np.float32)

    def unchanged(self) -> np.ndarray | None:
        """Bool [N]: training images that are shown as they are, neither flipped nor augmented, their central crop."""
        return None

    def check(self, model: Classifier) -> None:  # noqa: B027  most objectives train any classifier
        """Raises UsageError for a classifier that the objective cannot train."""

    def network(self, model: Classifier) -> torch.nn.Module:
        """The module that is trained; its parameters are those of `model` and whatever else the objective needs.

        Called with a batch's inputs, it returns what `loss` takes.
        """
        return model

    def classifier(self, network: torch.nn.Module) -> Classifier:
        """The classifier in what `network` returned, or in an average of its weights."""
        return cast("Classifier", network)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64 [B, L], of texts; called after `network`."""
        raise NotImplementedError(f"objective {self.spec.objective} reads no texts")

    def expect(self, texts: Callable[[], Sequence[str]], storage: Store) -> None:  # noqa: B027
        """Called after `network`: all texts that may come. storage: of the shards, beside which vectors are kept."""

    def before_training(self, network: torch.nn.Module, steps: int) -> None:  # noqa: B027
        """Called once before a stage's first step, with how many steps of the optimizer it has: for schedules."""

    def before_step(self, network: torch.nn.Module) -> None:  # noqa: B027
        """Called before each step of the optimizer, with the gradients there: some may be dropped here."""

    def after_step(self, network: torch.nn.Module) -> None:  # noqa: B027  most objectives have nothing to do here
        """Called after each step of the optimizer: a teacher may follow its student here."""

    def statistics(self, network: torch.nn.Module) -> Mapping[str, float]:
        """What shows how training goes beside the loss, by name, as of the last batch; {} where there is nothing."""
        return {}

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The scalar that is minimised. outputs: of the network, float32. targets: rows of `table`, with shares."""

    def score(self, targets: np.ndarray, probabilities: np.ndarray) -> float:
        """The metric of predictions [n, C] in [0, 1] of validation images with labels int8 [n, C]; nan if unknown."""
        raise NotImplementedError(f"objective {self.spec.objective} gives no predictions")

    def score_network(self, network: torch.nn.Module, batches: Iterator[Inputs]) -> float:
        """The metric of an objective that gives no predictions, from validation batches as training has them."""
        raise NotImplementedError(f"objective {self.spec.objective} is judged by its predictions")


# modules that hold no objective and import torch: `trials` reads records without it
WITHOUT = {"losses", "priors", "terms", "towers", "pretraining", "retrieval", "text_networks", "places"}
WITHOUT |= {"stated_phrases", "entity_network", "crops", "draws", "lightly_parts", "dinov2_network", "mae_network"}
_OBJECTIVES: dict[str, type[Objective]] = {}


def register_objective(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Make an objective known by `name` to search spaces, training and the tests that all objectives must pass."""

    def register(objective: type[Objective]) -> type[Objective]:
        _OBJECTIVES[name] = objective
        return objective

    return register


def all_objectives() -> dict[str, type[Objective]]:
    """Every objective by name; imported on demand, for a quick --help."""
    _import_all()
    return dict(sorted(_OBJECTIVES.items()))


@functools.cache
def _import_all() -> None:
    """Import the modules that hold objectives; once: 10,000 records ask for them 30,000 times."""
    package = importlib.import_module(__package__ or "cxrlt_ray.objectives")
    for module in sorted({module.name for module in pkgutil.iter_modules(package.__path__)} - WITHOUT):
        importlib.import_module(f"{package.__name__}.{module}")


def find_objective(name: str) -> type[Objective]:
    """The objective `name`. Raises UsageError for one that is not there."""
    known = all_objectives()
    if name not in known:
        raise UsageError(f"there is no objective '{name}'; there are {', '.join(known)}.")
    return known[name]


def self_supervised() -> dict[str, type[Objective]]:
    """Objectives that learn from images alone, by name: no labels, texts or predictions, and none are given."""
    return {
        name: objective
        for name, objective in all_objectives().items()
        if not (objective.predicts or objective.needs.labels or objective.needs.texts or objective.needs.soft_targets)
    }


def settings_of(name: str) -> dict[str, float]:
    """The settings of objective `name` with their defaults."""
    return {setting: value.default for setting, value in find_objective(name).settings.items()}


def setting_names() -> set[str]:
    """The names of all objectives' settings: a search space may use them as parameters."""
    return {setting for objective in all_objectives().values() for setting in objective.settings}


def fault_of(name: str, settings: Mapping[str, float]) -> str:
    """What is wrong with settings of objective `name`, in a sentence without its full stop, or nothing."""
    known = find_objective(name).settings
    for setting, value in settings.items():
        if setting not in known:
            return f"Objective {name} has no setting '{setting}'; it has {', '.join(known) or 'none'}"
        if not (math.isfinite(value) and known[setting].fits(value)):
            return f"Objective {name}: {setting} is {value:g}, but must be {known[setting].allowed}"
    return ""
