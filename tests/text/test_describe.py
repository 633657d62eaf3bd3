"""The command describe: drafts from a server that answers as a test says, files checked, descriptions shown."""

from __future__ import annotations

import pytest
from chat_server import ChatServer, reply

from cxrlt_ray import describe
from cxrlt_ray.describe import DescribeRequest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.text.descriptions import load_descriptions, place_names, read_descriptions

FIELDS = {
    "names": ["pleural mass"],
    "synonyms": ["pleural tumor"],
    "appearance": "A rounded opacity with its base on the pleura.",
    "place": ["pleural space"],
    "keywords": ["pleural-based opacity", "obtuse angle", "rounded opacity"],
}


async def drafts(body, number):
    return reply(FIELDS)


def ask(folder, server, *findings, **options):
    given = {"out": str(folder / "drafts.yaml"), "cache": str(folder / "cache"), **options}
    describe.run(DescribeRequest(findings=list(findings), url=server.url, model="m", **given))


def test_drafts_are_written_unreviewed_refused_until_read_and_never_asked_twice(tmp_path, capsys):
    with ChatServer(drafts) as server:
        ask(tmp_path, server, "Pleural Mass")
        assert "Names of findings, and nothing of patients, are sent to 127.0.0.1" in capsys.readouterr().out
        (body,) = server.bodies
        assert "Finding: Pleural Mass" in body["messages"][-1]["content"]
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        assert tuple(schema["place"]["items"]["enum"]) == place_names()
        ask(tmp_path, server, "Pleural Mass", out=str(tmp_path / "again.yaml"))
        assert len(server.bodies) == 1
        assert (tmp_path / "again.yaml").read_text() == (tmp_path / "drafts.yaml").read_text()
        ask(tmp_path, server, "Pleural Mass", out=str(tmp_path / "other.yaml"), parameters='{"seed": 1}')
        assert len(server.bodies) == 2
    path = tmp_path / "drafts.yaml"
    (draft,) = read_descriptions(path)
    assert (draft.finding, draft.reviewed, draft.names) == ("Pleural Mass", False, ("pleural mass",))
    with pytest.raises(UsageError, match="is a draft"):
        load_descriptions(["Pleural Mass"], path)
    path.write_text(path.read_text().replace("reviewed: false", "reviewed: true"))
    assert load_descriptions(["Pleural Mass"], path)["Pleural Mass"].appearance == FIELDS["appearance"]


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "drafts.yaml").write_text("corrected by hand")
    with ChatServer(drafts) as server, pytest.raises(UsageError, match="exists, and may hold corrections"):
        ask(tmp_path, server, "Pleural Mass")
    assert (tmp_path / "drafts.yaml").read_text() == "corrected by hand"
    assert server.bodies == []


@pytest.mark.parametrize(
    "wrong",
    [
        "no JSON",
        {**FIELDS, "names": ["=cmd()"]},
        {**FIELDS, "place": ["somewhere"]},
        {**FIELDS, "reviewed": True},
        {**FIELDS, "finding": "Bulla"},
        {key: value for key, value in FIELDS.items() if key != "appearance"},
    ],
)
def test_a_reply_that_is_no_description_is_asked_for_again_with_what_was_wrong(tmp_path, wrong):
    async def answer(body, number):
        return reply(FIELDS if number else wrong)

    with ChatServer(answer) as server:
        ask(tmp_path, server, "Pleural Mass")
    assert len(server.bodies) == 2
    assert "could not be used" in server.bodies[1]["messages"][-1]["content"]
    (draft,) = read_descriptions(tmp_path / "drafts.yaml")
    assert (draft.finding, draft.reviewed) == ("Pleural Mass", False)


def test_findings_without_a_draft_are_named_and_the_others_are_written(tmp_path):
    async def answer(body, number):
        return reply(FIELDS if "Finding: Pleural Mass" in body["messages"][-1]["content"] else "nonsense")

    with ChatServer(answer) as server, pytest.raises(CxrltError, match=r"1 of 2 findings have no draft \(Cervical Rib"):
        ask(tmp_path, server, "Cervical Rib", "Pleural Mass")
    assert len(server.bodies) == 4
    assert [draft.finding for draft in read_descriptions(tmp_path / "drafts.yaml")] == ["Pleural Mass"]


def test_faults_are_tried_again_and_the_key_is_from_the_environment_alone(tmp_path, monkeypatch, capsys):
    from aiohttp import web

    async def answer(body, number):
        return reply(FIELDS) if number else web.Response(status=503)

    monkeypatch.setenv("MY_KEY", "secret-of-mine")
    with ChatServer(answer) as server:
        ask(tmp_path, server, "Pleural Mass", key_variable="MY_KEY")
        assert server.headers[-1]["Authorization"] == "Bearer secret-of-mine"
    assert len(server.bodies) == 2
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "secret-of-mine" not in written + capsys.readouterr().out
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UsageError, match="no such environment variable"):
        ask(tmp_path, server, "Pleural Mass", key_variable="MY_KEY", out=str(tmp_path / "b.yaml"))


def test_a_server_that_is_down_or_refuses_ends_the_run_in_a_sentence(tmp_path):
    from aiohttp import web

    async def refuses(body, number):
        return web.Response(status=401)

    with ChatServer(refuses) as server, pytest.raises(UsageError, match="refuses access"):
        ask(tmp_path, server, "Pleural Mass")
    with pytest.raises(CxrltError, match=r"gives no answer \(no connection, 1 times"):
        ask(tmp_path, server, "Pleural Mass", attempts=1)
    assert not (tmp_path / "drafts.yaml").exists()


def test_show_prints_the_description_and_every_style(capsys):
    describe.run(DescribeRequest(findings=["Bulla", "Pleural Mass"], show=True))
    shown = capsys.readouterr().out
    for words in (
        "bulla seen",
        "Is bulla seen in the image?",
        "no bullae seen",
        "lung apices",
        "prompts, style keywords",
    ):
        assert words in shown
    assert "Pleural Mass: no description" in shown


def test_check_tells_what_is_missing_and_what_is_a_draft(tmp_path, capsys):
    describe.run(DescribeRequest(check=True))
    assert "66 findings have a description" in capsys.readouterr().out
    with ChatServer(drafts) as server:
        ask(tmp_path, server, "Pleural Mass")
    request = DescribeRequest(
        findings=["Bulla", "Pleural Mass", "Cervical Rib"], check=True, descriptions=str(tmp_path / "drafts.yaml")
    )
    with pytest.raises(CxrltError, match="1 of 3 findings have no description, 1 a draft"):
        describe.run(request)
    said = capsys.readouterr().out
    assert "No description: Cervical Rib" in said
    assert "Draft, to be read by a person: Pleural Mass" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "which findings"),
        ({"findings": ["Bulla"]}, "needs --url"),
        ({"findings": ["Bulla"], "url": "http://localhost/v1"}, "needs --model"),
        ({"findings": ["Bulla"], "show": True, "check": True}, "give one"),
        ({"findings": ["Bulla"], "show": True, "url": "http://localhost/v1"}, "--url is for drafts"),
        ({"findings": ["Bulla"], "url": "u", "model": "m", "descriptions": "x"}, "--descriptions goes with"),
        ({"findings": ["Bulla"], "url": "u", "model": "m", "out": "x.csv"}, "must end in .yaml"),
        ({"findings": ["Bulla"], "url": "u", "model": "m", "attempts": 0}, "--attempts is 1 or more"),
        ({"show": True}, "which findings"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        DescribeRequest(**options)


def test_a_name_that_is_a_formula_is_never_sent(tmp_path):
    with ChatServer(drafts) as server, pytest.raises(UsageError, match=r"finding '=cmd\(\)': begins with"):
        ask(tmp_path, server, "=cmd()")
    assert server.bodies == []
