"""The optimizer of a stage: AdamW, rates by layer, a schedule by step, and averages of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.resume import ResumeState

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR
    from torch.optim.swa_utils import AveragedModel

NORM_BATCHES = 50  # from which batch norm's statistics of averaged weights are taken anew
Inputs = tuple["torch.Tensor", ...]  # images, and where views are fused each one's study and view


def optimizer_of(
    network: torch.nn.Module, config: TrialConfig, steps: int, backbone: torch.nn.Module | None = None
) -> tuple[Optimizer, LambdaLR]:
    """AdamW over what is trained of `network`, and its schedule over `steps` steps.

    backbone: whose layers have rates of their own, if the network is no classifier with a backbone. Raises UsageError
    for a backbone that does not name its layers, where their rates are to differ.
    """
    import torch

    groups: list[dict[str, Any]] = []
    others = list(network.named_parameters())
    if config.layer_decay < 1 and not config.frozen_backbone:
        with_layers = network.get_submodule("backbone") if backbone is None else backbone
        groups = _layers(with_layers, config)
        layered = {id(p) for p in with_layers.parameters()}
        others = [(name, p) for name, p in others if id(p) not in layered]
    groups += _groups(others, config)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(config, steps))


def _schedule(config: TrialConfig, steps: int) -> Callable[[int], float]:
    """The share of the rate that a step has: it rises by line, then falls by a cosine over all steps, or stays and
    falls by line at the end (stable: warm-up, stable, decay; Hu et al. 2024, MiniCPM).
    """
    warmup = max(1, round(config.warmup_fraction * steps))
    flat = max(warmup, round(config.swa_start * steps))  # averaging wants a rate that moves the weights
    decay = config.decay_fraction * steps if config.schedule == "stable" else steps - warmup

    def factor(step: int) -> float:
        step = min(step, flat)
        if step < warmup:
            return (step + 1) / warmup
        left = min(1.0, (steps - step) / max(1.0, decay))
        return left if config.schedule == "stable" else 0.5 * (1 - math.cos(math.pi * max(0.0, left)))

    return factor


def _decay(first: float, last: float, share: float) -> float:
    """Weight decay after this share of the steps: by a cosine from the first to the last (DINO, section 3.2)."""
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def _groups(named: Iterable[tuple[str, torch.nn.Parameter]], config: TrialConfig) -> Iterator[dict[str, Any]]:
    """Parameters with weight decay, and norms and biases without."""
    trained = [p for _, p in named if p.requires_grad]
    for decays, rate in ((True, config.weight_decay), (False, 0.0)):
        if chosen := [p for p in trained if (p.ndim > 1) == decays]:
            yield {"params": chosen, "weight_decay": rate}


def _layers(backbone: torch.nn.Module, config: TrialConfig) -> list[dict[str, Any]]:
    """The backbone's parameters by layer: a layer's rate is layer_decay times the next one's (Bao et al. 2021)."""
    from timm.optim import param_groups_layer_decay

    if not hasattr(backbone, "group_matcher"):
        raise UsageError(f"backbone '{config.backbone}' does not name its layers: give it `layer_decay: 1`.")
    groups = param_groups_layer_decay(backbone, config.weight_decay, layer_decay=config.layer_decay)
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": config.lr * group["lr_scale"]}
        for group in groups
    ]


def take_step(
    network: torch.nn.Module,
    optimizer: Optimizer,
    schedule: LambdaLR,
    config: TrialConfig,
    average: Average,
    trained: Sequence[torch.nn.Parameter] | None = None,
    steps: int = 1,
) -> None:
    """Clip, step, and let the average follow. trained: the network's trained parameters, if the caller has them.

    To look for them takes longer than a step of a head. steps: of the stage, over which weight decay may change.
    """
    import torch

    if config.weight_decay_end is not None:
        decay = _decay(config.weight_decay, config.weight_decay_end, schedule.last_epoch / steps)
        for group in optimizer.param_groups:
            group["weight_decay"] = decay if group["weight_decay"] else 0.0
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(network.parameters() if trained is None else trained, config.clip_norm)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    average.step(network, schedule.last_epoch)


class Average:
    """The weights to be judged: as they are, their moving average by step (EMA), or their mean over epochs (SWA).

    SWA: Izmailov et al. 2018; its batch norm's statistics are taken anew from training images.
    """

    def __init__(self, network: torch.nn.Module, config: TrialConfig) -> None:
        self.ema: Any = None
        self.swa: AveragedModel | None = None
        self.renormed: torch.nn.Module | None = None  # what SWA had judged last
        self.first = math.floor(config.swa_start * config.epochs)
        if config.ema_decay:
            from timm.utils import ModelEmaV3

            # warm-up of the decay: short runs would otherwise keep their random start
            self.ema = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True, warmup_power=0.75)

    def step(self, network: torch.nn.Module, number: int) -> None:
        """An optimizer's step is done."""
        if self.ema is not None:
            self.ema.update(network, step=number)  # the step's number: without it there is no warm-up

    def judged(
        self, network: torch.nn.Module, epoch: int, inputs: Iterator[Inputs], amp: Callable[[], Any]
    ) -> torch.nn.Module:
        """The network to be judged after `epoch`. inputs: of training, for batch norm."""
        if self.ema is not None:
            return self.ema.module
        if epoch < self.first:
            return network
        from torch.optim.swa_utils import AveragedModel

        if self.swa is None:
            self.swa = AveragedModel(network)
        self.swa.update_parameters(network)
        self.renormed = copy.deepcopy(self.swa.module)
        _renormalise(self.renormed, inputs, amp)
        return self.renormed

    def parts(self) -> dict[str, torch.nn.Module]:
        """The modules whose tensors make the average, by name."""
        modules = {"ema": self.ema and self.ema.module, "swa": self.swa, "renormed": self.renormed}
        return {name: module for name, module in modules.items() if module is not None}

    def restore(self, network: torch.nn.Module, state: ResumeState) -> torch.nn.Module:
        """Be as `parts` were when they were kept; the network that was judged then. network: with its own weights."""
        if self.ema is None and state.of("swa"):
            from torch.optim.swa_utils import AveragedModel

            self.swa, self.renormed = AveragedModel(network), copy.deepcopy(network)
        for name, module in self.parts().items():
            module.load_state_dict(state.of(name))
        if self.ema is not None:
            return self.ema.module
        return network if self.renormed is None else self.renormed


def state_of(
    network: torch.nn.Module, optimizer: Optimizer, schedule: LambdaLR, average: Average
) -> dict[str, torch.Tensor]:
    """All tensors with which training can go on, as resume.ResumeState names them; not copied."""
    import torch

    modules = {"model": network, **average.parts()}
    tensors = {f"{part}/{k}": t for part, module in modules.items() for k, t in module.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in moments.items()}
    return tensors | {"schedule/step": torch.tensor(schedule.last_epoch)}


def restore(
    state: ResumeState, network: torch.nn.Module, optimizer: Optimizer, schedule: LambdaLR, average: Average
) -> torch.nn.Module:
    """Put back what `state_of` gave; the network that was judged then."""
    network.load_state_dict(state.of("model"))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in state.of("optimizer").items():
        number, name = int(key.split("/")[0]), key.split("/")[1]
        # laid out as its parameter (channels last): the fused step takes their layouts for equal without checking
        moment = trained[number].detach().clone().copy_(tensor) if tensor.shape == trained[number].shape else tensor
        moments.setdefault(number, {})[name] = moment
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    schedule.last_epoch = int(state.tensors["schedule/step"])
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)
    return average.restore(network, state)


def _renormalise(network: torch.nn.Module, inputs: Iterator[Inputs], amp: Callable[[], Any]) -> None:
    """Take batch norm's statistics from NORM_BATCHES batches; a frozen layer's stay as they are."""
    import torch

    layers = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in layers if layer.weight is None or layer.weight.requires_grad]
    if not norms:
        return
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of batches
    network.train()
    for layer in set(layers) - set(norms):
        layer.eval()
    with torch.no_grad(), amp():
        for _, batch in zip(range(NORM_BATCHES), inputs, strict=False):
            network(*batch)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
