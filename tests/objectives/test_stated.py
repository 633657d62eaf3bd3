"""Objectives `stated` and `stated_grounding`: which sentences are phrases, what they are true of, and their losses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_images
from torch.nn.functional import binary_cross_entropy_with_logits

from cxrlt_ray.models import ModelSpec, build
from cxrlt_ray.models.asking import Both
from cxrlt_ray.models.heads import HEADS
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
DOUBTED = "Possible nodule."


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


def lists_of(lists, made):
    return [{made.texts[number] for number in lists.of(row)} for row in range(len(made.reported))]


NOTHING_ALIKE = np.zeros((5, 3), bool)


def test_sentences_that_affirm_a_finding_are_phrases_of_their_own_images(evidence):
    made, number = phrases(evidence)
    assert set(number) == {LEFT, NODULE, BOTH, DOUBTED}
    assert lists_of(made.own, made) == [{LEFT}, {NODULE, BOTH}, set(), {LEFT}, set()]
    assert lists_of(made.said, made) == [{LEFT}, {NODULE, BOTH}, set(), {LEFT, DOUBTED}, set()]
    assert made.reported.tolist() == [True, True, True, True, False]
    assert made.affirmed[number[BOTH]].tolist() == [True, False]
    assert made.denied[number[BOTH]].tolist() == [False, True]


def test_a_phrase_is_true_by_a_report_false_by_labels_and_else_not_known(evidence):
    made, number = phrases(evidence)
    asked = np.array([number[name] for name in (LEFT, NODULE, BOTH)])
    labels = made.labels(np.arange(5), TARGETS, asked, NOTHING_ALIKE)
    assert labels.tolist() == [
        [1, 0, -1],  # its own; it has no nodule; its mass may be described by the third as well
        [-1, 1, -1],  # its report says the third, its label of Nodule is 1: they contradict each other
        [0, 0, 0],
        [1, 0, 0],  # without labels only reports are known: its own says nothing like the others
        [0, -1, 0],  # without report only its labels are
    ]
    turned = made.labels(np.array([3, 0]), TARGETS[[3, 0]], asked[::-1], NOTHING_ALIKE[:2])
    assert turned.tolist() == labels[[3, 0], ::-1].tolist()


def test_a_sentence_on_a_finding_without_labels_is_false_where_a_report_says_nothing_like_it(evidence):
    hidden = TARGETS.copy()
    hidden[:, 0] = -1  # Mass is asked for by text alone
    made, number = phrases(evidence, hidden)
    asked, alike = np.array([number[name] for name in (LEFT, NODULE)]), np.zeros((5, 2), bool)
    alike[1, 0] = True  # "Mass, no nodule."
    labels = made.labels(np.arange(5), hidden, asked, alike)
    assert labels[:, 0].tolist() == [1, -1, 0, 1, -1]  # the last has no report
    assert labels[:, 1].tolist() == made.labels(np.arange(5), TARGETS, asked, alike)[:, 1].tolist()


def test_sentences_of_what_no_rule_knows_are_phrases_unless_they_deny_or_doubt(tmp_path):
    manifest = write_images(tmp_path / "images", 2)
    texts = [
        "The vertebrae wind from side to side. Wires stand out. Possible mass. Possible S-shaped spine.",
        "The vertebrae do not wind. The bones are intact. The abdomen is unremarkable. As above.",
    ]
    table = pd.DataFrame({"study_id": manifest.table["study_id"], "text": texts})
    table.to_csv(tmp_path / "reports.csv", index=False)
    corpus, _ = build_corpus(str(tmp_path / "reports.csv"), manifest, Store(str(tmp_path)))
    made = StatedPhrases.of(Evidence(FINDINGS, corpus, corpus.rows_of(manifest)), TARGETS[:2])
    assert lists_of(made.own, made) == [{"The vertebrae wind from side to side.", "Wires stand out."}, set()]
    assert lists_of(made.said, made)[0] - lists_of(made.own, made)[0] == {"Possible mass.", "Possible S-shaped spine."}
    assert not made.affirmed[made.own.of(0)].any()


def test_sentences_of_a_second_wording_are_phrases_too(tmp_path):
    manifest = write_images(tmp_path / "images", 2)
    for name, texts in (("first", ["There is a mass.", "No mass."]), ("second", ["A mass is there.", ""])):
        table = pd.DataFrame({"study_id": manifest.table["study_id"], "text": texts})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    first, second = (str(tmp_path / f"{name}.csv") for name in ("first", "second"))
    corpus, _ = build_corpus(first, manifest, Store(str(tmp_path)), second=second)
    made = StatedPhrases.of(Evidence(FINDINGS, corpus, corpus.rows_of(manifest)), TARGETS[:2])
    assert lists_of(made.own, made) == [{"There is a mass.", "A mass is there."}, set()]


def test_reports_in_other_languages_state_nothing(tmp_path):
    manifest = write_images(tmp_path / "images", 1)
    text = "Kein Pleuraerguss. Das Herz ist vergroessert und die Lunge ist nicht frei, sondern gestaut."
    pd.DataFrame({"study_id": manifest.table["study_id"], "text": [text]}).to_csv(tmp_path / "reports.csv", index=False)
    corpus, _ = build_corpus(str(tmp_path / "reports.csv"), manifest, Store(str(tmp_path)))
    assert corpus.foreign.tolist() == [True]
    made = StatedPhrases.of(Evidence(FINDINGS, corpus, corpus.rows_of(manifest)), TARGETS[:1])
    assert (len(made.texts), made.reported.tolist()) == (0, [False])


def test_reports_are_alike_by_the_cosine_of_their_sentences_doubted_ones_too(evidence):
    made, number = phrases(evidence)
    rows = {LEFT: (1.0, 0.0, 0.0), BOTH: (0.8, 0.6, 0.0), NODULE: (0.0, 1.0, 0.0), DOUBTED: (0.0, 2.0, 0.2)}
    table = np.array([rows[text] for text in made.texts])
    asked = np.array([number[LEFT], number[NODULE]])
    alike = made.alike(np.arange(5), asked, table.__getitem__, 0.7)
    assert alike.tolist() == [[True, False], [True, True], [False, False], [True, True], [False, False]]
    units = table / np.linalg.norm(table, axis=1, keepdims=True)
    pairs = (units @ units.T)[np.triu_indices(4, 1)]
    for deviations in (0.0, 1.5):
        expected = pairs.mean() + deviations * pairs.std()
        assert made.least_alike(table.__getitem__, deviations, 0) == pytest.approx(expected)


def test_draws_are_of_the_images_own_reports(evidence):
    made, number = phrases(evidence)
    uniform = np.random.default_rng(0).random((2, 50))
    assert made.drawn(np.array([1, 2]), uniform).tolist() == sorted([number[NODULE], number[BOTH]])
    assert made.drawn(np.array([2, 4]), uniform).tolist() == []
    assert made.drawn(np.array([1]), np.array([[0.0]])).tolist() == [made.own.of(1)[0]]


def objective(evidence, name="stated_grounding", **settings):
    spec = ObjectiveSpec(objective=name, objective_settings=settings, text="minilm")
    return find_objective(name)(spec, TARGETS, None, evidence)


def model(head="film"):
    torch.manual_seed(0)
    return build(ModelSpec("test_resnet", 64, pretrained=False, head=head, text="minilm"), FINDINGS)


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


@pytest.mark.parametrize("head", find_objective("stated").needs.heads)
def test_stated_adds_the_cross_entropy_of_sentences_for_any_head_that_reads_text(evidence, head):
    made = objective(evidence, "stated", stated_weight=0.5)
    network = made.network(model(head)).eval()
    outputs = network(IMAGES, torch.arange(5))
    asked = made.network(model(head)).eval().sentences(IMAGES, torch.arange(5))[0]
    logits, labels = outputs.unbind(2)
    assert labels[:, :2].unique().tolist() == [-1]
    twin = Both(network.model, asked)
    assert torch.allclose(logits, twin(IMAGES), atol=1e-5)
    known = labels[:, 2:] >= 0
    assert 0 < int((labels[:, 2:] == 1).sum()) < int(known.sum()) < known.numel()
    apart = binary_cross_entropy_with_logits(logits[:, 2:][known], labels[:, 2:][known])
    targets = torch.from_numpy(TARGETS).float()
    plain = objective(evidence, "multilabel").loss(logits[:, :2], [(1.0, targets)])
    loss = made.loss(outputs, [(1.0, targets)])
    assert float(loss.detach()) == pytest.approx(float((plain + 0.5 * apart).detach()), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in network.model.head.parameters())


def test_stated_without_reports_is_multilabel():
    made, targets = objective(Evidence(FINDINGS), "stated"), torch.from_numpy(TARGETS).float()
    network = made.network(model("bilinear")).eval()
    outputs = network(IMAGES, torch.arange(5))
    plain = objective(Evidence(FINDINGS), "multilabel").loss(network.model(IMAGES), [(1.0, targets)])
    assert outputs.shape == (5, 2, 2)
    assert float(made.loss(outputs, [(1.0, targets)]).detach()) == pytest.approx(float(plain.detach()), rel=1e-6)


def test_all_heads_that_can_be_asked_by_text_can_be_stated():
    able = {name for name, head in HEADS.items() if head.needs_embeddings}
    assert set(find_objective("stated").needs.heads) == able


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
        ({"mix": "cutmix"}, "asks an image for sentences of reports"),
        ({"compile": "on"}, "draws its sentences at random"),
        ({"objective_settings": {"grounding_phrases": 0}}, "grounding_phrases is 0, but must be a whole number from 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    plain = {"backbone": "test_resnet", "resolution": 32, "epochs": 1, "head": "film", "text": "minilm"}
    with pytest.raises(ValueError, match=words):
        TrialConfig(**{**plain, "objective": "stated_grounding", **options})
