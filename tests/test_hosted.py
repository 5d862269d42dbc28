"A server that does everything wrong: nothing is lost, nothing is asked twice, costs are right, and the key is nowhere."
import json, logging, threading, time
from collections import Counter

import pytest

from cooper.reason.hosted import BudgetSpent, Chat, Endpoint, Hosted, HostedError, Rehearsal, user

PRICE = (2., 8.) # US dollars per million tokens


def echo(body): return "you said " + body["messages"][-1]["content"]


def hosted(server, folder, name="hostile", **options):
    budget = {k: options.pop(k) for k in ("tokens", "money") if k in options}
    settings = dict(first_wait=.01, timeout=5., patience=30.) | options
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
    assert reply.text is None and "patience" in reply.error and time.monotonic() - start < 10


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


def test_a_key_is_never_a_setting(monkeypatch, tmp_path):
    with pytest.raises(ValueError) as error: Endpoint("m", key=SECRET)
    assert SECRET not in str(error.value)
    with pytest.raises(ValueError): Endpoint("m", base_url=f"https://user:{SECRET}@host/v1")
    monkeypatch.delenv("HOSTILE_KEY", raising=False)
    with Rehearsal(echo) as server:
        with pytest.raises(HostedError, match="HOSTILE_KEY is not set"): hosted(server, tmp_path, key="HOSTILE_KEY").ask(chats(2))
        assert not server.calls
