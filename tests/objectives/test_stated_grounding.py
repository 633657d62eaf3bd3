"""Objective `stated_grounding`: which sentences are phrases, what they are true of, and its loss."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_images

from cxrlt_ray.models import ModelSpec, build
from cxrlt_ray.objectives.registry import Evidence, ObjectiveSpec, find_objective
from cxrlt_ray.objectives.stated_phrases import StatedPhrases
from cxrlt_ray.objectives.terms.grounding import area_loss, phrase_loss
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.text.build import build_corpus

FINDINGS = ("Mass", "Nodule")
REPORTS = (
    "There is a mass in the left lung. No nodule.",  # study of image 0
    "A nodule is seen. Mass, no nodule.",
    "No mass. No nodule.",
    "There is a mass in the left lung. Possible nodule.",
    "",
)
TARGETS = np.array([[1, 0], [1, 1], [0, 0], [-1, -1], [0, 1]], np.int8)
LEFT, NODULE, BOTH = "There is a mass in the left lung.", "A nodule is seen.", "Mass, no nodule."


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """Five images, each of a study of its own, with the reports above."""
    folder = tmp_path_factory.mktemp("stated")
    manifest = write_images(folder / "images", len(REPORTS))
    rows = pd.DataFrame({"study_id": manifest.table["study_id"], "text": REPORTS})
    rows.to_csv(folder / "reports.csv", index=False)
    corpus, _ = build_corpus(str(folder / "reports.csv"), manifest, Store(str(folder)))
    return Evidence(FINDINGS, corpus, corpus.rows_of(manifest))


def phrases(evidence, targets=TARGETS):
    made = StatedPhrases.of(evidence, targets)
    return made, {text: number for number, text in enumerate(made.texts)}


def test_sentences_that_affirm_a_finding_are_phrases_of_their_own_images(evidence):
    made, number = phrases(evidence)
    assert set(number) == {LEFT, NODULE, BOTH}
    own = [set(made.phrase[made.first[n] : made.first[n + 1]]) for n in range(5)]
    assert own == [{number[LEFT]}, {number[NODULE], number[BOTH]}, set(), {number[LEFT]}, set()]
    assert made.affirmed[number[BOTH]].tolist() == [True, False]
    assert made.denied[number[BOTH]].tolist() == [False, True]


def test_a_phrase_is_true_by_a_report_false_by_labels_and_else_not_known(evidence):
    made, number = phrases(evidence)
    asked = np.array([number[name] for name in (LEFT, NODULE, BOTH)])
    labels = made.labels(np.arange(5), TARGETS, asked)
    assert labels.tolist() == [
        [1, 0, -1],  # its own; it has no nodule; its mass may be described by the third as well
        [-1, 1, -1],  # its report says the third, its label of Nodule is 1: they contradict each other
        [0, 0, 0],
        [1, -1, -1],  # without labels only its own report is known
        [0, -1, 0],  # without report only its labels are
    ]
    assert made.labels(np.array([3, 0]), TARGETS[[3, 0]], asked[::-1]).tolist() == labels[[3, 0], ::-1].tolist()


def test_a_finding_without_labels_makes_no_phrase(evidence):
    hidden = TARGETS.copy()
    hidden[:, 0] = -1  # Mass is asked for by text alone
    assert set(phrases(evidence, hidden)[1]) == {NODULE}


def test_draws_are_of_the_images_own_reports(evidence):
    made, number = phrases(evidence)
    uniform = np.random.default_rng(0).random((2, 50))
    assert made.drawn(np.array([1, 2]), uniform).tolist() == sorted([number[NODULE], number[BOTH]])
    assert made.drawn(np.array([2, 4]), uniform).tolist() == []
    assert made.drawn(np.array([1]), np.array([[0.0]])).tolist() == [made.phrase[made.first[1]]]


def objective(evidence, name="stated_grounding", **settings):
    spec = ObjectiveSpec(objective=name, objective_settings=settings, text="minilm")
    return find_objective(name)(spec, TARGETS, None, evidence)


def model():
    torch.manual_seed(0)
    return build(ModelSpec("test_resnet", 64, pretrained=False, head="film", text="minilm"), FINDINGS)


IMAGES = torch.randint(0, 255, (5, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_grounding_over_findings_and_sentences(evidence):
    made = objective(evidence, grounding_area=0.5)
    network = made.network(model())
    outputs = network(IMAGES, torch.arange(5))
    table = torch.from_numpy(made.table())
    side = round((outputs.shape[2] - 2) ** 0.5)
    labels = torch.cat([torch.from_numpy(TARGETS).float(), outputs[:, 2:, -1]], dim=1)
    assert labels[:, 2:].unique().tolist() == [-1, 0, 1]
    maps = outputs[..., 1:-1].unflatten(2, (side, side))
    expected = phrase_loss(outputs[..., 0], labels) + 0.5 * area_loss(maps, labels)
    loss = made.loss(outputs, [(1.0, table)])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    loss.backward()
    assert all(part.weight.grad.abs().sum() > 0 for part in (network.model.head.gamma, network.model.head.weigh))
    assert made.classifier(network) is network.model


def test_a_sentence_is_answered_as_a_finding_of_that_text_would_be():
    with torch.no_grad():
        classifier = model().eval()
        embeddings = classifier.head.embeddings
        logits, maps = classifier.with_maps(IMAGES, 3 * embeddings.flip(0))
        alone, own = classifier.with_maps(IMAGES)
    assert torch.allclose(logits[:, :2], alone, atol=1e-5)
    assert torch.allclose(logits[:, 2:], alone.flip(1), atol=1e-5)
    assert torch.allclose(maps[:, 2:], own.flip(1), atol=1e-5)


def test_without_reports_it_is_grounding():
    plain, stated = objective(Evidence(FINDINGS), "grounding"), objective(Evidence(FINDINGS))
    rows = torch.from_numpy(plain.table())
    values = [
        float(made.loss(made.network(model())(*inputs), [(1.0, rows)]).detach())
        for made, inputs in ((plain, (IMAGES,)), (stated, (IMAGES, torch.arange(5))))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": None, "queries": "q.npz"}, "reads sentences of reports: give it a text encoder"),
        ({"queries": "q.npz"}, "by one text encoder"),
        ({"mix": "cutmix"}, "looks at where a finding is"),
        ({"compile": "on"}, "draws its sentences at random"),
        ({"objective_settings": {"grounding_phrases": 0}}, "grounding_phrases is 0, but must be a whole number from 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    plain = {"backbone": "test_resnet", "resolution": 32, "epochs": 1, "head": "film", "text": "minilm"}
    with pytest.raises(ValueError, match=words):
        TrialConfig(**{**plain, "objective": "stated_grounding", **options})
