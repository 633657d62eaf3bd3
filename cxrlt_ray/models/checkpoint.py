"""A saved model: a folder with model.safetensors and model.json. Loading it needs nothing else, no hub and no cache."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cxrlt_ray.models.adapters import weights_of
from cxrlt_ray.models.backbones import skip_init
from cxrlt_ray.models.classifier import Classifier
from cxrlt_ray.models.recipe import BackboneRecipe
from cxrlt_ray.models.spec import ModelSpec


def save(model: Classifier, spec: ModelSpec, findings: tuple[str, ...], folder: Path) -> None:
    """Write model.safetensors and model.json to `folder`, which exists."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights_of(model).items()}
    save_file(tensors, folder / "model.safetensors")
    description = {"spec": dataclasses.asdict(spec), "findings": list(findings)}
    if not model.recipe.plain:
        description["recipe"] = dataclasses.asdict(model.recipe)
    (folder / "model.json").write_text(json.dumps(description, indent=1))


def load(folder: Path) -> tuple[Classifier, ModelSpec, tuple[str, ...]]:
    """What `save` wrote: the model in evaluation mode, its spec and its findings."""
    from safetensors.torch import load_file

    description = json.loads((folder / "model.json").read_text())
    spec, state = ModelSpec(**description["spec"]), load_file(folder / "model.safetensors")
    recipe = BackboneRecipe(**description["recipe"]) if "recipe" in description else None
    # dropout and drop path are inactive in evaluation; the weights come from the file
    with skip_init():
        model = Classifier(spec, len(description["findings"]), embeddings=state.get("head.embeddings"), recipe=recipe)
    state.setdefault("shift", model.shift)  # older checkpoints have none
    if "priors" in state:
        model.say_priors(state["priors"])
    model.load_state_dict(state)
    return model.eval(), spec, tuple(description["findings"])
