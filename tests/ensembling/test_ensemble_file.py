"""The keys of an ensembles/ file, and what is refused of them."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray import config, ensemble
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile, load_ensemble
from cxrlt_ray.errors import UsageError
from cxrlt_ray.selection.honest import fit
from cxrlt_ray.selection.views import StudyRule


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_ensemble(str(path))[1]


@pytest.mark.parametrize("name", config.names("ensembles"))
def test_every_file_that_is_shipped_loads(name):
    title, file = load_ensemble(name)
    assert title == name
    assert file.rules()
    assert file.methods()


def test_a_file_can_say_all_of_a_published_systems_selection(tmp_path):
    file = written(tmp_path, "selector: mean\nviews: {PA: 2, AP: 2, LATERAL: 1}\naggregation: mean\ntta: on\n")
    assert file.tta == "on"
    assert file.rules() == [StudyRule("mean", {"PA": 2, "AP": 2, "LATERAL": 1})]
    assert str(file.rules()[0]) == "study mean, frontal 2 : lateral 1"
    assert written(tmp_path, "selector: greedy\ntta: off\n").tta == "off"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", "none"),
        ("views: {LATERAL: 0.5}", "mean"),  # as files were before `aggregation`
        ("views: {}", "mean"),
        ("views: learned", "auto"),
        ("aggregation: max", "max"),
        ("aggregation: none", "none"),
        ("aggregation: auto\nviews: {PA: 2}", "auto"),
    ],
)
def test_what_is_not_said_of_aggregation_follows_from_the_views(tmp_path, text, meant):
    file = written(tmp_path, f"selector: mean\n{text}\n")
    assert file.used_aggregation() == meant
    assert file.rules()[0].how == ("none" if meant == "auto" else meant)
    assert file.tta == "auto"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aggregation: median", r"'aggregation': given 'median': .*'none', 'mean', 'max', 'noisy_or' or 'auto'"),
        ("tta: maybe", "'tta': given 'maybe': .*'auto', 'on' or 'off'"),
        ("views: {PA: 0, AP: 0, LATERAL: 0}", "'views': .*all weights are 0: no image would have a voice"),
        (
            "views: {learned: true, PA: 2}",
            "no view 'learned', there are PA, AP, .*; 'learned' stands in the weights' pl",
        ),
        ("views: {FRONTAL: 2}", r"no view 'FRONTAL', there are PA, AP, LATERAL, OTHER, UNKNOWN\."),
        ("views: guessed", "given 'guessed': it is neither weights of PA, AP, .* nor 'learned'"),
        ("views: [PA, AP]", "neither weights"),
        ("views: {PA: -1}", "the weight of PA must be a number from 0 up"),
        ("views: {PA: .inf}", "the weight of PA must be a number from 0 up"),
        ("views: {PA: many}", "the weight of PA must be a number from 0 up"),
        ("views: {PA: true}", "the weight of PA must be a number from 0 up"),
        ("views: {PA: 2}\naggregation: none", "'views' means nothing to aggregation none"),
        ("views: learned\naggregation: none", "'views' means nothing to aggregation none"),
        ("views: learned\naggregation: max", "means nothing to aggregation max.*give weight 0"),
        (
            "blend: [logistic]",
            "'blend': given 'logistic', whose weights are for logit; those of selector mean are for pro",
        ),
        ("blend: [nope]", "'blend': given 'nope': there is no such selector"),
        ("lean: far", "'lean': given 'far': .*'global', 'mean' or 'sound'"),
    ],
)
def test_keys_that_make_no_sense_are_refused_with_what_would(tmp_path, text, told):
    with pytest.raises(UsageError, match=told):
        written(tmp_path, f"selector: mean\n{text}\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aggregation: auto", "key 'aggregation' needs each image's study and view.*does not go with --from"),
        ("views: learned", "key 'views' needs each image's study and view"),
        ("views: {PA: 2}", "key 'views' needs each image's study and view"),
        ("tta: on", "tta: on needs a run's trials"),
    ],
)
def test_tables_of_predictions_do_not_know_studies_or_trials(tmp_path, text, told):
    path = tmp_path / "mine.yaml"
    path.write_text(f"selector: mean\n{text}\n")
    with pytest.raises(UsageError, match=told):
        ensemble.run(ensemble.EnsembleRequest(select=str(path), tables=["a.csv"], targets="t.csv", out=str(tmp_path)))


def test_what_an_ensemble_keeps_is_a_file_again():
    file = EnsembleFile(selector="mean", views={"PA": 2}, tta=True)
    assert EnsembleFile(**file.model_dump()) == file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("selector: greedy\nfallback: [rank_mean]", "'fallback': given 'rank_mean', which takes .* rank space"),
        ("selector: auto\nchoices: []", "'choices'"),
        ("selector: auto\nchoices: [mean, logistic]", "'choices': given 'logistic', which takes .* logit space"),
        ("selector: logistic\nfallback: [mean]", "'fallback': given 'mean', .* here logit"),
        ("selector: frontier\nsettings: {budget: 2}\nblend: [nnls]", "'blend' .* beside settings.budget"),
        ("selector: frontier\nsettings: {budget: 2}\nlean: sound\nguard: 20", "'lean' .* beside settings.budget"),
        ("selector: frontier\nsettings: {budget: 2}\nfallback: [mean]", "'fallback' .* beside settings.budget"),
    ],
)
def test_what_would_be_applied_otherwise_than_it_says_is_refused(tmp_path, text, told):
    with pytest.raises(UsageError, match=told):
        written(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "selector: auto\nchoices: [mean, logistic]\nspace: logit",
        "selector: logistic\nspace: probability\nfallback: [mean]",
        "selector: frontier\nblend: [nnls]\nlean: mean",
        "selector: frontier\nsettings: {budget: 2}\nguard: 20",
    ],
)
def test_what_is_said_of_the_space_and_needs_no_budget_is_taken(tmp_path, text):
    assert written(tmp_path, text).methods()


@pytest.mark.parametrize("name", ["best", "mean"])
def test_what_auto_chooses_is_the_selector_that_it_names(name):
    """One that weighs all findings alike gets no part of what a finding of few positives leans on."""
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 2)) < 0.3).astype(np.int8)
    skill = np.array([3.0, 2.5, -2.0])[:, None, None]  # the last alone is not sound
    scores = (1 / (1 + np.exp(-skill * (targets - 0.5) - rng.normal(size=(3, 60, 2))))).astype(np.float32)
    auto = load_ensemble("auto")[1].model_copy(update={"choices": [name]})
    weights = [fit(file.methods(), scores, targets, np.arange(60), folds=0).weights for file in (auto, alone(name))]
    np.testing.assert_array_equal(*weights)


def alone(name: str) -> EnsembleFile:
    return load_ensemble(name)[1]
