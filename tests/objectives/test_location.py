"""Objective `location`: which places a finding has, what its loss is made of, and what learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import write_images

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec, build
from cxrlt_ray.objectives.places import UNKNOWN, Places, place_text, places_in
from cxrlt_ray.objectives.registry import Evidence, ObjectiveSpec, find_objective
from cxrlt_ray.objectives.terms.location import location_contrast, place_contrast, presence
from cxrlt_ray.objectives.text_networks import Located
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.text.build import build_corpus
from cxrlt_ray.text.descriptions import load_descriptions, other_places, place_names

FINDINGS = ("Scoliosis", "Nodule", "Hilum")
TARGETS = np.array([[1, 0, -1], [1, 1, 1], [-1, 1, 0], [0, 1, -1]], np.int8)


def objective(name="location", targets=TARGETS, evidence=None, **settings):
    spec = ObjectiveSpec(objective=name, objective_settings=settings, text="minilm")
    return find_objective(name)(spec, targets, None, evidence or Evidence(FINDINGS))


def row(made, image, finding):
    return made.sets[made.numbers[image, finding]]


def test_without_reports_a_finding_is_where_its_description_says_and_elsewhere_is_what_does_not_overlap():
    made = Places(Evidence(FINDINGS), TARGETS)
    names = np.array(place_names())
    for c, description in enumerate(load_descriptions(FINDINGS).values()):
        for image in range(len(TARGETS)):
            assert set(names[row(made, image, c) == 1]) == set(description.place)
            assert set(names[row(made, image, c) == 0]) == set(other_places(description))
    assert (made.sets[-1] == UNKNOWN).all()


def test_the_users_own_description_says_where_a_finding_is():
    (description,) = load_descriptions(["Nodule"]).values()
    own = description.model_copy(update={"place": ("left lung base",)})
    made = Places(Evidence(FINDINGS, descriptions=(own,)), TARGETS)
    names = np.array(place_names())
    assert set(names[row(made, 1, 1) == 1]) == {"left lung base"}
    assert set(names[row(made, 1, 0) == 1]) == set(load_descriptions(["Scoliosis"])["Scoliosis"].place)


def test_a_sentence_names_its_places_the_longest_first():
    assert places_in("Nodule in the Left Lower Lobe, and the right lung base.") == [
        "left lower lobe",
        "right lung base",
    ]
    assert places_in("No nodule. Heartburn.") == []


def test_the_place_of_an_affirming_sentence_comes_before_that_of_the_description(tmp_path):
    manifest = write_images(tmp_path / "images", 4)
    texts = [
        "There is a nodule in the left lower lobe.",  # of a finding that is labelled 0
        "Nodule in the left lower lobe. No scoliosis of the thoracic spine. Nodule in the right upper lobe.",
        "There is a pulmonary nodule.",
    ]
    lines = [f"s{k},{text}" for k, text in enumerate(texts)]
    (tmp_path / "reports.csv").write_text("\n".join(["study_id,text", *lines]) + "\n")
    corpus, _ = build_corpus(str(tmp_path / "reports.csv"), manifest, Store(str(tmp_path / "run")))
    made = Places(Evidence(FINDINGS, corpus, corpus.rows_of(manifest)), TARGETS)
    names, described = np.array(place_names()), set(load_descriptions(["Nodule"])["Nodule"].place)
    here = [set(names[row(made, image, 1) == 1]) for image in range(4)]
    assert here == [{"left lower lobe"}, {"left lower lobe", "right upper lobe"}, described, described]
    elsewhere = set(names[row(made, 1, 1) == 0])
    assert "right lung base" in elsewhere
    assert not elsewhere & {"left lung", "lungs", "left mid lung zone", "right upper lung zone"}  # which overlap
    assert set(names[row(made, 1, 0) == 1]) == {"thoracic spine"}  # denied: as described


def test_findings_without_any_place_are_refused():
    with pytest.raises(UsageError, match="no description of Dragon names a place"):
        Places(Evidence(("Dragon",)), TARGETS[:, :1])


def test_presence_is_the_cross_entropy_of_two_outputs_and_the_contrast_is_weighed():
    torch.manual_seed(0)
    pair, scores = torch.randn(4, 3, 2), torch.randn(4, 3, len(place_names()))
    outputs = torch.cat([(pair[..., 1] - pair[..., 0]).unsqueeze(2), scores], dim=2)
    losses = []
    for weight in (0.0, 1.0, 2.5):
        made = objective(location_weight=weight)
        torch.manual_seed(1)
        losses.append(float(made.loss(outputs, [(1.0, torch.from_numpy(made.table()))])))
    assert losses[0] == pytest.approx(float(presence(pair, torch.from_numpy(TARGETS))), rel=1e-5)
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(2.5 * (losses[1] - losses[0]), rel=1e-5)


def test_the_contrast_of_scores_is_that_of_vectors_and_of_equal_scores_the_log_of_eight():
    vectors, embeddings = torch.randn(4, 3, 5), torch.randn(len(place_names()), 5)
    made = Places(Evidence(FINDINGS), TARGETS)
    places = torch.from_numpy(made.sets)[torch.from_numpy(made.numbers).long()]
    one = location_contrast(vectors, embeddings, places, generator=torch.Generator().manual_seed(3))
    two = place_contrast(vectors @ embeddings.T, places, generator=torch.Generator().manual_seed(3))
    assert float(one) == pytest.approx(float(two), rel=1e-5)
    even = torch.where(places == 1, 2.0, 0.5)
    expected = -math.log(math.exp(2) / (math.exp(2) + 7 * math.exp(0.5)))
    assert float(place_contrast(even, places)) == pytest.approx(expected, rel=1e-5)


def test_only_positive_cells_learn_their_place_and_unlabelled_ones_learn_nothing():
    made = objective()
    outputs = torch.zeros(4, 3, 1 + len(place_names()), requires_grad=True)
    made.loss(outputs, [(1.0, torch.from_numpy(made.table()))]).backward()
    presence_grad, place_grad = outputs.grad[..., 0].numpy() != 0, outputs.grad[..., 1:].abs().sum(2).numpy() > 0
    assert (presence_grad == (TARGETS >= 0)).all()
    assert (place_grad == (TARGETS == 1)).all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_queries_and_backbone_learn_from_the_contrast_alone_and_the_classifier_predicts(outputs):
    spec = ModelSpec(
        "test_resnet", 32, pretrained=False, head="query_decoder", query_layers=1, query_outputs=outputs, text="minilm"
    )
    model = build(spec, FINDINGS)
    made = objective()
    network = made.network(model)
    assert isinstance(network, Located)
    assert made.classifier(network) is model
    images = torch.randint(0, 255, (4, 32, 32), dtype=torch.uint8)
    given = network(images)
    assert given.shape == (4, 3, 1 + len(place_names()))
    made.contrast(given[..., 1:], torch.from_numpy(made.table())).backward()
    for part in (network.project, model.head.layers, model.head.ask, model.backbone):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert not any(p.grad.any() for p in model.head.read.parameters())
    network.eval()
    with torch.no_grad():
        assert torch.allclose(network(images)[..., 0], model(images), atol=1e-5)
    assert place_text("heart") == "It is located at heart"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "linear", "text": None}, "looks into head query_decoder, not linear: take `head: query_decoder`"),
        ({"text": None, "queries": "labels.npz"}, "reads texts of places: give it a text encoder"),
        ({"text_tuning": "tuned"}, "leave text_tuning at frozen"),
        ({"fusion": "attention"}, "leave fusion and mix at none"),
        ({"mix": "mixup"}, "leave fusion and mix at none"),
        ({"objective_settings": {"location_weight": -1.0}}, "location_weight is -1, but must be 0 or more"),
    ],
)
@pytest.mark.parametrize("name", ["location", "zero_shot_location"])
def test_what_does_not_fit_is_refused(name, options, words):
    plain = {"backbone": "test_resnet", "resolution": 32, "epochs": 1, "head": "query_decoder", "text": "minilm"}
    assert TrialConfig(**plain, objective=name).metric.name == ("val_map" if name == "location" else "val_log_lift")
    with pytest.raises(ValueError, match=words):
        TrialConfig(**{**plain, "objective": name, **options})
