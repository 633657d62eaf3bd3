"""`pretrain_text`: an encoder learns a graph's pairs, is saved as `text: FOLDER` reads it, and goes on after a cut."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from text_models import VOCABULARY, bert_folder, cxr_bert_folder
from toy_graph import ATOMS, EFFUSION, HEART, PLEURA, write

from cxrlt_ray import pretrain_text as command
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.entity_network import EntityNetwork
from cxrlt_ray.objectives.terms.entities import entity_contrast
from cxrlt_ray.text.embeddings import embedded
from cxrlt_ray.text.encoder_spec import TextSpec
from cxrlt_ray.text.encoders import build_text_encoder
from cxrlt_ray.text.graph import Concept, Graph, pairs, read_graph
from cxrlt_ray.training.text_pretraining import Pretraining, pretrain_text

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return read_graph(write(tmp_path_factory.mktemp("graph")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory, graph):
    """A BERT that knows the words of the graph."""
    texts = [text for pair in pairs(graph) for text in pair[:2]]
    words = list(dict.fromkeys([*VOCABULARY, *" ".join(texts).lower().replace(".", "").replace("[sep]", "").split()]))
    return str(bert_folder(tmp_path_factory.mktemp("bert"), words=words, embeddings=len(words)))


def how(bert, **options):
    spec = TextSpec(bert, tuning="tuned", max_tokens=32)
    plain = {"spec": spec, "graph": "toy", "epochs": 3, "batch_size": 4, "lr": 1e-2}
    return Pretraining(**{**plain, **options})


def quiet(line):
    pass


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_contrast_of_texts_keeps_its_digits_under_mixed_precision():
    """Features as they are; cosines times 100 in bfloat16 would lose all but three digits."""
    rows = {name: torch.randn(8, 16, generator=torch.Generator().manual_seed(k)) for k, name in enumerate("ab")}

    class Encoder(torch.nn.Module):
        def tokenize(self, texts):
            return texts[0]

        def forward(self, name):
            return rows[name]

    network, concept = EntityNetwork(Encoder()), torch.arange(8)
    torch.nn.init.constant_(network.scale.log, math.log(100))
    with torch.autocast("cpu", torch.bfloat16):
        loss = network("a", "b", concept)
    torch.testing.assert_close(loss, entity_contrast(rows["a"], rows["b"], concept, 100.0))


def test_an_encoder_learns_which_texts_are_of_one_concept_and_a_space_reads_it(graph, bert, tmp_path):
    still = tmp_path / "still"  # without dropout, which drowns a BERT of this size
    shutil.copytree(bert, still)
    content = json.loads((still / "config.json").read_text())
    content |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(content))
    spec = TextSpec(str(still), pooling="mean", tuning="tuned", max_tokens=32)
    losses = pretrain_text(graph, how(bert, spec=spec, epochs=60, lr=3e-3, batch_size=8), tmp_path / "out", quiet)
    assert len(losses) == 60
    assert losses[0] > 2  # by chance log 8
    # six of eight pairs are of concepts with three pairs each: all positives alike have a loss of log 3
    assert losses[-1] == pytest.approx(6 / 8 * math.log(3), abs=0.05)
    texts = ["Pleural effusion", "Pleura", "Heart"]
    texts += [graph.concepts[concept].definitions[0] for concept in (EFFUSION, PLEURA, HEART)]
    rows = torch.from_numpy(embedded(texts, TextSpec(str(tmp_path / "out"), max_tokens=32), None))
    similar = torch.nn.functional.normalize(rows, dim=1)
    assert (similar[:3] @ similar[3:].T).argmax(dim=1).tolist() == [0, 1, 2]
    about = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert (about["graph"], about["epochs"], about["spec"]["encoder"]) == ("toy", 60, str(still))
    assert not list(tmp_path.glob("*.partial"))
    assert not list((tmp_path / "out").glob("state*"))


def test_what_is_saved_is_what_was_trained_with_its_pooling(graph, bert, tmp_path, monkeypatch):
    from cxrlt_ray.training import text_pretraining

    kept = []
    original = text_pretraining._save
    monkeypatch.setattr(
        text_pretraining, "_save", lambda encoder, *rest: (kept.append(encoder), original(encoder, *rest))
    )
    for pooling in ("cls", "mean"):
        spec = TextSpec(bert, pooling=pooling, tuning="lora", lora_rank=2, max_tokens=32)
        pretrain_text(graph, how(bert, spec=spec), tmp_path / pooling, quiet)
        again = build_text_encoder(TextSpec(str(tmp_path / pooling), max_tokens=32))
        assert again.pooling == pooling
        tokens = again.tokenize(["pleural effusion", "heart"])
        torch.testing.assert_close(again(tokens), kept[-1].eval()(tokens), rtol=1e-4, atol=1e-5)


def test_lora_changes_attention_alone_and_leaves_no_adapter(graph, bert, tmp_path):
    spec = TextSpec(bert, tuning="lora", lora_rank=2, max_tokens=32)
    pretrain_text(graph, how(bert, spec=spec), tmp_path / "out", quiet)
    before = build_text_encoder(TextSpec(bert, max_tokens=32)).model.state_dict()
    after = weights(tmp_path / "out")
    assert set(after) == set(before) - {"embeddings.position_ids"}
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("attention.self" in name for name in changed)


class Cut(Exception):
    pass


@pytest.mark.parametrize("tuning", ["tuned", "lora"])
def test_a_process_that_is_cut_is_gone_on_with(tuning, graph, bert, tmp_path):
    given = how(bert, spec=TextSpec(bert, tuning=tuning, lora_rank=2, max_tokens=32))
    pretrain_text(graph, given, tmp_path / "whole", quiet)

    def cut(line):
        raise Cut

    for _ in range(2):
        with pytest.raises(Cut):
            pretrain_text(graph, given, tmp_path / "cut", cut)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(UsageError, match="was begun with other options"):
        pretrain_text(graph, how(bert, epochs=9), tmp_path / "cut", quiet)
    assert len(pretrain_text(graph, given, tmp_path / "cut", quiet)) == 1
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for name, tensor in one.items():
        assert torch.equal(two[name], tensor), name


def test_all_weights_and_the_scale_learn_by_kads_contrast(bert):
    network = EntityNetwork(build_text_encoder(TextSpec(bert, tuning="tuned", max_tokens=32))).eval()
    left, right, concept = ["heart", "pleura", "bone"], ["blood", "lining", "heart"], torch.tensor([0, 1, 0])
    loss = network(left, right, concept)
    encode = lambda texts: network.encoder(network.encoder.tokenize(texts))  # noqa: E731
    assert float(loss) == pytest.approx(
        float(entity_contrast(encode(left), encode(right), concept, 1 / 0.07)), rel=1e-5
    )
    loss.backward()
    assert network.scale.log.grad.abs() > 0
    silent = [name for name, p in network.encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("key.bias" in name or "token_type" in name for name in silent), silent


def test_what_does_not_fit_is_refused_in_a_sentence(graph, bert, tmp_path):
    (tmp_path / "there").mkdir()
    cxr = TextSpec(str(cxr_bert_folder(tmp_path / "cxr")), tuning="tuned", max_tokens=32)
    for given, what, folder, words in (
        (graph, how(bert), "there", "exists: give another folder"),
        (Graph({EFFUSION: Concept(EFFUSION, ("Effusion",))}, ()), how(bert), "new", "the graph has 0 pairs of texts"),
        (Graph({EFFUSION: Concept(EFFUSION, ("A", "B"), ("C",))}, ()), how(bert), "new", "of fewer than two concepts"),
        (graph, how(bert, spec=cxr), "new", "its projection is not trained here: give --pooling cls"),
    ):
        with pytest.raises(UsageError, match=words):
            pretrain_text(given, what, tmp_path / folder, quiet)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": None}, "--out FOLDER says where"),
        ({"tuning": "frozen"}, "--tuning is tuned or lora"),
        ({"epochs": 0}, "--epochs is 1 or more, not 0"),
        ({"batch_size": 1}, "--batch-size is 4 or more"),
        ({"lr": 0.0}, "--lr is above 0"),
        ({"encoder": "no such"}, "text encoder 'no such' is none of"),
        ({"lora_targets": "query"}, "lora_targets act with `tuning: lora` only"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        command.PretrainTextRequest(**{"graph": "umls", "out": "new", **options})


def test_the_command_reads_a_folder_of_tables_and_says_what_it_left_out(bert, tmp_path, capsys):
    (tmp_path / "umls").mkdir()
    write(tmp_path / "umls", names=["no row"])
    assert len(ATOMS) > 5
    request = command.PretrainTextRequest(
        graph=str(tmp_path / "umls"), out=str(tmp_path / "new"), encoder=bert, epochs=1, max_tokens=32, batch_size=4
    )
    assert command.run(request) == tmp_path / "new"
    told = capsys.readouterr().out
    assert "1 rows of MRCONSO.RRF are not of its form" in told
    assert "epoch 1 of 1: loss" in told
    assert f"text: {tmp_path / 'new'}" in told
    around = request.model_copy(update={"out": str(tmp_path / "around"), "around_findings": True})
    command.run(around)
    assert "names of findings are no concept's" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"has no MRCONSO.RRF"):
        command.run(request.model_copy(update={"graph": str(tmp_path), "out": str(tmp_path / "other")}))
