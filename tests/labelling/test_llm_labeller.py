"""Labels from a server that answers, fails, hangs, lies; every server here is the test's own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from aiohttp import web
from chat_server import ChatServer, finding_of, other_process, reads, reply, report_of

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.llm import labeller, pace, prompt
from cxrlt_ray.labelling.llm.labeller import Output, label_by_llm
from cxrlt_ray.labelling.llm.options import LlmOptions
from cxrlt_ray.labelling.reports import Report
from cxrlt_ray.labelling.rules import ContextRule, FindingRule, Rules
from cxrlt_ray.storage import Store

NAMES = ("Edema", "Mass", "Fracture", "Normal")
RULES = Rules(
    (
        FindingRule(finding="Edema", definition="Fluid in the lungs."),
        FindingRule(finding="Mass", definition="A lesion above 3 cm."),
        FindingRule(finding="Rib Fracture", definition="A broken rib.", implies=("Fracture",), group="bones"),
        FindingRule(finding="Fracture", definition="A broken bone.", group="bones"),
        FindingRule(finding="Normal", definition="No finding."),
    ),
    NAMES,
    ContextRule(triggers={}),
)
SECRET = "ZQXwilhelmine"  # in every text: it must stay out of whatever is printed
TEXTS = (f"{SECRET}. No edema. Possible mass.", f"{SECRET}. Edema. Normal otherwise.", f"{SECRET}. Fracture.")
REPORTS = [Report(f"s{k}", "1", text) for k, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.01)


@pytest.fixture
def run(tmp_path, capfd):
    """Label reports by a server; leaves the lines that were said in run.said. No text is ever printed or raised."""

    def run(server, reports=REPORTS, rules=RULES, mentioned=lambda text: set(), **options):
        options = {"url": getattr(server, "url", server), "model": "m", "cache": str(tmp_path / "answers")} | options
        run.said = []
        try:
            labels = label_by_llm(
                LlmOptions(**options), reports, rules, mentioned, Output(Store(str(tmp_path))), say=run.said.append
            )
            return labels if labels is None else {labels.study_id: labels for labels in labels}
        except CxrltError as error:
            run.said.append(str(error))
            raise
        finally:
            out, err = capfd.readouterr()
            assert SECRET not in "".join([*run.said, out, err])
            assert "Traceback" not in err

    return run


def served(answer):
    return ChatServer(answer)


def status(code, headers=None, body=None):
    """A fault whose body quotes the request, as some servers do."""

    def response(request):
        return web.json_response(body or {"error": {"message": str(request)}}, status=code, headers=headers)

    return response


def failing(response, times):
    """A server that answers each question after `times` failures."""
    seen = Counter()

    async def answer(body, number):
        question = report_of(body), finding_of(body)
        seen[question] += 1
        return await reads(body) if seen[question] > times else response(body)

    return answer


def test_labels_follow_chexperts_convention_with_the_quote_as_evidence(run):
    with served(reads) as server:
        labels = run(server)
    assert [labels[study].labels for study in ("s0", "s1", "s2")] == [
        {"Edema": 0, "Mass": -1},
        {"Edema": 1, "Normal": 0},  # a report with edema is not normal, whatever the model says
        {"Fracture": 1},
    ]
    evidence = {e.finding: e for e in labels["s0"].evidence}
    assert evidence["Mass"].phrase == "Possible mass"
    assert TEXTS[0][evidence["Mass"].begin : evidence["Mass"].end] == "Possible mass"
    assert labels["s0"].source == "all"


def test_what_a_finding_implies_is_labelled_with_it(run):
    async def answer(body, number):
        is_rib = finding_of(body) == "Rib Fracture"
        return reply({"evidence": "Fracture" if is_rib else "", "label": "present" if is_rib else "not_mentioned"})

    with served(answer) as server:
        rules = Rules(RULES.every, ("Fracture", "Rib Fracture"), RULES.context)
        labels = run(server, REPORTS[2:], rules)["s2"]
    assert labels.labels == {"Rib Fracture": 1, "Fracture": 1}
    assert {e.finding: e.phrase for e in labels.evidence}["Fracture"] == "Rib Fracture: Fracture"


def test_the_place_of_a_quote_is_in_the_column_that_it_is_from(run):
    text = "Lungs clear.\nNo edema."
    report = Report("s", None, text, (("findings", 0, 12), ("impression", 13, 22)))
    with served(reads) as server:
        evidence = run(server, [report])["s"].evidence
    assert [(e.column, e.begin, e.end) for e in evidence] == [("impression", 0, 8)]


def test_a_request_asks_one_finding_at_temperature_0_with_the_seed_and_the_schema(run):
    with served(reads) as server:
        run(server, REPORTS[:1], seed=7, parameters='{"top_p": 0.5, "seed": null}')
        assert sorted(map(finding_of, server.bodies)) == sorted(NAMES)
        run(server, REPORTS[:1], seed=7)
    for body in server.bodies[:4]:
        assert (body["model"], body["temperature"], body["top_p"], "seed" in body) == ("m", 0, 0.5, False)
        assert body["response_format"] == prompt.response_format()
    assert server.bodies[4]["seed"] == 7  # other parameters, other answers


def test_equal_texts_are_asked_once_and_empty_ones_and_long_ones_never(run):
    others = [
        Report("equal", None, TEXTS[0]),
        Report("empty", None, " \n"),
        Report("long", None, "edema " * 10_000),
    ]
    with served(reads) as server:
        labels = run(server, [*REPORTS, *others])
    assert len(server.bodies) == len(TEXTS) * len(NAMES)
    assert labels["equal"].labels == labels["s0"].labels
    assert labels["empty"].labels == labels["long"].labels == {}
    assert any("1 reports are too long" in line for line in run.said)


def test_the_first_question_of_a_text_is_answered_before_the_others_are_sent(run):
    """So that the server has read the text once when they come."""
    seen = []

    async def answer(body, number):
        seen.append(("asked", report_of(body)))
        await asyncio.sleep(0.05)
        seen.append(("answered", report_of(body)))
        return await reads(body)

    with served(answer) as server:
        run(server)
    for text in TEXTS:
        assert [what for what, of in seen if of == text][:3] == ["asked", "answered", "asked"]


def test_an_answered_question_is_not_sent_again(run):
    with served(reads) as server:
        first = run(server)
        sent = len(server.bodies)
        assert run(server) == first
        assert len(server.bodies) == sent
        run(server, [*REPORTS, Report("new", None, "Mass.")])
        assert len(server.bodies) == sent + len(NAMES)


def test_concurrency_is_bounded_and_reached(run):
    async def slow(body, number):
        await asyncio.sleep(0.1)
        return await reads(body)

    with served(slow) as server:
        run(server, [Report(f"s{k}", None, f"Edema {k}.") for k in range(60)], concurrency=30)
    assert server.most == 30


def test_at_100_ms_latency_throughput_is_20_times_that_of_one_request_at_a_time(run, tmp_path):
    """The better of three rounds: other processes on this machine slow 64 requests at a time, and one not."""
    reports = [Report(f"s{k}", None, f"Edema {k}.") for k in range(250)]
    with other_process(delay=0.1) as url:

        def rate(concurrency, part, name):
            started = time.monotonic()
            run(url, part, concurrency=concurrency, cache=str(tmp_path / name))
            return len(part) * len(NAMES) / (time.monotonic() - started)

        alone = rate(1, reports[:6], "alone")
        rates = [rate(64, reports, f"together-{k}") for k in range(3)]
    assert max(rates) / alone > 20


@pytest.mark.parametrize("code", [401, 403, 404, 302, 418])
def test_a_refusal_ends_the_run_at_the_first_request_with_one_sentence(run, code):
    async def answer(body, number):
        return status(code, {"Location": "http://127.0.0.1:9/"} if code == 302 else None)(body)

    with served(answer) as server:
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:\d+ .*{code}") as caught:
            run(server)
        assert len(server.bodies) == 1
    assert str(caught.value).count(". ") == 0


def test_a_refusal_in_mid_run_ends_it_and_keeps_the_answers(run):
    async def answer(body, number):
        return await reads(body) if number < 5 else status(401)(body)

    with served(answer) as server:
        with pytest.raises(UsageError, match="401"):
            run(server, concurrency=1)
        assert len(server.bodies) == 6
        server.answer = reads
        run(server)
        assert len(server.bodies) == 6 + len(TEXTS) * len(NAMES) - 5


def test_a_used_up_quota_is_no_fault_to_wait_for(run):
    async def answer(body, number):
        return status(429, body={"error": {"code": "insufficient_quota", "message": SECRET}})(body)

    with served(answer) as server, pytest.raises(UsageError, match="quota is used up"):
        run(server)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 529])
def test_faults_that_pass_are_sent_again(run, code):
    with served(failing(status(code), 2)) as server:
        labels = run(server)
    assert labels["s0"].labels == {"Edema": 0, "Mass": -1}
    assert len(server.bodies) == 3 * len(TEXTS) * len(NAMES)


def test_a_server_that_says_how_long_to_wait_gets_no_request_meanwhile(run):
    times = []

    async def answer(body, number):
        times.append(time.monotonic())
        return status(429, {"Retry-After": "1"})(body) if number == 4 else await reads(body)

    with served(answer) as server:
        run(server, concurrency=1)
    assert times[5] - times[4] >= 1
    assert any("wait 1 s" in line for line in run.said)


def test_too_many_requests_are_no_failed_attempts(run):
    with served(failing(status(429), 5)) as server:
        assert run(server, attempts=2)["s0"].labels == {"Edema": 0, "Mass": -1}


async def hang(body, number):
    await asyncio.sleep(60)


async def cut(body, number):
    raise ConnectionResetError  # aiohttp's server closes the connection


async def no_json(body, number):
    return web.Response(text=f"<html>{SECRET}</html>")


async def other_json(body, number):
    return web.json_response({"choices": [{"message": report_of(body)}]})


async def endless(body, number):
    return web.Response(body=b"x" * (5 << 20))


@pytest.mark.parametrize("answer", [hang, no_json, other_json, endless])
def test_a_server_that_never_answers_ends_the_run_with_one_sentence(run, answer):
    with served(answer) as server, pytest.raises(CxrltError, match=r"127\.0\.0\.1:\d+ does not answer \(1 "):
        run(server, timeout=0.2, attempts=2)
    assert len(server.bodies) == 2


def test_no_server_at_all_is_one_sentence(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(CxrltError, match=r"does not answer \(1 no connection\)"):
            run(url, attempts=2)


def test_hanging_and_cut_requests_are_sent_again(run):
    seen = Counter()

    async def answer(body, number):
        seen[finding_of(body)] += 1
        if seen[finding_of(body)] > 1:
            return await reads(body)
        if finding_of(body) == "Mass":
            await asyncio.sleep(60)
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        raise ConnectionResetError if finding_of(body) == "Edema" else web.HTTPBadGateway(text=str(response))

    with served(answer) as server:
        assert run(server, REPORTS[:1], timeout=0.5)["s0"].labels == {"Edema": 0, "Mass": -1}


def test_a_server_that_goes_down_ends_the_run_before_every_question_has_failed(run):
    async def answer(body, number):
        return await reads(body) if number < 5 else status(500)(body)

    reports = [Report(f"s{k}", None, f"Edema {k}.") for k in range(50)]
    with served(answer) as server, pytest.raises(CxrltError, match=r"does not answer .*the same command goes on"):
        run(server, reports, concurrency=4, attempts=2, max_failed=1.0)
    assert len(server.bodies) < 60


BAD = {
    "bad JSON": (reply('{"evidence": '), prompt.NO_JSON),
    "foreign quote": (reply({"evidence": "Cardiomegaly.", "label": "present"}), prompt.FOREIGN),
    "truncated": (reply({"evidence": "", "label": "not_mentioned"}, "length"), prompt.TRUNCATED),
    "no quote": (reply({"evidence": "", "label": "present"}), prompt.NO_QUOTE),
}


def copied(response):
    return web.Response(body=response.body, content_type="application/json")


@pytest.mark.parametrize("kind", BAD)
def test_an_unusable_reply_is_asked_again_then_recorded_as_failed_and_listed(run, tmp_path, kind):
    response, reason = BAD[kind]

    async def answer(body, number):
        bad = finding_of(body) == "Mass" and report_of(body) == TEXTS[0]
        return copied(response) if bad else await reads(body)

    with served(answer) as server:
        labels = run(server, max_failed=0.1)
        assert labels["s0"].labels == {"Edema": 0}
        assert len(server.bodies) == len(TEXTS) * len(NAMES) + 2
        listed = pd.read_csv(tmp_path / labeller.UNANSWERED)
        assert listed.to_numpy().tolist() == [["s0", "Mass", reason]]
        assert any("1 labels stay empty" in line and reason in line for line in run.said)
        run(server, max_failed=0.1)
        assert len(server.bodies) == len(TEXTS) * len(NAMES) + 2  # it is not asked again
        server.answer = reads
        assert run(server, retry_failed=True)["s0"].labels == {"Edema": 0, "Mass": -1}
        assert len(server.bodies) == len(TEXTS) * len(NAMES) + 3
    assert not (tmp_path / labeller.UNANSWERED).exists()


def test_after_a_foreign_quote_the_model_is_told_what_was_wrong(run):
    async def answer(body, number):
        asked_again = prompt.CORRECTIONS[prompt.FOREIGN] in body["messages"][-1]["content"]
        return await reads(body) if asked_again else reply({"evidence": "Cardiomegaly.", "label": "present"})

    with served(answer) as server:
        assert run(server)["s0"].labels == {"Edema": 0, "Mass": -1}


def test_more_failures_than_the_ceiling_end_the_run_and_again_the_next(run):
    async def answer(body, number):
        return reply("nonsense") if finding_of(body) == "Mass" else await reads(body)

    with served(answer) as server:
        with pytest.raises(
            CxrltError, match=r"2 of 12 questions have no usable answer, and 1 may \(--max-failed 0\.02"
        ):
            run(server, concurrency=1)
        sent = len(server.bodies)
        with pytest.raises(CxrltError, match="2 of 12 questions"):
            run(server, concurrency=1)
        assert len(server.bodies) == sent
        with pytest.raises(CxrltError, match=r"3 of 12 questions .* 2 may .*at most 2"):
            run(server, concurrency=1, max_failed=1.0, most_failed=2)
        assert len(run(server, max_failed=0.25)) == 3


def test_a_request_that_the_server_declines_fails_alone_and_is_sent_again_by_the_next_run(run):
    async def answer(body, number):
        too_long = report_of(body) == TEXTS[1] and finding_of(body) == "Edema"
        body_of_fault = {"error": {"code": "context_length_exceeded", "message": SECRET}}
        return status(400, body=body_of_fault)(body) if too_long else await reads(body)

    with served(answer) as server:
        run(server)
        assert any("400, context_length_exceeded" in line or "no reply" in line for line in run.said)
        sent = len(server.bodies)
        server.answer = reads
        assert run(server)["s1"].labels == {"Edema": 1, "Normal": 0}
        assert len(server.bodies) == sent + 1


def test_mentioned_asks_what_the_rules_mention_and_an_audit_of_the_rest(run):
    reports = [Report(f"s{k}", None, f"Edema {k}. Mass.") for k in range(40)]
    with served(reads) as server:
        labels = run(server, reports, ask="mentioned", mentioned=lambda text: {"Edema"}, audit=0.25)
        asked = Counter(map(finding_of, server.bodies))
        assert asked["Edema"] == 40
        audited = sum(asked.values()) - 40
        assert 10 < audited < 55  # of 120
        missed = asked["Mass"]
        assert any(f"of {audited} random pairs" in line and f"calls {missed} present" in line for line in run.said)
        assert labels["s0"].labels["Edema"] == 1
        run(server, reports, ask="mentioned", mentioned=lambda text: {"Edema"}, audit=0.25)
        assert len(server.bodies) == 40 + audited  # the same are drawn


def test_plan_sends_nothing_and_leaves_nothing(run, tmp_path):
    with served(reads) as server:
        assert run(server, plan=True, price_in=2.5, price_out=10.0, rate=2.0) is None
        assert server.bodies == []
        assert not (tmp_path / "answers").exists()
        plan = "\n".join(run.said)
        assert "Requests: 12 on 3 texts" in plan
        assert "Time: about 6 s at 2 a second" in plan
        assert "Cost: about 0.01 at 2.5 and 10 a million tokens" in plan
        run(server)
        run(server, plan=True)
        assert "Nothing is left to ask: all answers are in the cache." in run.said


def test_the_rate_is_kept(run):
    with served(reads) as server:
        started = time.monotonic()
        run(server, rate=20.0)
        assert time.monotonic() - started > 10 / 20  # 12 requests, of which the first goes alone


def test_the_key_is_sent_from_the_environment_and_only_where_it_is_asked_for(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    monkeypatch.setenv("MY_KEY", f"sk-{SECRET}")
    with served(reads) as server:
        run(server, REPORTS[:1])
        assert "Authorization" not in server.headers[-1]
        run(server, REPORTS[1:2], key_variable="MY_KEY")
        assert server.headers[-1]["Authorization"] == f"Bearer sk-{SECRET}"
        with pytest.raises(UsageError, match="--key-variable NONE_SUCH: there is no such environment variable"):
            run(server, key_variable="NONE_SUCH")


def test_two_runs_do_not_share_a_cache_at_a_time(run, tmp_path):
    from cxrlt_ray.storage.claim import claim

    with served(reads) as server, claim(Store(str(tmp_path / "answers"))):
        with pytest.raises(CxrltError, match="wait, or name another folder"):
            run(server)
        assert server.bodies == []


def test_a_run_says_first_where_reports_go(run):
    with served(reads) as server:
        run(server)
        assert run.said[0] == f"Reports are sent to {server.url[7:-3]}, on this machine"
    run("http://gpu.example:8000/v1", plan=True)
    assert run.said[0] == "Reports LEAVE THIS MACHINE: their whole text is sent to gpu.example:8000, UNENCRYPTED"
    run("https://api.example/v1", plan=True)
    assert run.said[0] == "Reports LEAVE THIS MACHINE: their whole text is sent to api.example"


KILLED = """
import sys
from cxrlt_ray.labelling.llm.labeller import Output, label_by_llm
from cxrlt_ray.labelling.llm.options import LlmOptions
from cxrlt_ray.labelling.reports import Report
from cxrlt_ray.storage import Store
sys.path.insert(0, sys.argv[3])
from test_llm_labeller import RULES
reports = [Report(f"s{k}", None, f"Edema {k}.") for k in range(100)]
options = LlmOptions(url=sys.argv[1], model="m", cache=sys.argv[2] + "/answers", concurrency=8)
list(label_by_llm(options, reports, RULES, set, Output(Store(sys.argv[2]))))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_after_a_kill_no_answered_question_is_sent_again(tmp_path, number):
    answered = Counter()

    async def answer(body, number):
        response = await reads(body)
        await asyncio.sleep(0.02)
        answered[report_of(body), finding_of(body)] += 1
        return response

    command = [sys.executable, "-c", KILLED]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with served(answer) as server:
        words = [*command, server.url, str(tmp_path), str(Path(__file__).parent)]
        process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while len(server.bodies) < 150:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(number)
        process.wait(30)
        time.sleep(0.2)
        assert len(answered) < 400
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert len(answered) == 400
    again = sum(count - 1 for count in answered.values())
    assert again <= 8  # those whose answers were on their way


def test_the_command_labels_a_table_by_a_model_with_the_rule_files_findings(tmp_path, capsys):
    from cxrlt_ray import label

    table = pd.DataFrame({"study_id": ["s1", "s2", "s3"], "text": ["FINDINGS: No edema.", "Possible mass. Edema.", ""]})
    table.to_csv(tmp_path / "reports.csv", index=False)
    request = {
        "reports": str(tmp_path / "reports.csv"),
        "out": str(tmp_path / "labels.csv"),
        "findings": ["Edema", "Mass"],
        "by": "llm",
        "model": "m",
        "cache": str(tmp_path / "answers"),
    }
    with served(reads) as server:
        request["url"] = server.url
        label.run(label.LabelRequest(**request, plan=True))
        assert not (tmp_path / "labels.csv").exists()
        label.run(label.LabelRequest(**request, uncertain="one"))
        label.run(label.LabelRequest(**request | {"out": str(tmp_path / "null.csv")}, uncertain="null"))
        assert len(server.bodies) == 4
    assert capsys.readouterr().out.startswith("Reports are sent to 127.0.0.1")
    labels = pd.read_csv(tmp_path / "labels.csv", index_col="study_id")
    assert labels["Edema"].to_dict() == pytest.approx({"s1": 0, "s2": 1, "s3": float("nan")}, nan_ok=True)
    assert labels["Mass"].loc["s2"] == 1
    assert pd.read_csv(tmp_path / "null.csv", index_col="study_id")["Mass"].isna().all()
    evidence = pd.read_parquet(tmp_path / "evidence.parquet")
    assert evidence[evidence.study_id == "s2"].set_index("finding")["phrase"]["Mass"] == "Possible mass"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://x/v1"}, "--url goes with --by llm alone"),
        ({"by": "llm", "model": "m"}, "--by llm needs --url"),
        ({"by": "llm", "url": "http://x/v1"}, "--by llm needs --model"),
        ({"ask": "some"}, "--ask takes all or mentioned"),
        ({"audit": 0.1}, "--audit goes with --ask mentioned"),
        ({"ask": "mentioned", "audit": 2.0}, "--audit is a share"),
        ({"max_failed": -1.0}, "--max-failed is a share"),
        ({"concurrency": 0}, "--concurrency is 1 or more"),
        ({"timeout": float("nan")}, "--timeout is above 0"),
        ({"price_in": 1.0}, "--price-in .* goes with --plan"),
        ({"cache": "s3://bucket/answers"}, "--cache is a folder of this machine"),
        ({"explain": "s1"}, "leave out --by llm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    from cxrlt_ray.label import LabelRequest

    llm = {} if {"by", "url"} & set(options) else {"by": "llm", "url": "http://x/v1", "model": "m"}
    with pytest.raises(UsageError, match=message):
        LabelRequest(reports="reports.csv", **llm, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "--url is no address"),
        ({"url": "ftp://host/v1"}, "--url is no address"),
        ({"url": "http://user:pw@host/v1"}, "--url holds a user, a password"),
        ({"url": "http://host:99999/v1"}, "--url is no address"),
        ({"parameters": "top_p=1"}, "--parameters is no JSON object"),
        ({"parameters": '{"messages": []}'}, "--parameters may not set 'messages'"),
    ],
)
def test_addresses_and_parameters_that_are_wrong_are_refused_and_no_password_is_repeated(run, options, message):
    url = options.pop("url", "http://localhost/v1")
    with pytest.raises(UsageError, match=message) as caught:
        run(url, **options)
    assert "pw" not in str(caught.value)
