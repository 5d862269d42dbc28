"What perceiving is worth: intervals hold what they say, a killed run goes on as if nothing had been, and the flagged file is one that training reads."
import itertools, json, math
from pathlib import Path

import numpy as np
import pytest

from cooper.cooperate import gain as room
from cooper.cooperate.gain import Gain, GainParameters, Gains, as_trace, difference_interval, flag_of, gain_rows, gains, main, measure_gain, read_rollouts, roll, write_flagged
from cooper.cooperate.rewards import RewardFunction, Verdict
from cooper.model.engine import Cooper
from cooper.reason.data import read_rl
from grpo_house import miniature, room as picture

# ---- intervals
def held(n, m, p, q, confidence): # probability that the interval holds the true difference
    pmf = lambda n, p: np.array([math.comb(n, i)*p**i*(1 - p)**(n - i) for i in range(n + 1)])
    inside = lambda a, b: (lambda i: i[0] - 1e-9 <= p - q <= i[1] + 1e-9)(difference_interval(a, n, b, m, confidence))
    return sum(x*y for (a, x), (b, y) in itertools.product(enumerate(pmf(n, p)), enumerate(pmf(m, q))) if inside(a, b))

@pytest.mark.parametrize("n,m,confidence", [(4, 4, .9), (8, 8, .9), (8, 5, .95), (1, 3, .8)])
def test_an_interval_holds_at_least_as_often_as_it_says(n, m, confidence):
    rates = np.linspace(0, 1, 9)
    assert min(held(n, m, p, q, confidence) for p in rates for q in rates) >= confidence - 2e-3 # the worst rate is searched on a grid

def test_intervals_are_as_they_should_be():
    for a, b in itertools.product(range(6), repeat=2):
        low, high = difference_interval(a, 5, b, 5)
        assert -1 <= low <= a/5 - b/5 <= high <= 1 and difference_interval(b, 5, a, 5) == pytest.approx((-high, -low))
        if a: assert difference_interval(a - 1, 5, b, 5)[0] <= low
        wide = difference_interval(a, 5, b, 5, .99)
        assert wide[0] <= low and high <= wide[1]
    assert difference_interval(0, 0, 3, 3) == (-1., 1.) and difference_interval(64, 64, 0, 64)[0] > .9
    for bad in ((5, 4, 0, 4), (-1, 4, 0, 4)):
        with pytest.raises(ValueError, match="expected 0 <= right <= judged"): difference_interval(*bad)
    with pytest.raises(ValueError, match="confidence is 90"): difference_interval(1, 2, 1, 2, 90)

def test_a_question_that_gains_nothing_seldom_gets_a_flag():
    for p in (.1, .3, .5, .8):
        pmf = [math.comb(8, i)*p**i*(1 - p)**(8 - i) for i in range(9)]
        share = lambda f: sum(pmf[a]*pmf[b] for a in range(9) for b in range(9) if flag_of(*difference_interval(a, 8, b, 8)) == f)
        assert share("positive") <= .05 + 1e-6 and share("negative") <= .05 + 1e-6

def test_the_rule():
    assert [flag_of(*i) for i in ((.1, .5), (-.5, -.1), (-.1, .1), (0., .5), (-.5, 0.))] == ["positive", "negative", "boundary", "boundary", "boundary"]
    assert flag_of(.1, .5, .1) == "boundary" and flag_of(-.5, -.3, .2) == "negative"

# ---- rollouts
@pytest.fixture(scope="module")
def small(): return Cooper(*miniature(scale=3.))

@pytest.fixture
def data(tmp_path):
    "Three questions about two pictures, and the file's path."
    (tmp_path/"rgb").mkdir()
    for n in range(2): picture(n).save(tmp_path/"rgb"/f"{n}.png")
    rows = [dict(question=q, answer=a, image=f"rgb/{i}.png", data_id=f"q{n}", kind=kind) for n, (q, a, i, kind) in enumerate(
        [("How many cubes are there?", "2", 0, "count"), ("Which is closer?", "cube", 1, "depth"), ("Which is larger?", "cube", 1, "depth")])]
    file = tmp_path/"rl.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file

OPTIONS = dict(k=3, batch_size=4, temperature=1., max_new_tokens=5, max_turns=2)
def same(records): return [(r["stamp"], r["data_id"], r["mode"], r["k"], r["steps"]) for r in records]

def test_each_question_k_times_in_each_mode(small, data, tmp_path):
    rows = gain_rows(data)
    records = roll(small, rows, tmp_path/"out", **OPTIONS)
    assert [(r["data_id"], r["mode"], r["k"]) for r in records] == [(f"q{n}", m, k) for n in range(3) for m in ("cooperate", "reason") for k in range(3)]
    assert len({r["stamp"] for r in records}) == 18 and len({json.dumps(r["steps"]) for r in records}) > 6, "every rollout has a seed of its own"
    assert same(read_rollouts(tmp_path/"out"/"rollouts.jsonl")) == same(records)
    t = as_trace(records[0], rows[0]["question"])
    assert t.mode == "cooperate" and t.written and t.question == rows[0]["question"] and t.own == t.written

def test_a_killed_run_goes_on(small, data, tmp_path, monkeypatch):
    rows = gain_rows(data)
    whole = roll(small, rows, tmp_path/"whole", **OPTIONS)
    monkeypatch.setattr(room, "append_jsonl", lambda *a, real=room.append_jsonl, left=iter(range(2)): real(*a) if next(left, None) is not None else (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): roll(small, rows, tmp_path/"cut", **OPTIONS)
    monkeypatch.undo()
    file = tmp_path/"cut"/"rollouts.jsonl"
    assert len(read_rollouts(file)) == 8
    with open(file, "ab") as f: f.write(b'{"stamp": "12, cut off by a ki')
    assert len(read_rollouts(file)) == 8
    assert same(roll(small, rows, tmp_path/"cut", **OPTIONS | dict(batch_size=7))) == same(whole), "another batch, the same rollouts"
    assert len(read_rollouts(file)) == 18 and b"a ki" not in file.read_bytes()
    before = file.read_bytes()
    assert same(roll(small, rows, tmp_path/"cut", **OPTIONS)) == same(whole) and file.read_bytes() == before, "append-only, and nothing to add"

def test_what_changes_the_rollouts_changes_their_stamps(small, data, tmp_path):
    rows, few = gain_rows(data, questions=1), OPTIONS | dict(k=1)
    stamps = lambda **o: {r["stamp"] for r in roll(small, rows, tmp_path/"out", **few | o)}
    first = stamps()
    assert first < stamps(k=2), "more rollouts: those that are there are kept"
    assert not first & stamps(temperature=.5) and not first & stamps(seed=1) and not first & stamps(max_new_tokens=4)
    picture(7).save(Path(rows[0]["picture"]))
    assert not first & stamps()
    n = len(read_rollouts(tmp_path/"out"/"rollouts.jsonl"))
    assert n == len({r["stamp"] for r in read_rollouts(tmp_path/"out"/"rollouts.jsonl")}) == 12

def test_two_processes_make_one_file(small, data, tmp_path):
    rows = gain_rows(data)
    alone, few = roll(small, rows, tmp_path/"alone", **OPTIONS | dict(k=1)), OPTIONS | dict(k=1)
    assert len(roll(small, rows, tmp_path/"two", share=(0, 2), **few)) == 4
    assert same(roll(small, rows, tmp_path/"two", share=(1, 2), **few)) == same(alone)

def test_a_broken_line_has_a_place(tmp_path):
    file = tmp_path/"rollouts.jsonl"
    for text, message in (("not json\n", "rollouts.jsonl:1: not JSON"), ('{"stamp": "a"}\n', "rollouts.jsonl:1: expected a rollout with stamp")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message): read_rollouts(file)
    assert read_rollouts(tmp_path/"none.jsonl") == []

# ---- gains
def record(data_id, mode, k, answer, drew=0):
    steps = [dict(kind="draw", modality="depth")]*drew + [dict(kind="write", text=f"<think>a</think><answer>{answer}</answer>", truncated=False, given=False)]
    return dict(stamp=f"{data_id}{mode}{k}", data_id=data_id, mode=mode, k=k, steps=steps, tokens=3, finished=True)

def records(right, wrong_without): # of 8 in each mode, for a question with answer 2
    return [record("q0", "cooperate", k, 2 if k < right else 3, k % 2) for k in range(8)] + [record("q0", "reason", k, 2 if k < wrong_without else 3) for k in range(8)]

def test_gains_are_counted(data):
    rows = gain_rows(data, questions=1)
    for a, b, flag in ((7, 1, "positive"), (1, 8, "negative"), (5, 4, "boundary")):
        g, = gains(rows, records(a, b))
        assert (g.right, g.judged, g.right_without, g.judged_without, g.drew, g.flag) == (a, 8, b, 8, .5, flag) and g.gain == (a - b)/8
        assert (g.low, g.high) == difference_interval(a, 8, b, 8)
    with pytest.raises(ValueError, match="there are no rollouts of q0 in mode reason; `roll` makes them"): gains(rows, records(7, 1)[:8])

def test_what_is_not_judged_counts_on_neither_side(data):
    class Silent(RewardFunction): # as a judge that is down for half of the rollouts
        def judged(self, traces, rows): return [Verdict(None if i % 2 else float(t.answer == "2"), "") for i, t in enumerate(traces)]
    g, = gains(gain_rows(data, questions=1), records(8, 0), reward=Silent())
    assert (g.right, g.judged, g.right_without, g.judged_without) == (4, 4, 0, 4)
    class Down(RewardFunction):
        def judged(self, traces, rows): return [Verdict(None, "")]*len(traces)
    g, = found = gains(gain_rows(data, questions=1), records(8, 0), reward=Down())
    assert g.gain is None and g.flag == "boundary" and (g.low, g.high) == (-1., 1.)
    assert "-" in repr(found) and found._repr_html_() and found.figure()

def test_the_table_by_kind():
    one = lambda n, kind, a, b: Gain(f"q{n}", kind, a, 8, b, 8, 1., *difference_interval(a, 8, b, 8), flag_of(*difference_interval(a, 8, b, 8)))
    found = Gains([one(0, "depth", 8, 0), one(1, "depth", 8, 8), one(2, "<count>", 0, 8)])
    depth, count, every = found.by_kind()
    assert (depth["questions"], depth["gain"], depth["positive"], depth["boundary"], count["negative"], every["questions"]) == (2, .5, 1, 1, 1, 3)
    assert depth["low"] == 0. and depth["high"] == 1. and count["low"] is None and every["right"] == 16/24
    assert "&lt;count&gt;" in found._repr_html_() and len(repr(found).splitlines()) == 4 and len(found.figure().axes) == 2

# ---- the flagged file
def test_training_reads_the_flagged_file(small, data, tmp_path):
    p = GainParameters(data=str(data), out=str(tmp_path/"a"/"out"), rollouts=2, max_new_tokens=5, max_turns=2, batch_size=8)
    found = measure_gain(p, small)
    back = read_rl(tmp_path/"a"/"out"/"rl.jsonl", images=tmp_path/"a"/"out")
    assert [r["flag"] for r in back] == [g.flag for g in found] and back[0]["image"] == "../../rgb/0.png" and "picture" not in back[0]
    assert [(r["question"], r["answer"], r["data_id"], r["kind"]) for r in back] == [(r["question"], r["answer"], r["data_id"], r["kind"]) for r in gain_rows(data)]
    assert {"gain", "gain_low", "gain_high", "right_with", "judged_with", "right_without", "judged_without", "drew"} <= set(back[0])
    from cooper.cooperate.grpo import as_dataset, rl_rows
    assert as_dataset(rl_rows(tmp_path/"a"/"out"/"rl.jsonl"))["flag"][:] == [g.flag for g in found]
    run = json.loads((tmp_path/"a"/"out"/"run.json").read_text())
    assert run["status"] == "finished" and run["notes"]["rollouts"] == 12 and run["notes"]["by_kind"][-1]["questions"] == 3 and run["data"]
    assert (tmp_path/"a"/"out"/"gain.png").stat().st_size > 1000
    before = (tmp_path/"a"/"out"/"rl.jsonl").read_bytes()
    assert list(measure_gain(p, small)) == list(found) and (tmp_path/"a"/"out"/"rl.jsonl").read_bytes() == before

def test_a_share_writes_no_file_before_all_are_there(small, data, tmp_path):
    p = lambda share: GainParameters(data=str(data), out=str(tmp_path/"out"), rollouts=1, max_new_tokens=4, max_turns=1, share=share)
    assert measure_gain(p("0/2"), small) is None and not (tmp_path/"out"/"rl.jsonl").exists()
    assert len(measure_gain(p("1/2"), small)) == 3 and (tmp_path/"out"/"rl.jsonl").exists()

def test_a_picture_that_is_gone_is_not_flagged(data, tmp_path):
    rows = gain_rows(data, questions=1)
    found = gains(rows, records(7, 1))
    Path(rows[0]["picture"]).unlink()
    with pytest.raises(ValueError, match="'image' is '../rgb/0.png'"): write_flagged(tmp_path/"out"/"rl.jsonl", rows, found)
    assert not (tmp_path/"out"/"rl.jsonl").exists()

def test_questions_have_names_of_their_own(data):
    text = data.read_text()
    data.write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="data_id 'q0' comes twice; expected one name for each question"): gain_rows(data)
    data.write_text(text.replace("rgb/1.png", "rgb/9.png"))
    with pytest.raises(ValueError, match="rl.jsonl:2: 'image' is 'rgb/9.png'"): gain_rows(data)
    with pytest.raises(FileNotFoundError, match="no such file or folder"): gain_rows(data.parent/"none")
    assert len(gain_rows("data/scenes/test", questions=7)) == 7

# ---- parameters and command line
@pytest.mark.parametrize("given,message", [(dict(rollouts=0), "'rollouts' is 0; expected at least 1"), (dict(with_mode="reason"), "'with_mode' is 'reason'; expected perceive or cooperate"),
    (dict(without_mode="cooperate"), "'without_mode' is 'cooperate'; expected direct or reason"), (dict(temperature=0.), "'temperature' is 0.0; expected more than 0"), (dict(confidence=1.), "'confidence' is 1.0"),
    (dict(top_p=0.), "'top_p' is 0.0"), (dict(share="2/2"), "'share' is '2/2'"), (dict(share="x"), "'share' is 'x'"), (dict(margin=-1.), "'margin' is -1.0")])
def test_parameters_are_checked(given, message):
    with pytest.raises(ValueError, match=message): GainParameters(**given)

def test_the_command_line(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(room, "measure_gain", lambda p: seen.append(p) or Gains([Gain("q", "depth", 2, 2, 0, 2, 1., -.1, 1., "boundary")]))
    (tmp_path/"run.yaml").write_text("rollouts: 16\ncheckpoint: some/folder\n")
    main(["--config", str(tmp_path/"run.yaml"), "--data", "my.jsonl", "--confidence", "0.8"])
    assert seen == [GainParameters(checkpoint="some/folder", data="my.jsonl", rollouts=16, confidence=.8)] and "rl.jsonl" in capsys.readouterr().out
    with pytest.raises((ValueError, SystemExit)): main(["--rolouts", "3"])
    monkeypatch.setattr(room, "measure_gain", lambda p: None)
    main(["--share", "0/2"])
    assert "share 0/2 is done; other shares are not" in capsys.readouterr().out

def test_a_judge_may_judge(small, data, tmp_path, monkeypatch):
    from cooper.reason.hosted import HostedError, Rehearsal
    monkeypatch.setattr(room, "roll", lambda *a, **k: records(8, 0))
    p = lambda out, key, judge: GainParameters(data=str(data), questions=1, key=key, out=str(tmp_path/out), judge=judge)
    with Rehearsal(lambda body: str("ANSWER\n3\n" in body["messages"][1]["content"])) as house: # of another opinion than the rules
        found, = measure_gain(p("out", "", f"j@{house.url}"), small)
    assert (found.right, found.right_without, found.flag, len(house.seen)) == (0, 8, "negative", 2)
    assert any((tmp_path/"out"/"judge").rglob("*.json")), "replies are kept"
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(HostedError, match="NO_KEY is not set"): measure_gain(p("other", "NO_KEY", "j@https://example.org/v1"), small)
    assert not (tmp_path/"other").exists(), "nothing is sampled for a judge that cannot be asked"
