"A server that does everything wrong: nothing is lost, nothing is asked twice, costs are right, and the key is nowhere."
import email.utils, json, logging, random, threading, time
from collections import Counter

import pytest

from cooper.reason.hosted import BudgetSpent, Chat, Endpoint, Hosted, HostedError, Rehearsal, user, wait_hint
from house import NOTEBOOKS, ROOT

PRICE = (2., 8.) # US dollars per million tokens


def echo(body): return "you said " + body["messages"][-1]["content"]


def hosted(server, folder, name="hostile", **options):
    budget = {k: options.pop(k) for k in ("tokens", "money") if k in options}
    settings = dict(first_wait=.01, timeout=60., patience=300.) | options # a busy machine is no fault of the server
    return Hosted(Endpoint("echo", server.url, key=settings.pop("key", ""), name=name, price=PRICE, **settings), folder, **budget)


def chats(n): return [Chat([user(f"word {i}")], max_tokens=20) for i in range(n)]


def right(replies): return [r.text for r in replies] == [f"you said word {i}" for i in range(len(replies))]


class Meter:
    "What the server really answered, counted by the server."
    def __init__(self): self.good, self.money, self.tokens = Counter(), 0., 0
    def __call__(self, body):
        said = echo(body)
        n_in, n_out = 5 + len(said)//4, len(said)//2
        self.good[body["messages"][-1]["content"]] += 1
        self.money, self.tokens = self.money + (n_in*PRICE[0] + n_out*PRICE[1])/1e6, self.tokens + n_in + n_out
        return dict(model="echo", error=None, usage=dict(prompt_tokens=n_in, completion_tokens=n_out), # a null error is none
                    choices=[dict(finish_reason="stop", message=dict(role="assistant", content=said))])


FAULTS = [(500, {}, "oops"), (503, {"retry-after": "0.02"}, "busy"), (429, {}, '{"error": {"message": "slow down"}}'), (429, {"retry-after-ms": "20"}, "slow down"),
          "reset", (200, {}, "<html>Welcome to the wifi</html>"), (200, {}, '{"error": {"message": "overloaded", "code": 529}}'), (200, {}, '{"choices": []}'), (200, {}, '["half'), (502, {}, "<html>")]
LOST = 5 # of them: reset, HTML, error inside 200, no message, half JSON


def test_every_fault_once_for_every_question(tmp_path):
    meter, tries, lock = Meter(), Counter(), threading.Lock()
    def fault(n, body): # each question meets its own faults, in its own order, before it is answered
        said = body["messages"][-1]["content"]
        with lock: tries[said] += 1; k = tries[said] - 1
        return FAULTS[(int(said.split()[1]) + k) % len(FAULTS)] if k < len(FAULTS) else None
    asked = chats(12)
    with Rehearsal(meter, fault) as server:
        model = hosted(server, tmp_path, attempts=11, concurrency=6, first_wait=.001)
        replies = model.ask(asked + asked[:5]) # some of them twice
        assert right(replies[:12]) and right(replies[12:])
        assert set(meter.good.values()) == {1} and len(meter.good) == 12
        assert [r.tries for r in replies[:12]] == [11]*12
        assert abs(model.spent.money - meter.money) < 1e-12 and model.spent.tokens == meter.tokens and model.spent.lost == LOST*12
        again = hosted(server, tmp_path, first_wait=.001) # another process
        assert right(again.ask(asked)) and all(r.cached for r in again.ask(asked))
        assert sum(tries.values()) == 11*12 and abs(again.spent.money - meter.money) < 1e-12


def test_a_hint_holds_everybody_back(tmp_path):
    at = []
    def fault(n, body):
        at.append(time.monotonic())
        return (429, {"retry-after": "0.5"}, "later") if n == 1 else None
    with Rehearsal(echo, fault) as server: assert right(hosted(server, tmp_path, concurrency=1).ask(chats(4)))
    assert at[1] - at[0] >= .5 and len(at) == 5


def test_without_a_hint_pauses_grow(tmp_path):
    at = []
    def fault(n, body):
        at.append(time.monotonic())
        return (429, {}, "later") if n <= 4 else None
    with Rehearsal(echo, fault) as server: assert right(hosted(server, tmp_path, first_wait=.1).ask(chats(1)))
    pauses = [b - a for a, b in zip(at, at[1:])]
    assert all(p >= .05*2**i for i, p in enumerate(pauses)) and len(pauses) == 4


def test_a_hint_beyond_patience_is_given_up(tmp_path):
    with Rehearsal(echo, lambda n, body: (429, {"retry-after": "3600"}, "come back tomorrow")) as server:
        start = time.monotonic()
        reply, = hosted(server, tmp_path, patience=1.).ask(chats(1))
    assert reply.text is None and "patience" in reply.error and time.monotonic() - start < 60


def test_a_refused_request_harms_no_other(tmp_path):
    def fault(n, body): return (400, {}, '{"error": {"message": "too rude"}}') if body["messages"][-1]["content"] == "word 2" else None
    with Rehearsal(echo, fault) as server:
        model = hosted(server, tmp_path)
        replies = model.ask(chats(5))
        assert [r.text is None for r in replies] == [False, False, True, False, False] and "too rude" in replies[2].error
        sent = len(server.seen)
        model.ask(chats(5)) # what failed is asked again, and only that
        assert sent == 5 and len(server.seen) == 6


@pytest.mark.parametrize("status, text", [(401, "who are you"), (402, "pay"), (429, '{"error": {"message": "no money", "code": "insufficient_quota"}}')])
def test_what_no_request_gets_around_ends_all(tmp_path, status, text):
    with Rehearsal(echo, lambda n, body: (status, {}, text)) as server:
        with pytest.raises(HostedError, match=str(status)): hosted(server, tmp_path, concurrency=2).ask(chats(30))
        assert len(server.seen) <= 4


def test_half_a_character_is_sent_as_a_replacement(tmp_path):
    "A reply that was cut within a character may be the next question."
    with Rehearsal(echo) as server:
        reply, = hosted(server, tmp_path).ask([Chat([user("a \ud83d\ude00 and \ud800 half")], max_tokens=20)])
    assert reply.text == "you said a \U0001f600 and \ufffd half"


def test_a_budget_is_never_passed(tmp_path):
    meter = Meter()
    with Rehearsal(meter) as server:
        model = hosted(server, tmp_path, money=.002, concurrency=8)
        with pytest.raises(BudgetSpent): model.ask(chats(60))
        assert 0 < meter.money == pytest.approx(model.spent.money) and meter.money <= .002
        kept = model.spent.replies
        assert 0 < kept < 60 and len(list(model.cache.folder.glob("??/*.json"))) == kept
        more = hosted(server, tmp_path) # with no limit the rest is asked, and only the rest
        assert right(more.ask(chats(60))) and set(meter.good.values()) == {1}


def test_a_plan_is_an_upper_bound_and_sends_nothing(tmp_path):
    with Rehearsal(echo) as server:
        model = hosted(server, tmp_path)
        plan = model.plan(chats(9) + chats(3))
        assert not server.calls and (plan.asked, plan.doubles, plan.sent) == (12, 3, 9)
        model.ask(chats(9))
        assert model.spent.prompt_tokens <= plan.prompt_tokens and model.spent.completion_tokens <= plan.completion_tokens and model.spent.money <= plan.money
        assert model.plan(chats(9)).sent == 0


MANY = [ # what servers say when something goes wrong in the middle, or call an answer
    (200, {}, 'data: {"choices": [{"delta": {"content": "you sa"}}]}\n\ndata: {"error": {"message": "overloaded"}}\n\n'), (200, {}, ""), (200, {}, "null"), (200, {}, '{"choices": [{"message": {"content": "you sa'),
    (200, {}, '{"choices": null}'), (200, {}, '{"choices": ["you said"]}'), (200, {}, '{"choices": [{"message": null}]}'), (200, {}, '{"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "cut"}, "message": {"content": "you sa"}}]}'),
    (200, {}, '{"error": "busy", "choices": [{"message": {"content": "you sa"}}]}'), (529, {}, ""), (524, {"content-type": "text/html"}, "<html>a timeout occurred</html>"), (429, {"retry-after": "0"}, ""), (429, {"retry-after": "soon"}, "{}"), (500, {}, "null")]
MANY_LOST = 9 # of them: those with 200; and the gateway that gave up waiting (524)


@pytest.mark.parametrize("first", range(len(MANY)))
def test_each_fault_in_the_middle_is_survived(tmp_path, first):
    meter, faults = Meter(), iter([MANY[first]])
    with Rehearsal(meter, lambda n, body: next(faults, None)) as server:
        model = hosted(server, tmp_path)
        reply, = model.ask(chats(1))
        assert right([reply]) and reply.tries == 2 and sum(meter.good.values()) == 1 and model.spent.lost == (first < MANY_LOST or MANY[first][0] == 524)
        assert model.spent.money == pytest.approx(meter.money)


def test_a_cut_in_the_middle_of_chunks(tmp_path):
    "A server that breaks off between two chunks: no length tells that something is missing."
    import socket
    whole = json.dumps(dict(choices=[dict(message=dict(content="you said word 0"))], usage=dict(prompt_tokens=3, completion_tokens=4))).encode()
    house, asked = socket.create_server(("127.0.0.1", 0)), []
    def serve():
        for n in range(2):
            line, _ = house.accept()
            data = b""
            while b"word 0" not in data: data += line.recv(65536)
            asked.append(data)
            line.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n" + b"%x\r\n%s\r\n" % (len(whole[:40]), whole[:40]))
            if n: line.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(whole[40:]), whole[40:]))
            line.close()
    threading.Thread(target=serve, daemon=True).start()
    model = Hosted(Endpoint("echo", f"http://127.0.0.1:{house.getsockname()[1]}/v1", key="", price=PRICE, first_wait=.01, timeout=60.), tmp_path)
    reply, = model.ask(chats(1))
    house.close()
    assert right([reply]) and len(asked) == 2 and model.spent.lost == 1 and model.spent.replies == 1


def test_every_way_to_say_when(tmp_path):
    "Retry-After as seconds, as milliseconds, as a date; a date that is over is no hint."
    now = 1_700_000_000.
    date = lambda seconds: email.utils.formatdate(now + seconds, usegmt=True)
    for header, seconds in (({"retry-after": "7"}, 7.), ({"retry-after": " 7.5 "}, 7.5), ({"retry-after-ms": "1500"}, 1.5), ({"retry-after": date(9)}, 9.), ({"retry-after": date(-9)}, None), ({"retry-after": "0"}, None),
                            ({"retry-after": "-3"}, None), ({"retry-after": ""}, None), ({"retry-after": "nan"}, None), ({"retry-after": "inf"}, None), ({"retry-after": "3", "x-ratelimit-reset-tokens": "1h"}, 3.), ({}, None)):
        assert wait_hint(header, now) == seconds, header
    at = []
    def fault(n, body):
        at.append(time.time())
        return (429, {"retry-after": email.utils.formatdate(time.time() + 2, usegmt=True)}, "later") if n == 1 else None
    with Rehearsal(echo, fault) as server: assert right(hosted(server, tmp_path).ask(chats(1)))
    assert .9 < at[1] - at[0] < 10 # a date has whole seconds


def test_a_hint_of_nothing_does_not_make_a_storm(tmp_path):
    at = []
    def fault(n, body):
        at.append(time.monotonic())
        return (429, {"retry-after": "0"}, "later") if n <= 4 else None
    with Rehearsal(echo, fault) as server: assert right(hosted(server, tmp_path, first_wait=.1).ask(chats(1)))
    assert all(b - a >= .05*2**i for i, (a, b) in enumerate(zip(at, at[1:])))


SAID = [ # a message -> the words of the reply
    (dict(content=None), ""), (dict(content=None, refusal="I cannot help."), "I cannot help."), (dict(content="", refusal=None), ""), (dict(), ""), (dict(content=[dict(type="text", text="one "), dict(type="text", text="two")]), "one two"),
    (dict(content=["one", dict(type="text", text=dict(value=" two")), dict(type="image_url", image_url="x"), None, 7]), "one two"), (dict(content=[]), ""), (dict(content=3), ""), (dict(content=dict(text="one")), "one"),
    (dict(content="cut \ud83d"), "cut \ufffd"), (dict(content="\ud83d\ude00"), "\U0001f600"), (dict(content=None, refusal=dict(text="No.")), "No."), (dict(content="x", reasoning="hm"), "x")]


@pytest.mark.parametrize("message, words", SAID)
def test_messages_of_every_form_are_replies_and_not_asked_again(tmp_path, message, words):
    with Rehearsal(lambda body: dict(choices=[dict(message=message, finish_reason=None)], model=None, usage=dict(prompt_tokens=10, completion_tokens=2))) as server:
        for _ in range(2):
            reply, = hosted(server, tmp_path).ask(chats(1))
            assert (reply.text, reply.error, reply.finish, reply.money) == (words, "", "", pytest.approx((10*2 + 2*8)/1e6))
        assert reply.cached and len(server.seen) == 1


@pytest.mark.parametrize("usage, tokens", [("missing", (None, None)), (None, (None, None)), ({}, (None, None)), (dict(prompt_tokens=7), (7, None)), (dict(prompt_tokens=None, completion_tokens=3), (None, 3)), ("many", (None, None)),
                                           (dict(prompt_tokens=7.0, completion_tokens=3.0), (7, 3)), (dict(prompt_tokens="7", completion_tokens=-1), (None, None)), (dict(prompt_tokens=True, completion_tokens=float("nan")), (None, None))])
def test_usage_that_is_not_told_is_not_free(tmp_path, usage, tokens):
    "What a reply cost is unknown, said so, and held back from a budget at its worst; also tomorrow."
    def answer(body): return dict(choices=[dict(message=dict(content=echo(body)))]) | ({} if usage == "missing" else dict(usage=usage))
    with Rehearsal(answer) as server:
        model = hosted(server, tmp_path, concurrency=1)
        reply, = model.ask(chats(1))
        assert (reply.prompt_tokens, reply.completion_tokens) == tokens and model.spent.replies == 1
        if None not in tokens: assert model.spent.unpriced == 0 and reply.money == (7*2 + 3*8)/1e6; return
        assert reply.money is None and model.spent.unpriced == 1 and "of unknown cost" in str(model.spent)
        worst = model.worst(chats(1)[0])
        for again in (model, hosted(server, tmp_path)):
            assert again.spent.tokens + again.spent.feared_tokens == worst[0] + worst[1] and again.spent.feared_money == pytest.approx(worst[2])
        poor = hosted(server, tmp_path, money=2.5*worst[2], concurrency=4)
        with pytest.raises(BudgetSpent): poor.ask(chats(40))
        assert len(server.seen) == 2 # the first, and one more that fitted


def test_what_was_lost_counts_against_a_budget(tmp_path):
    with Rehearsal(echo, lambda n, body: (200, {}, "<html>") if n < 4 else None) as server:
        model = hosted(server, tmp_path)
        worst = model.worst(chats(1)[0])[2]
        poor = hosted(server, tmp_path, money=2.5*worst, concurrency=1)
        poor.ask(chats(1))
        assert poor.spent.lost == 3 and poor.spent.feared_money == pytest.approx(3*worst)
        with pytest.raises(BudgetSpent, match="may be spent"): poor.ask(chats(5))
        assert len(server.seen) == 4


def test_a_redirect_ends_all_and_carries_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE_KEY", SECRET)
    with Rehearsal(echo) as other, Rehearsal(echo) as server:
        server.fault = lambda n, body: (307, {"location": f"{other.url}/chat/completions"}, "")
        with pytest.raises(HostedError, match="307"): hosted(server, tmp_path, key="HOSTILE_KEY", concurrency=1).ask(chats(9))
        assert len(server.calls) == 1 and not other.calls


@pytest.mark.parametrize("extra", [dict(stream=True), dict(n=4), dict(max_tokens=3), dict(messages=[])])
def test_extra_fields_do_not_overrule_the_client(extra):
    with pytest.raises(ValueError, match="'extra' has"): Endpoint("m", extra=extra)


# batches


def spoiled(lines): # backwards, one twice, one missing, one cut, one of somebody else, one that failed
    out = lines[::-1]
    bad = json.loads(out[4]) | dict(response=dict(status_code=500, body=dict(error=dict(message="oops"))))
    other = json.loads(out[0]) | dict(custom_id="somebody else's")
    return [out[0], out[0], json.dumps(other).encode(), b"", *out[2:4], json.dumps(bad).encode(), *out[5:-1], out[-1][:len(out[-1])//2]]


def batched(server, folder, **options): return hosted(server, folder, **options)


def test_a_spoiled_batch_is_joined_by_name_and_completed(tmp_path):
    turns, meter = iter([spoiled]), Meter()
    with Rehearsal(meter, batch_lines=lambda lines: next(turns, lambda x: x)(lines)) as server:
        model = batched(server, tmp_path)
        replies = model.batch(chats(10), poll=.02, wait=30, show=False)
        assert right(replies) and len(server.batches) == 2
        assert Counter(meter.good.values()) == {1: 7, 2: 3} # the missing, the cut and the failed one went into a second batch, and no other
        one = lambda n: ((5 + n//4)*PRICE[0] + n//2*PRICE[1])/1e6*.5
        assert model.spent.money == pytest.approx(sum(one(len(r.text)) for r in replies)) # half the price, each once
        assert right(model.batch(chats(10), show=False)) and right(model.ask(chats(10))) and len(server.batches) == 2


def test_an_expired_batch_ends_and_what_came_is_kept(tmp_path):
    kinds = iter(["expired", "completed"])
    status, now = (lambda n: "in_progress" if n < 2 else now.setdefault("is", next(kinds))), {}
    def lines(lines): now.clear(); return lines[:3] if len(lines) == 8 else lines
    with Rehearsal(echo, batch_status=status, batch_lines=lines) as server:
        assert right(batched(server, tmp_path).batch(chats(8), poll=.02, wait=30, show=False))
        assert [len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()] == [8, 5]


def test_a_batch_that_never_ends_is_gone_on_with(tmp_path):
    done = threading.Event()
    with Rehearsal(echo, batch_status=lambda n: "completed" if done.is_set() else "in_progress") as server:
        with pytest.raises(TimeoutError, match="run again"): batched(server, tmp_path).batch(chats(4), poll=.02, wait=.2, show=False)
        done.set()
        assert right(batched(server, tmp_path).batch(chats(6), poll=.02, wait=30, show=False)) # two more than before
        assert [len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()] == [4, 2]


def test_a_kill_between_ordering_and_noting_orders_nothing_twice(tmp_path, monkeypatch):
    with Rehearsal(echo) as server:
        model, note = batched(server, tmp_path), Hosted._note
        def dies(self, job):
            if job.batch_id: raise KeyboardInterrupt
            note(self, job)
        monkeypatch.setattr(Hosted, "_note", dies)
        with pytest.raises(KeyboardInterrupt): model.batch(chats(4), poll=.02, wait=30, show=False)
        monkeypatch.undo()
        assert right(batched(server, tmp_path).batch(chats(4), poll=.02, wait=30, show=False)) and len(server.batches) == 1


def test_a_failed_batch_is_told_and_not_sent_again(tmp_path):
    with Rehearsal(echo, batch_status=lambda n: "failed") as server:
        replies = batched(server, tmp_path).batch(chats(3), poll=.02, wait=30, show=False)
        assert len(server.batches) == 1 and all(r.text is None and "failed" in r.error for r in replies)


def line(custom_id, **more): return json.dumps(dict(id="r", custom_id=custom_id) | more).encode()


def body_of(raw): return json.loads(raw)["response"]["body"]


def ids(lines): return [json.loads(l)["custom_id"] for l in lines]


def test_every_kind_of_broken_line(tmp_path):
    "Twelve questions, each answered in another way; one more round brings those that were not answered, and no other."
    def wreck(lines):
        i, b = ids(lines), [body_of(l) for l in lines]
        return [line(None, response=dict(body=b[0])), line([i[0]], response=dict(body=b[0])), line({}, error=None), b"[1, 2]", b"null", b"\xff\xfe", b'"' + i[0].encode() + b'"', # of nobody
                line(i[1], error={}, response=dict(status_code=200, body=b[1])), line(i[2], error=None, response=dict(body=b[2])), line(i[3], error="", response=dict(status_code="200", body=json.dumps(b[3]))), # answers
                line(i[4], error=None, response=None), line(i[5], response=dict(status_code=200, body="<html>")), line(i[6], response=dict(status_code=429, body=dict(error=dict(message="slow down")))), # errors
                line(i[7], response=dict(status_code=200, body=b[7] | dict(choices=[]))), line(i[7], error=None, response=dict(status_code=200, body=b[7])), line(i[7], error=dict(code="x", message="late")), # an error, an answer, an error
                line(i[8], error=dict(code="batch_expired", message="too late"), response=None), *lines[9:11], lines[11][:-40]] # the last is half-written
    turns = iter([wreck])
    meter = Meter()
    with Rehearsal(meter, batch_lines=lambda lines: next(turns, lambda x: x)(lines)) as server:
        model = hosted(server, tmp_path)
        assert right(model.batch(chats(12), poll=.02, wait=60, show=False))
        first, second = ([r for r in map(json.loads, server.files[b["input_file_id"]].splitlines())] for b in server.batches.values())
        assert [r["body"]["messages"][0]["content"] for r in second] == [f"word {n}" for n in (0, 4, 5, 6, 8, 11)] and len(first) == 12
        replies = model.ask(chats(12))
        assert model.spent.replies == 12 and model.spent.money == pytest.approx(sum(r.money for r in replies) + replies[11].money) # the half-written line tells what it cost
        assert model.spent.lost == 3 and model.spent.feared_money == pytest.approx(2*model.worst(chats(1)[0])[2]/2) # with the line that named nobody, and the HTML


@pytest.mark.parametrize("status, asked_again", [("expired", True), ("cancelled", False), ("failed", False)])
def test_a_batch_that_ends_half_done(tmp_path, status, asked_again):
    "Part of the lines in the output file, the others in the error file: what came is kept, what did not is asked again only if that may help."
    class House(Rehearsal):
        def _look(self, name):
            b, (code, more, text) = self.batches[name], super()._look(name)
            shown = json.loads(text)
            if name != "batch-0" or shown["status"] != "completed": return code, more, text
            if "errors-0" not in self.files:
                rows = [json.loads(l) for l in self.files[b["output_file_id"]].splitlines()]
                self.files["errors-0"] = b"\n".join(line(r["custom_id"], response=None, error=dict(code=f"batch_{status}", message="not done in time")) for r in rows[3:])
                self.files[b["output_file_id"]] = b"\n".join(json.dumps(r).encode() for r in rows[:3])
            return 200, {}, json.dumps(shown | dict(status=status, error_file_id="errors-0", errors=dict(data=[dict(message="for a reason"), None]) if status == "failed" else None))
    meter = Meter()
    with House(meter) as server:
        replies = hosted(server, tmp_path).batch(chats(8), poll=.02, wait=60, show=False)
        assert right(replies[:3]) and len(server.batches) == 1 + asked_again
        if asked_again: assert right(replies) and len(server.files[server.batches["batch-1"]["input_file_id"]].splitlines()) == 5; return
        assert all(r.text is None and f"the batch {status}" in r.error for r in replies[3:]) and ("for a reason" in replies[4].error) == (status == "failed")
        assert right(hosted(server, tmp_path).batch(chats(8), poll=.02, wait=60, show=False)) # run again on purpose: only what is missing goes out
        assert len(server.files[server.batches["batch-1"]["input_file_id"]].splitlines()) == 5 and Counter(meter.good.values()) == {1: 3, 2: 5}


def test_completed_before_the_file_is_named(tmp_path):
    "Asked too early, the file is not there yet: nothing is ordered twice for that."
    class Slow(Rehearsal):
        def _look(self, name):
            code, more, text = super()._look(name)
            shown = json.loads(text)
            return code, more, json.dumps(shown | dict(output_file_id=None) if self.batches[name]["looks"] < 3 else shown)
    with Slow(echo) as server:
        assert right(hosted(server, tmp_path).batch(chats(5), poll=.02, wait=60, show=False)) and len(server.batches) == 1


def test_completed_with_nothing_at_all_ends(tmp_path):
    class Empty(Rehearsal):
        def _look(self, name): return 200, {}, json.dumps(json.loads(super()._look(name)[2]) | dict(output_file_id=None))
    with Empty(echo) as server:
        replies = hosted(server, tmp_path).batch(chats(2), poll=.02, wait=60, rounds=2, show=False)
        assert len(server.batches) == 2 and all("no line of 2 batches answers it" in r.error for r in replies)


def test_html_at_every_step_of_a_batch(tmp_path):
    "The upload, the order, a look and the file each meet an HTML page and a 503 first; one batch is ordered."
    faults = Counter()
    class Wild(Rehearsal):
        def reply_to(self, method, path, headers, data):
            step = (method, path.split("?")[0].split("/")[1], path.endswith("content"))
            faults[step] += 1
            if faults[step] == 1: return 200, {"content-type": "text/html; charset=iso-8859-1"}, "<html>log in first</html>"
            if faults[step] == 2: return 503, {}, "<html>busy</html>"
            return super().reply_to(method, path, headers, data)
    with Wild(lambda body: echo(body) + " \u2026 caf\u00e9") as server:
        replies = hosted(server, tmp_path).batch(chats(4), poll=.02, wait=60, show=False)
        assert [r.text for r in replies] == [f"you said word {n} \u2026 caf\u00e9" for n in range(4)] and len(server.batches) == 1


def test_a_file_without_an_id_is_told(tmp_path):
    class Odd(Rehearsal):
        def _upload(self, headers, data): return 200, {}, '{"object": "file"}'
    with Odd(echo) as server:
        with pytest.raises(HostedError, match="gave no id"): hosted(server, tmp_path).batch(chats(2), poll=.02, wait=5, show=False)


def test_batches_of_two_processes_are_both_kept(tmp_path):
    with Rehearsal(echo, batch_status=lambda n: "in_progress") as server:
        one, two = hosted(server, tmp_path), hosted(server, tmp_path)
        for model, part in ((one, chats(3)), (two, chats(6)[3:])):
            with pytest.raises(TimeoutError): model.batch(part, poll=.01, wait=0, show=False)
        server.batch_status = lambda n: "completed"
        assert right(hosted(server, tmp_path).batch(chats(6), poll=.02, wait=60, show=False)) and len(server.batches) == 2


def test_a_second_process_does_not_order_batches_into_the_same_folder(tmp_path):
    with Rehearsal(echo) as server:
        one, two = hosted(server, tmp_path), hosted(server, tmp_path)
        with one._alone(), pytest.raises(RuntimeError, match="another process orders batches here"): two.batch(chats(3), poll=.01, show=False)
        assert not server.batches and right(two.batch(chats(3), poll=.01, show=False)), "afterwards it may"


def test_a_batch_without_usage_is_not_free(tmp_path):
    with Rehearsal(lambda body: dict(choices=[dict(message=dict(content=echo(body)))], usage=None)) as server:
        model = hosted(server, tmp_path)
        assert right(model.batch(chats(3), poll=.02, wait=60, show=False))
        assert model.spent.unpriced == 3 and model.spent.feared_money == pytest.approx(sum(model.worst(c)[2] for c in chats(3))/2)
        with pytest.raises(BudgetSpent): hosted(server, tmp_path, money=model.spent.feared_money).batch(chats(4), show=False)


# deadlines, and costs that nobody can read


def dripping(where):
    "A server that sends a byte now and then: in its headers, in the body, in chunks, or nothing at all."
    import socket
    house = socket.create_server(("127.0.0.1", 0))
    head = {"headers": b"HTTP/1.1 200 OK\r\nx: ", "body": b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "silence": b"", "interim": b"HTTP/1.1 100 Continue\r\n\r\n"}[where]
    drop = {"chunks": b"1\r\n \r\n", "silence": b"", "interim": b"HTTP/1.1 100 Continue\r\n\r\n"}.get(where, b"a")
    def one(line):
        try:
            line.recv(65536); line.sendall(head)
            while True: time.sleep(.05); line.sendall(drop); assert drop or line.recv(1)
        except (OSError, AssertionError): pass
    def serve():
        while True:
            try: line, _ = house.accept()
            except OSError: return
            threading.Thread(target=one, args=(line,), daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()
    return house, f"http://127.0.0.1:{house.getsockname()[1]}/v1"


@pytest.mark.parametrize("where", ["headers", "body", "chunks", "silence", "interim"])
def test_a_server_that_drips_outlives_no_deadline(tmp_path, where):
    house, url = dripping(where)
    model = Hosted(Endpoint("m", url, key="", price=PRICE, timeout=.6, patience=1.5, first_wait=.01, concurrency=4), tmp_path)
    start = time.monotonic()
    replies = model.ask(chats(3))
    house.close()
    assert time.monotonic() - start < 30 and all(r.text is None and ("took longer than" in r.error or "broke off" in r.error) for r in replies) # without a deadline it drips for ever
    assert model.spent.lost >= 3 and model.spent.feared_money > 0 and model.spent.money == 0
    again = Hosted(model.endpoint, tmp_path).spent # another process knows what may have been billed
    assert (again.lost, again.feared_money) == (model.spent.lost, pytest.approx(model.spent.feared_money))


def test_a_slow_reader_outlives_no_deadline(tmp_path):
    "A server that takes the connection and never reads: a large request cannot be written."
    import socket
    house = socket.create_server(("127.0.0.1", 0))
    model = Hosted(Endpoint("m", f"http://127.0.0.1:{house.getsockname()[1]}/v1", key="", timeout=.5, patience=1., first_wait=.01), tmp_path)
    start = time.monotonic()
    reply, = model.ask([Chat([user("x"*12_000_000)])])
    house.close()
    assert reply.text is None and reply.seconds < 30 and time.monotonic() - start < 60


def test_a_batch_file_that_drips_is_left_for_the_next_run(tmp_path):
    class Slow(Rehearsal):
        slow = True
        def reply_to(self, method, path, headers, data): return "drip" if self.slow and path.endswith("content") else super().reply_to(method, path, headers, data)
    with Slow(echo) as server:
        start = time.monotonic()
        with pytest.raises(HostedError, match="took longer"): hosted(server, tmp_path, patience=1.).batch(chats(3), poll=.02, wait=30, show=False)
        assert time.monotonic() - start < 30
        server.slow = False
        assert right(hosted(server, tmp_path).batch(chats(3), poll=.02, wait=30, show=False)) and len(server.batches) == 1


def test_others_who_hold_everybody_back_do_not_outlast_patience(tmp_path):
    "Every answer is 'later', and always a little later."
    with Rehearsal(echo, lambda n, body: (429, {"retry-after": "0.4"}, "later")) as server:
        start = time.monotonic()
        replies = hosted(server, tmp_path, patience=1.2, attempts=99, concurrency=3).ask(chats(3))
    assert time.monotonic() - start < 20 and all("patience" in r.error for r in replies)


def test_a_cut_line_was_billed(tmp_path):
    "What a line that is cut in the middle cost is read where it stands before the cut; else it is unknown and said so. The second time is billed as well."
    used = dict(prompt_tokens=7, completion_tokens=5)
    def lines(lines):
        if len(lines) != 8: return lines
        out = [json.loads(l) for l in lines]
        first = lambda r: json.dumps(dict(id="r", custom_id=r["custom_id"], response=dict(status_code=200, body=dict(usage=used) | {k: v for k, v in r["response"]["body"].items() if k != "usage"}))).encode()
        return [first(out[0])[:-30], lines[1][:90], b'{"id": "r", "cust', *lines[4:]] # usage before the cut; only the name; not even that; the fourth is missing
    seen = Counter()
    def answer(body): seen[body["messages"][-1]["content"]] += 1; return dict(choices=[dict(message=dict(content=echo(body)))], usage=used)
    one = (7*PRICE[0] + 5*PRICE[1])/1e6/2
    with Rehearsal(answer, batch_lines=lines) as server:
        model = hosted(server, tmp_path)
        assert right(model.batch(chats(8), poll=.02, wait=30, show=False)) and Counter(seen.values()) == {1: 4, 2: 4}
        spent, worst = model.spent, model.worst(chats(1)[0])[2]/2
        assert (spent.replies, spent.lost) == (8, 4) and spent.money == pytest.approx(9*one) # eight replies, and the one whose cost could be read
        assert spent.feared_money == pytest.approx(3*worst) and spent.money < 12*one <= spent.money + spent.feared_money # the truth lies between
        assert "4 sent but never seen whole" in str(spent) and str(hosted(server, tmp_path).spent) == str(spent)


@pytest.mark.parametrize("counts, status, lost", [(None, "completed", 3), (dict(total=8, completed=6, failed=2), "completed", 1), (dict(total=8, completed=5), "completed", 0), (None, "expired", 0), (dict(completed=7), "expired", 2), (dict(completed="many"), "completed", 3)])
def test_missing_lines_may_have_been_billed(tmp_path, counts, status, lost):
    "As many as the server says it answered and did not give; where it does not say, all of a completed batch."
    class House(Rehearsal):
        def _look(self, name):
            code, more, text = super()._look(name)
            return code, more, json.dumps(json.loads(text) | (dict(request_counts=counts, status=status) if name == "batch-0" else {}))
    with House(echo, batch_lines=lambda lines: lines[:5] if len(lines) == 8 else lines) as server:
        model = hosted(server, tmp_path)
        assert right(model.batch(chats(8), poll=.02, wait=30, show=False)) and model.spent.lost == lost


def test_a_page_of_html_for_a_file_orders_nothing_again(tmp_path):
    "Somebody's login page in the place of the output file: told, and the batch stays open."
    for page in ("<html>log in</html>", '{"error": {"message": "later"}}'):
        class Page(Rehearsal):
            def reply_to(self, method, path, headers, data): return (200, {}, page) if path.endswith("content") and self.wild else super().reply_to(method, path, headers, data)
        with Page(echo) as server:
            server.wild, folder = True, tmp_path/str(len(page))
            with pytest.raises(HostedError, match="log in|later"): hosted(server, folder, attempts=3).batch(chats(4), poll=.02, wait=30, show=False)
            server.wild = False
            assert right(hosted(server, folder).batch(chats(4), poll=.02, wait=30, show=False)) and len(server.batches) == 1


def test_what_a_broken_answer_says_of_its_cost_is_believed(tmp_path):
    body = json.dumps(dict(choices=[], usage=dict(prompt_tokens=100, completion_tokens=10)))
    with Rehearsal(echo, lambda n, b: (200, {}, body) if n == 1 else None) as server:
        model = hosted(server, tmp_path)
        reply, = model.ask(chats(1))
        assert model.spent.lost == 1 and model.spent.feared_tokens == 0 and model.spent.money == pytest.approx(reply.money + (100*PRICE[0] + 10*PRICE[1])/1e6)
        assert str(hosted(server, tmp_path).spent) == str(model.spent)


def test_a_killed_process_leaves_what_was_under_way_as_lost(tmp_path):
    import os, signal, subprocess, sys
    asked = threading.Event()
    def hangs(n, body): asked.set(); return "drip"
    with Rehearsal(echo, hangs) as server:
        code = f"import os; os.getpid = lambda: 7; from cooper.reason.hosted import *; Hosted(Endpoint('echo', {server.url!r}, key='', name='hostile', price={PRICE}), {str(tmp_path)!r}).ask([Chat([user('word 0')], max_tokens=20)], show=False)"
        for _ in range(2): # in a container both have the same number
            asked.clear()
            child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | dict(PYTHONPATH=str(ROOT)))
            assert asked.wait(120)
            child.send_signal(signal.SIGKILL); child.wait()
        server.fault = lambda n, body: None
        model = hosted(server, tmp_path)
        assert model.spent.lost == 2 and model.spent.feared_money == pytest.approx(2*model.worst(chats(1)[0])[2])
        assert right(model.ask(chats(1))) and model.spent.replies == 1 and hosted(server, tmp_path).spent.lost == 2


def test_what_a_batch_has_under_way_is_not_asked_at_once_too(tmp_path):
    with Rehearsal(echo, batch_status=lambda n: "in_progress") as server:
        model = hosted(server, tmp_path)
        with pytest.raises(TimeoutError): model.batch(chats(3), poll=.01, wait=0, show=False)
        with pytest.raises(RuntimeError, match="paid twice.*batch-0.*delete"): model.ask(chats(2))
        assert [r.text for r in model.ask(chats(5)[3:])] == ["you said word 3", "you said word 4"] and len(server.seen) == 2 # others may be asked
        server.batch_status = lambda n: "completed"
        assert right(model.batch(chats(3), poll=.01, show=False)) and right(model.ask(chats(3))) and len(server.batches) == 1


def test_batches_under_way_count_against_a_budget(tmp_path):
    with Rehearsal(echo, batch_status=lambda n: "in_progress") as server:
        worst = hosted(server, tmp_path).worst(chats(1)[0])[2]
        with pytest.raises(TimeoutError): hosted(server, tmp_path, money=2*worst).batch(chats(3), poll=.01, wait=0, show=False) # three at half the price
        with pytest.raises(BudgetSpent, match="with those under way"): hosted(server, tmp_path, money=2*worst).batch(chats(6), poll=.01, wait=0, show=False)
        with pytest.raises(BudgetSpent): hosted(server, tmp_path, money=2*worst).ask(chats(4)[3:])
        assert len(server.batches) == 1 and not server.seen


@pytest.mark.parametrize("seed", range(3))
def test_whatever_goes_wrong_the_bill_lies_between(tmp_path, seed):
    "Faults at random, some of them after the server has done the work. What is known to be spent is at most the server's own bill, and with what is feared at least that."
    rng, bill, lock = random.Random(seed), [0.], threading.Lock()
    class House(Rehearsal):
        def completion(self, body):
            said = super().completion(body)
            with lock: bill[0] += (said["usage"]["prompt_tokens"]*PRICE[0] + said["usage"]["completion_tokens"]*PRICE[1])/1e6*(.5 if self.bulk else 1)
            return said
    def fault(n, body):
        with lock: what = rng.choice([*[""]*8, "reset", "html", "half", 429, 500, 504, "empty"])
        if what in (429, 500): return what, {}, "no"
        if what == "": return None
        whole = json.dumps(server.completion(body)) # the work is done, and paid
        return "reset" if what == "reset" else (504, {}, "") if what == 504 else (200, {}, dict(html="<html>", half=whole[:len(whole)*2//3], empty=json.dumps(json.loads(whole) | dict(choices=[])))[what])
    def lines(lines): # cut, doubled, lost, in any order
        out = [l[:rng.randrange(1, len(l))] if rng.random() < .3 else l for l in lines if rng.random() < .8]
        return rng.sample(out + out[:2], len(out) + len(out[:2]))
    with House(lambda body: echo(body), fault, batch_lines=lines) as server:
        server.bulk, model = False, hosted(server, tmp_path, attempts=20, concurrency=4, first_wait=.001)
        assert right(model.ask(chats(10)))
        once = len(server.seen)
        assert right(model.ask(chats(10))) and len(server.seen) == once
        server.bulk = True
        replies = model.batch(chats(24)[10:], poll=.01, wait=60, rounds=12, show=False)
        assert [r.text for r in replies] == [f"you said word {n}" for n in range(10, 24)]
        spent = model.spent
        assert spent.money <= bill[0] + 1e-12 <= spent.money + spent.feared_money + 2e-12 and spent.replies == 24
        assert str(hosted(server, tmp_path).spent) == str(spent)


# secrets

SECRET = "sk-THIS-IS-A-SECRET-0123456789"


def test_the_key_is_in_no_file_no_log_and_no_message(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("HOSTILE_KEY", SECRET)
    monkeypatch.setenv("COOPER_QUIET", "0")
    caplog.set_level(logging.DEBUG)
    seen = []
    def tells(body): return f"your key is {SECRET}"
    def fault(n, body): return (400, {}, f'{{"error": {{"message": "bad key {SECRET}"}}}}') if "0" in body["messages"][-1]["content"] else None
    with Rehearsal(tells, fault) as server:
        model = hosted(server, tmp_path, key="HOSTILE_KEY")
        replies = model.ask(chats(4)) + model.batch(chats(8)[4:], poll=.02, wait=30)
        seen = [h.get("authorization") for _, _, h in server.calls]
        server.fault = lambda n, body: (401, {}, f"{SECRET} is not known")
        with pytest.raises(HostedError) as error: model.ask([Chat([user("more")])])
    assert set(seen) == {f"Bearer {SECRET}"} # it was sent, and only as a header
    said = capfd.readouterr()
    texts = [repr(replies), repr(model), repr(model.endpoint), str(error.value), str(model.spent), str(model.plan(chats(9))), caplog.text, said.out, said.err]
    files = [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) >= 8 and not any(SECRET in t or SECRET[10:] in t for t in texts + files)
    assert "[key]" in replies[1].text and "[key]" in replies[0].error



def test_a_key_in_a_header_or_an_escaped_id_is_in_no_log_and_no_file(tmp_path, monkeypatch, caplog):
    "A server that repeats the key in its headers, which the libraries below log, and in the ids of files and batches, letter by letter."
    monkeypatch.setenv("HOSTILE_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    escaped = "".join(f"\\u{ord(c):04x}" for c in SECRET)
    class Echo(Rehearsal):
        def reply_to(self, method, path, headers, data):
            status, more, text = super().reply_to(method, path.replace("-" + SECRET, ""), headers, data)
            if isinstance(text, str): text = text.replace('"id": "batch-0"', f'"id": "batch-0-{escaped}"')
            return status, more | {"x-key": headers["authorization"]}, text
    with Echo(echo) as server:
        model = hosted(server, tmp_path, key="HOSTILE_KEY")
        assert right(model.ask(chats(2)))
        server.batch_status = lambda n: "in_progress"
        with pytest.raises(TimeoutError) as error: model.batch(chats(5), poll=.01, wait=0, show=False)
    assert "receive_response_headers" in caplog.text and "[key]" in caplog.text # they were logged
    assert SECRET not in caplog.text + str(error.value) and not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET[10:] in p.read_text()]


@pytest.mark.parametrize("key", ["sk-abc", "sk_live_51H8xxYYzz00aa11bb22", "hf_AbCdEfGhIjKlMnOpQrStUvWx12", "0123456789abcdef0123456789abcdef", "AIzaSyA1234567890abcdefghijklmnop"])
def test_a_key_in_the_place_of_its_name_is_not_shown(tmp_path, key):
    from cooper.measure.study import StudyParameters
    for wrong in (lambda: Endpoint("m", key=key), lambda: StudyParameters(["m@http://host/v1"], ("plain",), key=key), lambda: StudyParameters(["rehearsal"], ("plain",), key=key),
                  lambda: StudyParameters([f"m@https://ann:{key}@host/v1"], ("plain",)), lambda: StudyParameters([f"m@https://host/v1?key={key}"], ("plain",)), lambda: StudyParameters([f"https://host/{key}"], ("plain",))):
        with pytest.raises(ValueError) as error: wrong()
        assert key not in str(error.value)


def test_a_key_is_never_a_setting(monkeypatch, tmp_path):
    with pytest.raises(ValueError) as error: Endpoint("m", key=SECRET)
    assert SECRET not in str(error.value)
    with pytest.raises(ValueError): Endpoint("m", base_url=f"https://user:{SECRET}@host/v1")
    monkeypatch.delenv("HOSTILE_KEY", raising=False)
    with Rehearsal(echo) as server:
        with pytest.raises(HostedError, match="HOSTILE_KEY is not set"): hosted(server, tmp_path, key="HOSTILE_KEY").ask(chats(2))
        assert not server.calls


def test_half_a_key_is_still_a_key(tmp_path, monkeypatch):
    "Where a long message is cut, the key is cut out before: no part of it is left at the end."
    monkeypatch.setenv("HOSTILE_KEY", SECRET)
    escaped = "".join(f"\\u{ord(c):04x}" for c in SECRET)
    for pad in range(250, 320, 4):
        for text in (f"{'x'*pad}{SECRET}", json.dumps(dict(error=dict(message="x"*pad + SECRET))), f'{{"error": {{"message": "{"x"*pad}{escaped}"}}}}'):
            with Rehearsal(echo, lambda n, body: (400, {}, text)) as server: reply, = hosted(server, None, key="HOSTILE_KEY").ask(chats(1))
            assert not any(SECRET[:n] in reply.error for n in range(8, len(SECRET))) and len(reply.error) < 500


def test_the_key_is_in_no_line_of_a_batch(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE_KEY", SECRET)
    monkeypatch.setenv("COOPER_QUIET", "0")
    def tell(lines): return [line(json.loads(lines[0])["custom_id"], error=dict(code="400", message=f"bad key {SECRET}")), *lines[1:]]
    with Rehearsal(lambda body: f"key {SECRET}", batch_lines=tell) as server:
        replies = hosted(server, tmp_path, key="HOSTILE_KEY").batch(chats(3), poll=.02, wait=30)
        assert "[key]" in replies[0].error and "[key]" in replies[1].text
    class Fails(Rehearsal):
        def _look(self, name): return 200, {}, json.dumps(dict(id=name, status="failed", errors=dict(data=[dict(message=f"{SECRET} has no quota")])))
    with Fails(echo) as server: replies += hosted(server, tmp_path, name="other", key="HOSTILE_KEY").batch(chats(3), poll=.02, wait=30)
    assert "[key]" in replies[-1].error and not any(SECRET[10:] in t for t in [repr(replies), *(p.read_text() for p in tmp_path.rglob("*") if p.is_file())])


def test_a_key_that_is_a_plain_word_spoils_no_reply(tmp_path, monkeypatch):
    "Local servers are given EMPTY for a key; replies may hold that word."
    monkeypatch.setenv("LOCAL_KEY", "EMPTY")
    with Rehearsal(lambda body: "EMPTY graph") as server: assert hosted(server, tmp_path, key="LOCAL_KEY").ask(chats(1))[0].text == "EMPTY graph"


@pytest.mark.parametrize("known", [True, False])
def test_the_key_is_nowhere_after_a_study(tmp_path, monkeypatch, known):
    "51 through papermill with a server that repeats the key wherever it can; once it answers, once it refuses the key and the notebook fails."
    import papermill
    monkeypatch.setenv("HOSTILE_KEY", SECRET)
    def tells(body): return f'<answer>left</answer> {{"objects": ["{SECRET}"]}}'
    def fault(n, body):
        if not known: return 401, {"www-authenticate": SECRET}, json.dumps(dict(error=dict(message=f"who is {SECRET}?")))
        return (400, {}, f"no {SECRET}") if n % 5 == 0 else None
    with Rehearsal(tells, fault) as server:
        given = dict(models=f"m@{server.url}", key="HOSTILE_KEY", prompts="bare,scene_graph", seen="nothing,words", questions=5, max_tokens=16, out=str(tmp_path/"out"))
        run = lambda: papermill.execute_notebook(NOTEBOOKS["51_prompting_study"], tmp_path/"ran.ipynb", given, progress_bar=False, kernel_name="python3", cwd=ROOT, log_output=True)
        if known: run()
        else:
            with pytest.raises(papermill.PapermillExecutionError) as error: run()
            assert "401" in str(error.value) and "[key]" in str(error.value) and SECRET[10:] not in str(error.value)
        assert server.calls and all(h["authorization"] == f"Bearer {SECRET}" for _, _, h in server.calls)
    files = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert "ran.ipynb" in files and "out/run.json" in files and (not known or "out/answers.jsonl" in files)
    assert not [n for n, data in files.items() if SECRET[10:].encode() in data]
    assert b"[key]" in files["ran.ipynb"] + files.get("out/answers.jsonl", b"")
