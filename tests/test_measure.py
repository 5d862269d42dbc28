"Statistics against cases computed by hand, evaluations that are killed, and input that is not what it should be."
import itertools, json, math, shutil, time

import numpy as np
import pytest

from cooper.core import NotBuilt, read_jsonl, resolve, seed_for, write_jsonl
from cooper.reason.hosted import weights_hash
from cooper.measure.benchmarks import (_perceived, LATER, Case, Estimate, Perception, benchmark, bootstrap, compare, evaluate, grid,
                                       mean_maps, perception, resized_depth, resized_labels, save_tables, segmented, summarise, summarise_perception, swap_test)
from cooper.model.modalities import MODALITIES, DepthMap, Modality, SegmentMap
from cooper.perceive.data import read_amg
from cooper.perceive.metrics import METRICS
from cooper.perceive.scenes import CLASSES
from cooper.reason.data import KINDS, place
from pretend import Cooper

HELD_OUT = read_amg("data/scenes/test/amg.jsonl", limit=5)


def right(bench): # an answerer that knows
    truth = {(q.question, q.data_id): q.answer for q in bench.questions}
    return lambda question, seed: truth[question, seed[-1]]


def rows(right, kind="depth", mode="direct", checkpoint=""):
    return [dict(checkpoint=checkpoint, mode=mode, kind=kind, data_id=f"{kind}{i}", correct=bool(c), chance=.5, constant=i % 2 == 0, valid=True,
                 calls=1, tokens=4, seconds=.5) for i, c in enumerate(right)]


def plain(records): return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


# --- statistics

def test_bootstrap_by_hand():
    # of two values, 1/4 of the resamples is {0, 0}, 1/4 is {1, 1}: the middle 95 % is everything
    assert bootstrap([0, 1]) == Estimate(.5, 0., 1., 2)
    assert bootstrap([1] * 7) == Estimate(1., 1., 1., 7)
    e = bootstrap([0] * 50 + [1] * 50, resamples=20000) # binomial: half width 1.96 sqrt(1/4/100) = 0.098
    assert e.low == pytest.approx(.402, abs=.012) and e.high == pytest.approx(.598, abs=.012)


def test_bootstrap_is_seeded_and_leaves_global_state_alone():
    np.random.seed(1); before = np.random.get_state()[1].copy()
    values = np.arange(20) / 19
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)
    assert (np.random.get_state()[1] == before).all()


def test_questions_about_one_picture_are_drawn_together():
    rng = np.random.default_rng(1)
    values, pictures = rng.random(24) < .5, rng.integers(0, 8, 24)
    by_hand = np.random.default_rng(seed_for("bootstrap", 0, 8, 2000)).integers(0, 8, (2000, 8))
    places = [np.flatnonzero(pictures == p) for p in dict.fromkeys(pictures.tolist())]
    means = [np.concatenate([values[places[k]] for k in pick]).mean() for pick in by_hand]
    e = bootstrap(values, clusters=pictures.tolist())
    assert (e.low, e.high) == pytest.approx(tuple(np.quantile(means, [.025, .975]))) and e.n == 24 and e.value == values.mean()
    same = bootstrap(values, lambda v: v.mean(), resamples=2000, clusters=pictures.tolist())
    assert (same.low, same.high) == pytest.approx((e.low, e.high)) # a mean, and a statistic that is one
    with pytest.raises(ValueError, match="3 labels for 24 values"): bootstrap(values, clusters="abc")


def test_exchanged_answers_against_all_exchanges_and_the_sign_test():
    for wins, losses in ((8, 2), (5, 0), (3, 3), (0, 1), (40, 25)):
        n, k = wins + losses, min(wins, losses)
        sign = min(1., 2*sum(math.comb(n, i) for i in range(k + 1))/2**n)
        assert swap_test([1.]*wins + [-1.]*losses + [0.]*7) == pytest.approx(sign)
    rng = np.random.default_rng(2)
    for _ in range(20):
        change, labels = rng.integers(-10, 11, 12)/10, rng.integers(0, 6, 12).tolist()
        sums = np.array([change[np.array(labels) == l].sum() for l in set(labels)])
        ways = [abs(sum(s*x for s, x in zip(signs, sums))) >= abs(sums.sum()) - 1e-9 for signs in itertools.product((1, -1), repeat=len(sums))]
        assert swap_test(change, labels) == pytest.approx(np.mean(ways))
    start = time.perf_counter()
    assert 0 <= swap_test(rng.integers(-10, 11, 3000)/10) <= 1 and time.perf_counter() - start < 20 # a whole benchmark of mean relative accuracies


def test_a_statistic_of_matrices_is_resampled_by_picture():
    counts = np.array([[[9, 1], [0, 10]], [[5, 5], [0, 10]]])
    e = bootstrap(counts, lambda c: segmented(c, "ab")["pixel_accuracy"], resamples=200)
    assert e.value == pytest.approx(34 / 40) and (e.low, e.high) == (pytest.approx(30 / 40), pytest.approx(38 / 40))


def test_summary_by_hand():
    t = summarise(rows([1, 1, 0, 1]) + rows([0, 0], kind="size"))
    depth, size, both = t.rows
    assert [r["kind"] for r in t.rows] == ["depth", "size", "all"]
    assert (depth["n"], depth["accuracy"].value, size["accuracy"].value, both["accuracy"].value) == (4, .75, 0., .5)
    assert (depth["constant"], both["chance"], both["calls"]) == (.5, .5, 1.)
    assert grid(t).rows[0]["direct"] == depth["accuracy"]


def test_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    before = (rng.random(60) < .5).astype(int)
    after = before.copy(); after[np.flatnonzero(before == 0)[:6]] = 1 # six questions gained, none lost
    e = compare(rows(before), rows(after)).rows[0]
    assert (e["gained"], e["lost"]) == (6, 0) and e["difference"].value == pytest.approx(.1)
    assert e["difference"].low > 0 # sure, although the two accuracies overlap
    assert bootstrap(before).high > bootstrap(after).low


def test_compare_uses_only_what_both_answered():
    t = compare(rows([1, 0, 1]), rows([1, 1, 1, 1, 1]))
    assert t.rows[-1]["n"] == 3
    with pytest.raises(ValueError, match="share no question"): compare(rows([1], mode="reason"), rows([1]))


def test_tables_survive_json_and_markdown(tmp_path):
    t = summarise(rows([1, 0, 1, 1]))
    path = save_tables(tmp_path, answers=t)
    assert json.loads(path.read_text())["answers"]["rows"][0]["accuracy"]["value"] == .75
    lines = t.to_markdown().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "75 % [" in t._repr_html_()


# --- which questions

def test_benchmark_is_balanced_and_the_same_for_everyone():
    a, b = benchmark(count=60), benchmark(count=60)
    assert [q.data_id for q in a.questions] == [q.data_id for q in b.questions]
    assert [sum(q.kind == k for q in a.questions) for k in KINDS] == [12] * 5
    assert len({q.data_id for q in a.questions}) == 60
    assert [q.data_id for q in benchmark(count=60, seed=1).questions] != [q.data_id for q in a.questions]
    assert all(a.picture(q).is_file() for q in a.questions)


def test_flipped_questions_are_asked_where_there_are_some():
    bench = benchmark(count=9, polarity="flipped", kinds=("depth", "distance", "size"))
    assert all(q.polarity == "flipped" for q in bench.questions)
    with pytest.raises(ValueError, match="0 flipped questions of kind 'count'"): benchmark(count=10, polarity="flipped")


@pytest.mark.parametrize("name", LATER)
def test_later_benchmarks_are_refused_by_name(name):
    with pytest.raises(NotBuilt, match=name): benchmark(name)


def test_bad_requests_name_what_would_be_right(tmp_path):
    with pytest.raises(ValueError, match="unknown; expected 'scenes'"): benchmark("sceens")
    with pytest.raises(ValueError, match="ask for fewer"): benchmark(count=100_000)
    with pytest.raises(ValueError, match="expected at least 5"): benchmark(count=2)
    with pytest.raises(FileNotFoundError, match="scenes.jsonl"): benchmark(folder=tmp_path)


# --- asking

def test_who_knows_everything_is_always_right():
    bench = benchmark(count=20)
    records = evaluate(Cooper(right(bench)), bench)
    assert len(records) == 80 and all(r["correct"] for r in records)
    assert {r["mode"]: r["calls"] for r in records} == dict(direct=0, reason=0, perceive=1, cooperate=1)
    wrong = evaluate(Cooper(lambda q, seed: "a sofa"), bench, ("direct",))
    assert not any(r["correct"] for r in wrong)
    assert all(r["constant"] == (place(q) == bench.constants[q.kind]) for r, q in zip(wrong, bench.questions))


def test_a_killed_evaluation_goes_on(tmp_path):
    bench, out = benchmark(count=10), tmp_path / "answers.jsonl"
    whole = evaluate(Cooper(right(bench)), bench, ("direct", "reason"))
    with pytest.raises(KeyboardInterrupt): evaluate(Cooper(right(bench), dies_after=8), bench, ("direct", "reason"), out, batch_size=4)
    assert len(read_jsonl(out)) == 8 # two whole batches
    second = Cooper(right(bench))
    assert plain(evaluate(second, bench, ("direct", "reason"), out, batch_size=3)) == plain(whole)
    assert len(second.asked) == 12 # nothing was asked twice


def test_records_of_another_checkpoint_are_not_taken(tmp_path):
    bench, out = benchmark(count=5), tmp_path / "answers.jsonl"
    evaluate(Cooper(), bench, ("direct",), out)
    other = Cooper(right(bench), weight=1.)
    assert all(r["correct"] for r in evaluate(other, bench, ("direct",), out)) and len(other.asked) == 5
    again = Cooper(right(bench), weight=1.)
    evaluate(again, bench, ("direct",), out, seed=1)
    assert len(again.asked) == 5 # another seed


def test_records_of_another_protocol_or_picture_are_not_taken(tmp_path):
    folder, out = tmp_path / "test", tmp_path / "answers.jsonl"
    shutil.copytree(resolve("data/scenes/test"), folder)
    bench = benchmark(count=5, folder=folder)
    def asked(**protocol):
        c = Cooper()
        c.processor.protocol |= protocol
        evaluate(c, bench, ("direct",), out)
        return len(c.asked)
    assert (asked(), asked()) == (5, 0)
    assert asked(max_new_tokens=3) == 5 and asked(system=dict(direct="Say nothing.")) == 5
    assert asked() == 0, "the rows of the first protocol are still there"
    path = bench.picture(bench.questions[0])
    path.write_bytes(path.read_bytes() + b"\0") # still a picture
    assert asked() == sum(q.image == bench.questions[0].image for q in bench.questions)


def test_checkpoints_that_share_a_file_keep_each_others_rows(tmp_path):
    bench, out = benchmark(count=5), tmp_path / "answers.jsonl"
    evaluate(Cooper(weight=0.), bench, ("direct",), out)
    evaluate(Cooper(weight=1.), bench, ("reason",), out)
    first = Cooper(weight=0.)
    evaluate(first, bench, ("direct",), out)
    assert not first.asked and len(read_jsonl(out)) == 10
    drawings = tmp_path / "drawings.jsonl"
    for w in (0., 1., 0.): last = Cooper(weight=w); perception(last, HELD_OUT, out=drawings)
    assert not last.drawn and len(read_jsonl(drawings)) == 2 * len(HELD_OUT)


def test_a_torn_file_of_records_is_named(tmp_path):
    out = tmp_path / "answers.jsonl"
    out.write_text('{"data_id": "a", "mode"')
    with pytest.raises(ValueError, match="answers.jsonl:1"): evaluate(Cooper(), benchmark(count=5), ("direct",), out)


def test_the_hash_of_weights_sees_one_weight():
    assert weights_hash(Cooper(weight=0.).model) == weights_hash(Cooper(weight=0.).model) != weights_hash(Cooper(weight=1e-6).model)


# --- drawings

def test_depth_is_not_aligned():
    exact, half = (perception(Cooper(factor=f), HELD_OUT).table.where(measure="AbsRel")[0]["drawn"].value for f in (1., .5))
    assert exact < .02 and half == pytest.approx(.5, abs=.02) # drawn half as deep: nothing forgives it


def test_relative_depth_is_aligned_and_says_so():
    d = np.linspace(1, 5, 64, dtype=np.float32).reshape(8, 8)
    c = Case("", None, d, np.zeros((8, 8), int), DepthMap(.1 * d - .05, 0., 1., "relative"))
    assert c.depth_quality["absrel"] < 1e-5
    t = summarise_perception([Perception([c], [dict(depth=c.depth_quality, mean_map=c.depth_quality, aligned=True)])])
    assert "aligned to the truth" in t.note


def test_pixels_without_truth_do_not_count():
    d = np.full((4, 4), 2., np.float32); d[0] = 0 # the sensor saw nothing
    c = Case("", None, d, np.zeros((4, 4), int), DepthMap(np.full((4, 4), 3.), 0., 12.))
    assert c.depth_quality["n"] == 12 and c.depth_quality["absrel"] == pytest.approx(.5)


def test_segments_are_read_by_name_not_by_number():
    labels = np.array([[0, 1], [2, 2]])
    shuffled = dict(reversed(CLASSES.items()))
    drawn = SegmentMap(np.vectorize(lambda i: list(shuffled).index(list(CLASSES)[i]))(labels), shuffled)
    assert Case("", None, np.ones((2, 2)), labels, None, drawn).confusion.trace() == 4


def test_resizing_keeps_metres_and_classes():
    assert set(resized_labels(np.array([[0, 3]]), (4, 8)).ravel()) == {0, 3}
    up = resized_depth(np.array([[2., 4.]], np.float32), (2, 4))
    assert up.min() == 2. and up.max() == 4.


def test_mean_maps_never_see_their_own_scene():
    assert [m[0, 0] for m in mean_maps([np.full((1, 1), x) for x in (1., 2., 6.)])] == [4., 3.5, 1.5]
    with pytest.raises(ValueError, match="at least 2"): mean_maps([np.ones((2, 2))])


def test_killed_drawings_go_on(tmp_path):
    out = tmp_path / "drawings.jsonl"
    whole = perception(Cooper(), HELD_OUT, out=out)
    write_jsonl(out, read_jsonl(out)[:2])
    second = Cooper()
    again = perception(second, HELD_OUT, out=out, batch_size=2)
    assert again.rows == whole.rows and len(second.drawn) == 2 * 3 # two modalities of three scenes
    assert all((a.drawn_depth.values == b.drawn_depth.values).all() for a, b in zip(again.cases, whole.cases))


def test_only_what_the_protocol_has_is_drawn_and_measured():
    c, both = Cooper(), Cooper()
    c.processor.protocol["modalities"].pop("segmentation")
    one, two = perception(c, HELD_OUT, checkpoint="depth only"), perception(both, HELD_OUT, checkpoint="both")
    assert {name for name, *_ in c.drawn} == {"depth"} and {r["what"] for r in one.table.rows} == {"depth"}
    t = summarise_perception([one, two])
    assert "drawn depth only" in t.where(measure="AbsRel")[0] and "drawn depth only" not in t.where(measure="mIoU")[0]


def test_a_new_modality_needs_its_registration_and_its_metric(monkeypatch):
    class Normals(Modality): name, tag, prompt, metric = "normals", "normals", "Draw the normals.", "angle"
    monkeypatch.setitem(MODALITIES, "normals", Normals)
    monkeypatch.setitem(METRICS, "angle", lambda drawn, true: dict(degrees=float(np.abs(drawn - true).mean())))
    case = lambda off: Case("", None, np.ones((2, 2)), truth=dict(normals=np.zeros(3)), drawn=dict(normals=np.full(3, off)))
    assert case(3.).quality("normals") == dict(degrees=3.)
    p = Perception([], [_perceived(case(off), np.ones((2, 2))) for off in (2., 4.)])
    row, = p.table.rows
    assert (row["what"], row["measure"], row["drawn"].value) == ("normals", "normals degrees", 3.)
