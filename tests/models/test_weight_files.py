"""Weights are found in a file however it was saved, and what is none is named; no code of the file runs."""

from __future__ import annotations

import argparse
import enum
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.models.backbones import find_recipe, make_backbone
from cxrlt_ray.models.weight_files import read_tensors
from cxrlt_ray.models.weights import load_pretrained, prefixes

NAME = "test_resnet"


class Phase(enum.Enum):
    """As a training framework keeps it beside weights."""

    TRAIN = 1


class Settings(dict):
    """A mapping of its own class, as configurations are."""


class Call:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model(NAME, num_classes=0).state_dict()


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(path: Path, content: object, **options) -> str:
    torch.save(content, path / "w.pth", **options)
    return str(path / "w.pth")


def loaded(path: str, name: str = NAME) -> dict[str, torch.Tensor]:
    spec = ModelSpec(name, 64, pretrained=True, checkpoint=path)
    backbone = make_backbone(spec)[0]
    load_pretrained(backbone, spec, find_recipe(name))
    return backbone.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


WRAPPINGS = {
    "compiled": lambda s: under("_orig_mod.", s),
    "parallel": lambda s: under("module.model.", s),
    "net": lambda s: {"state_dict": under("net.", s)},
    "encoder": lambda s: under("encoder.", s),
    "any": lambda s: {"a": {"b.c": under("_orig_mod.module.net.encoder.", s)}},
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s},
    "with optimizer": lambda s: {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "net": s},
    "teacher": lambda s: {"student": under("module.backbone.", weights(1)), "teacher": under("backbone.", s)},
    "flat teacher": lambda s: under("student.", weights(1)) | under("teacher.", s),
    "raw before average": lambda s: {"model_ema": weights(1), "model": s},
    "average alone": lambda s: {"state_dict_ema": s},
    "whole module": lambda s: filled(s),
    "namespace": lambda s: {"model": s, "args": argparse.Namespace(lr=1, path=Path("x"))},
    "numpy": lambda s: {"model": s, "best": np.float64(0.5), "history": np.arange(3), "kind": np.dtype("f4")},
    "own classes": lambda s: {"model": s, "phase": Phase.TRAIN, "log": defaultdict(list, a=[1]), "tags": {"x"}},
    "own mapping": lambda s: {"model": s, "settings": Settings(a=1)},
}


def filled(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = timm.create_model(NAME, num_classes=0)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_whatever_is_around_them(wrapping, tmp_path: Path):
    state = weights()
    assert same(loaded(saved(tmp_path, WRAPPINGS[wrapping](state))), state)


@pytest.mark.parametrize("wrapping", ["parallel", "namespace", "numpy"])
def test_files_of_old_torch_are_read_too(wrapping, tmp_path: Path):
    state = weights()
    path = saved(tmp_path, WRAPPINGS[wrapping](state), _use_new_zipfile_serialization=False)
    assert same(loaded(path), state)


@pytest.mark.parametrize("padding", range(256))
def test_safetensors_are_told_from_other_files_whatever_their_header_s_length(padding, tmp_path: Path):
    path = tmp_path / "w.bin"
    save_file({"w": torch.ones(2)}, path, {"about": "x" * padding})
    assert read_tensors(str(path))["w"].tolist() == [1, 1]


@pytest.mark.parametrize("function", ["eval", "exec", "touch"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(function, zipped, tmp_path: Path):
    sprung = tmp_path / "sprung"
    calls = {
        "eval": Call(eval, f"open({str(sprung)!r}, 'w')"),
        "exec": Call(exec, f"open({str(sprung)!r}, 'w')"),
        "touch": Call(Path.touch, sprung),
    }
    path = saved(tmp_path, {"args": calls[function], **weights()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CxrltError) as caught:
        read_tensors(path)
    assert "w.pth" in str(caught.value)
    assert not sprung.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_with_the_tensors_name(value, tmp_path: Path):
    state = weights()
    state["layer1.0.bn1.bias"][2] = value
    with pytest.raises(CxrltError, match=r"tensor layer1\.0\.bn1\.bias holds nan or inf in 1 of"):
        loaded(saved(tmp_path, state))
    state = weights() | {"fc.weight": torch.full((2, 2), value)}  # of the classifier, which is not used
    loaded(saved(tmp_path, state))


def test_weights_of_another_architecture_are_told_by_names_or_shapes(tmp_path: Path):
    path = saved(tmp_path, under("net.", timm.create_model("test_vit").state_dict()))
    message = (
        r"of 90 tensors it lacks conv1\.0\.weight, conv1\.1\.weight, .*; it has net\.cls_token, net\.pos_embed, net\..*"
    )
    with pytest.raises(CxrltError, match=message):
        loaded(path)
    path = saved(tmp_path, under("module.", timm.create_model("resnet18").state_dict()))
    message = r"another architecture than backbone 'resnet18d'|does not hold .* or is of another architecture"
    with pytest.raises(CxrltError, match=message):
        loaded(path, "resnet18d")
    state = weights()
    state["layer1.0.conv1.weight"] = torch.zeros(7, 7, 3, 3)
    with pytest.raises(
        CxrltError, match=r"another architecture than .*: layer1\.0\.conv1\.weight is \(7, 7, 3, 3\), not"
    ):
        loaded(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer: git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"", "neither a .safetensors file nor one of torch.save"),
        (b"PK\x03\x04", "neither a .safetensors file nor one of torch.save"),
        (b"\x80\x02}q\x00.", "damaged or cut short"),
    ],
)
def test_what_is_no_file_of_weights_is_named_without_torchs_advice(content, said, tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CxrltError) as caught:
        loaded(str(tmp_path / "w.pth"))
    message = str(caught.value)
    assert said in message
    assert "\x1b" not in message
    assert "weights_only" not in message


def test_a_file_without_tensors_or_of_a_script_says_how_to_save_them(tmp_path: Path):
    with pytest.raises(
        CxrltError, match=r"holds no tensors but objects of argparse\.Namespace: save its weights alone"
    ):
        read_tensors(saved(tmp_path, {"args": argparse.Namespace()}))
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "script.pt")
    with pytest.raises(CxrltError, match="is a TorchScript archive: save its weights alone"):
        read_tensors(str(tmp_path / "script.pt"))
    (tmp_path / "w.safetensors").write_bytes(b"\xff" + bytes(7) + b'{"w": ')
    with pytest.raises(CxrltError, match=r"no whole file of safetensors"):
        read_tensors(str(tmp_path / "w.safetensors"))


def test_the_prefix_of_most_tensors_is_tried_first():
    own = ["conv.weight", "norm.weight"]
    assert prefixes(own, own)[0] == ""
    assert prefixes(["a.norm.weight", *under("b.", dict.fromkeys(own, torch.zeros(1)))], own)[0] == "b."
    assert prefixes(["x"], own) == [""]
