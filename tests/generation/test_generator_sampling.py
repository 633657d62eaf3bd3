"""Images from noise: the same bytes on any number of workers, gone on with, and a cohort at the end."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest
from generation_data import FINDINGS

from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.generation import cohort_folder, sampling
from cxrlt_ray.generation.conditions import draw_conditions
from cxrlt_ray.generation.records import Sampled
from cxrlt_ray.generation.sampling import BLOCK, Sampler, draw, read_generator, sample_into
from cxrlt_ray.storage import Store

HOW = Sampled(
    sets=("Mass", "Edema"), each=9, company="real", guidance=2.0, solver="ddim", solver_steps=3, seed=0, resolution=16
)

ON_RAY = sampling._draw


@pytest.fixture(scope="module")
def generator(trained):
    return read_generator(str(trained))


@pytest.fixture(scope="module")
def conditions(generator):
    return draw_conditions(HOW.sets, generator.rows.targets, FINDINGS, HOW.each, HOW.company, HOW.seed)


@pytest.fixture
def here(monkeypatch):
    """Blocks drawn by one actor in this process, in the order of their numbers; the number of blocks drawn."""
    drawn = []

    def draw_here(generator, conditions, how, blocks, out, say):
        sampler = Sampler(str(generator.folder), how.model_dump())
        for block in blocks:
            part = {"rows": [list(block)], "seeds": [conditions.seed[block]], "vectors": [conditions.vectors[block]]}
            made = sampler(part)
            drawn.append(block)
            for row, png in zip(made["row"], made["png"], strict=True):
                out.write(cohort_folder.path_of(f"g{row:06d}"), png)

    monkeypatch.setattr(sampling, "_draw", draw_here)
    return drawn


def digests(store: Store) -> dict[str, str]:
    return {name: hashlib.sha256(store.read(f"images/{name}")).hexdigest() for name in store.list("images")}


def test_two_workers_on_ray_draw_the_bytes_that_one_process_draws(ray, here, generator, conditions, tmp_path):
    alone, together = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    sample_into(generator, conditions, HOW, alone, lambda _: None)
    blocks = [range(0, 8), range(8, 16), range(16, 18)]
    ON_RAY(generator, conditions, HOW, blocks, together, lambda _: None)
    assert digests(together) == digests(alone)
    assert len(digests(alone)) == 18


def test_what_is_drawn_before_is_kept_and_the_rest_gives_the_same_bytes(here, generator, conditions, tmp_path):
    whole, cut = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    sample_into(generator, conditions, HOW, whole, lambda _: None)
    count = itertools.count(1)

    class Full(Store):
        def write(self, name, content):
            if name.startswith("images/") and next(count) > 10:
                raise CxrltError("the disk is full; make room, or give a larger one.")
            Store.write(self, name, content)

    with pytest.raises(CxrltError, match="disk is full"):
        sample_into(generator, conditions, HOW, Full(cut.uri), lambda _: None)
    assert not cohort_folder.is_whole(cut)
    with pytest.raises(UsageError, match="is unfinished"):
        cohort_folder.read_generated(cut.uri)
    here.clear()
    said = []
    sample_into(generator, conditions, HOW, cut, said.append)
    assert len(here) == 2  # of three blocks: the first was whole
    assert digests(cut) == digests(whole)
    assert cut.read("labels.csv") == whole.read("labels.csv")


def test_other_options_do_not_go_on_and_a_whole_folder_is_not_overwritten(here, generator, conditions, tmp_path):
    store = Store(str(tmp_path / "a"))
    store.write_json(cohort_folder.UNFINISHED, {"seed": 5})
    with pytest.raises(UsageError, match="begun with other options"):
        sample_into(generator, conditions, HOW, store, lambda _: None)
    whole = Store(str(tmp_path / "b"))
    sample_into(generator, conditions, HOW, whole, lambda _: None)
    with pytest.raises(UsageError, match="holds generated images"):
        sample_into(generator, conditions, HOW, whole, lambda _: None)


def test_the_folder_is_a_cohort_of_training_images_that_names_no_patient(here, generator, conditions, tmp_path):
    store = Store(str(tmp_path / "a"))
    record = sample_into(generator, conditions, HOW, store, lambda _: None)
    manifest = read_cohort(store.uri, labelled=False).manifest
    assert len(manifest.table) == 18
    labels = pd.read_csv(tmp_path / "a" / "labels.csv", dtype=str)
    assert (labels["split"] == "train").all()
    assert (labels["view"] == "PA").all()
    written = labels[list(FINDINGS)].fillna("-1").to_numpy().astype(np.int8)
    assert (written == conditions.vectors).all()
    assert not labels.map(lambda cell: str(cell).startswith("p")).to_numpy().any()  # subjects are p0, p1 ...
    generated = cohort_folder.read_generated(store.uri)
    assert (generated.source == generator.rows.subject[conditions.source]).all()
    assert record.tallies["Edema"].positives == 1
    assert record.tallies["Mass"].drawn == 9


def test_an_image_depends_on_its_seed_its_condition_and_the_guidance(generator):
    from cxrlt_ray.generation.loading import load

    model = load(generator.folder, generator.record.config, FINDINGS)
    one, other = np.array([[1, 0, 0]], np.int8), np.array([[0, 1, 1]], np.int8)
    base = draw(model, one, np.array([3]), 2.0, "ddim", 3)
    assert (draw(model, one, np.array([3]), 2.0, "ddim", 3) == base).all()
    assert (draw(model, one, np.array([4]), 2.0, "ddim", 3) != base).any()
    assert (draw(model, other, np.array([3]), 9.0, "ddim", 3) != draw(model, one, np.array([3]), 9.0, "ddim", 3)).any()


def test_guidance_of_one_is_the_condition_and_of_nought_is_none(generator):
    import torch

    from cxrlt_ray.generation.loading import load

    model = load(generator.folder, generator.record.config, FINDINGS)
    noisy, times = torch.randn(2, *model.latent_shape), torch.full((2,), 7)
    own = model.condition(np.array([[1, 0, -1], [0, 1, 1]], np.int8))
    nothing = model.condition(np.full((2, 3), -1, np.int8))
    with torch.no_grad():
        assert torch.equal(model.guided(noisy, times, own, 1.0), model.predict(noisy, times, own))
        assert torch.allclose(model.guided(noisy, times, own, 0.0), model.predict(noisy, times, nothing), atol=1e-6)
        both = model.guided(noisy, times, own, 3.0)
        by_hand = 3 * model.predict(noisy, times, own) - 2 * model.predict(noisy, times, nothing)
    assert torch.allclose(both, by_hand, atol=1e-5)


def test_a_block_is_a_fixed_number_of_rows():
    assert BLOCK == 8  # another number changes the bytes of every folder that is begun


def test_a_folder_without_a_generator_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no generator"):
        read_generator(str(tmp_path))


def test_a_cohort_without_images_and_labels_of_other_findings_are_refused(tmp_path, here, generator, conditions):
    with pytest.raises(UsageError, match="holds no generated images"):
        cohort_folder.read_generated(str(tmp_path))
    store = Store(str(tmp_path / "a"))
    sample_into(generator, conditions, HOW, store, lambda _: None)
    table = pd.read_csv(tmp_path / "a" / "labels.csv")
    table.drop(columns="Edema").to_csv(tmp_path / "a" / "labels.csv", index=False)
    with pytest.raises(UsageError, match="lacks the column 'Edema'"):
        cohort_folder.read_generated(store.uri)
    table.iloc[:0].to_csv(tmp_path / "a" / "labels.csv", index=False)
    with pytest.raises(UsageError, match="has no images"):
        cohort_folder.read_generated(store.uri)
