"Blind baselines, edits, regret and other maps, against cases counted by hand and against a small model with random weights."
from dataclasses import replace

import numpy as np
import pytest
import torch

import cooper.model.engine as engine_module
from cooper.core import resolve
from cooper.measure.benchmarks import benchmark, read_case
from cooper.measure.protocols import Exam, Item, mcq_prompt, plain_mean, scene_exam
from cooper.measure.records import CooperAnswers, Plain, collect, read_records, read_trace, score
from cooper.measure.robustness import (MapAnswers, Majority, OtherChoice, _given, blind, changed, choice_regret, edited, flipped, map_figure, map_help, regret,
                                       rotated, shown_maps, spoilt, with_maps)
from cooper.model.modalities import DepthMap, decoded_picture, modality
from cooper.model.sequence import Sequence
from cooper.model.traces import Step
from cooper.perceive.data import read_amg
from grpo_house import miniature

CLOSER = "Which is closer to the camera?"
ITEMS = tuple(Item(str(n), (), CLOSER, mcq_prompt(CLOSER, ("cube", "ball")), a, "letter", ("cube", "ball"), "depth") for n, a in enumerate("AAB"))
EXAM = Exam("made up", ITEMS, lambda pairs: [plain_mean(pairs)])


def rows(right, calls, mode):
    return score(EXAM, [dict(id=i.id, sample=0, stamp="", key=EXAM.key, exam="", model="m", mode=mode, config=mode, reply=i.answer if r else "AB"[i.answer == "A"], error="", calls=c, tokens=1, seconds=0.)
                        for i, r, c in zip(ITEMS, right, calls)])


def test_blind_pictures_are_never_the_own_ones():
    exam = scene_exam(benchmark("scenes", count=15))
    for seed in range(3):
        hidden = blind(exam, "shuffled", seed)
        assert all(a.pictures[0].hash != b.pictures[0].hash and a.prompt == b.prompt and a.id == b.id for a, b in zip(exam.items, hidden.items))
    grey = blind(exam, "grey").items[0].pictures[0]
    assert grey.open().getcolors() == [(grey.open().width*grey.open().height, (128,)*3)] and grey.open().size == exam.items[0].pictures[0].open().size
    assert blind(exam, "none").items[0].pictures == () and len({blind(exam, h).key for h in ("grey", "shuffled", "none")} | {exam.key}) == 4
    with pytest.raises(ValueError, match="no other question than"): blind(Exam("same", (exam.items[0],)*2, exam.measures), "shuffled")


def test_majority_by_hand(tmp_path):
    s = score(EXAM, collect(EXAM, Majority(ITEMS), tmp_path/"r.jsonl"))
    assert s.measures[0].estimate().value == pytest.approx(2/3) and {r["reply"] for r in s.rows} == {"A"}


def test_an_edit_keeps_the_right_answer_right():
    for item in ITEMS:
        right = item.options[ord(item.answer) - 65]
        turned = rotated(item)
        assert turned.options[ord(turned.answer) - 65] == right and f"\n{turned.answer}. {right}\n" in turned.prompt
        other = flipped(item)
        assert other.options[ord(other.answer) - 65] != right and "farther" in other.prompt and "closer" not in other.prompt
    assert flipped(replace(ITEMS[0], options=("left", "right"))) is None and flipped(replace(ITEMS[0], rule="yes_no")) is None
    assert flipped(replace(ITEMS[0], question="What is this?")) is None
    with pytest.raises(ValueError, match="expected one of flipped, rotated, polite, shouted"): edited(EXAM, "turned")
    with pytest.raises(ValueError, match="applies to none of the 1"): edited(Exam("x", (replace(ITEMS[0], question="What?"),), EXAM.measures), "flipped")
    assert len(edited(EXAM, "polite")) == len(edited(EXAM, "shouted")) == 3 and CLOSER.upper() in edited(EXAM, "shouted").items[0].prompt


def test_who_always_says_a_fails_flip_and_rotation(tmp_path):
    says_a = lambda e: score(e, collect(e, Plain("a", lambda *_: "A"), tmp_path/"r.jsonl"))
    table = changed(says_a(EXAM), {n: says_a(edited(EXAM, n)) for n in ("flipped", "rotated", "polite")})
    assert [r["both"] for r in table.rows] == [0., 0., pytest.approx(2/3)]
    assert table.rows[0]["difference"].value == pytest.approx(-1/3) and table.rows[2]["difference"].value == 0.
    with pytest.raises(ValueError, match="answered by b direct; expected a direct"): changed(says_a(EXAM), dict(x=score(EXAM, collect(EXAM, Plain("b", lambda *_: "A"), tmp_path/"r.jsonl"))))


def test_regret_by_hand():
    row = regret(rows([0, 1, 0], [1, 1, 0], "cooperate"), rows([1, 1, 0], [0]*3, "reason"), rows([0, 1, 1], [1]*3, "perceive")).rows[-1]
    assert row["called"] == pytest.approx(2/3) and row["calling"].value == .5 and row["not_calling"].value == 1. and row["gain"].value == 0.
    with pytest.raises(ValueError, match="different protocols"): regret(rows([1]*3, [0]*3, "a"), rows([1]*3, [0]*3, "b"), score(EXAM, rows([1]*3, [0]*3, "c").rows, rules="published"))
    # the same by hand after the same thought: 0 and 1 called (the other choice was right, wrong), 2 did not (right)
    row = choice_regret(rows([0, 1, 0], [1, 1, 0], "cooperate"), rows([1, 0, 1], [0, 0, 1], "the other choice")).rows[-1]
    assert row["calling"].value == .5 and row["not_calling"].value == 1. and row["gain"].value == pytest.approx(((0 - 1) + (1 - 0) + (1 - 0))/3)
    with pytest.raises(ValueError, match="different protocols"): choice_regret(rows([1]*3, [0]*3, "a"), score(EXAM, rows([1]*3, [0]*3, "c").rows, rules="published"))


# --- other maps, other choices: a small model with random weights, into whose mouth the first thought is put

@pytest.fixture(scope="module")
def small(): return engine_module.Cooper(*miniature(seed=3, scale=4.0))


@pytest.fixture(scope="module")
def exam(): return scene_exam(benchmark("scenes", count=10))


def cases():
    rows = {r.rgb: r for r in read_amg(resolve("data/scenes/test/amg.jsonl"), pictures=False)}
    return lambda item: read_case(rows[item.pictures[0].path])


class Speaks(CooperAnswers): # every fifth question is answered at once, for all others a depth map is drawn
    def _requests(self, engine, items, seeds):
        requests = super()._requests(engine, items, seeds)
        return [self._begun(engine, r, i) for r, i in zip(requests, items)]
    def _begun(self, engine, r, item):
        if item.kind == "relation": r.prefix = "<think>Hm.</think>\n<answer>left</answer>"; return r
        words = "<think>Hm.</think>\n" + modality("depth").request
        said = engine.processor.text(words)
        return replace(r, sequence=Sequence([*r.sequence.segments, said]), steps=[Step("write", words, said.ids, (np.nan,)*len(said.ids), said.learn)], wants="depth")


OPTIONS = dict(max_new_tokens=6, max_turns=2)


def spoken(small, exam, folder): return score(exam, collect(exam, Speaks(small, "cooperate", "m", folder/"traces", **OPTIONS), folder/"r.jsonl"))


def logprobs(trace): return torch.tensor([l for l, m in zip(trace.written[-1].logprobs, trace.written[-1].sampled) if m])


def test_what_is_given_is_what_was_shown(small):
    rng = np.random.default_rng(0)
    picture = decoded_picture(torch.rand(3, 16, 16)*2 - 1)
    assert np.array_equal(np.asarray(decoded_picture(_given(Step("draw", modality="segmentation", picture=picture), np.asarray(picture)))), np.asarray(picture))
    metres = DepthMap(rng.uniform(1, 9, (8, 8)), 0., 12.)
    made = _given(Step("draw", modality="depth", picture=metres.picture, map=metres), metres.values)
    assert np.array_equal(made.values, metres.values) and np.array_equal(np.asarray(made.show()), np.asarray(metres.show()))


def test_spoilt_maps_keep_what_they_must():
    field = np.random.default_rng(1).random((50, 43))
    for how in ("noised", "shuffled"):
        for seed in range(3): assert np.array_equal(np.sort(spoilt(field, how, seed), None), np.sort(field, None)) and not np.array_equal(spoilt(field, how, seed), field)
    assert not np.array_equal(spoilt(field, "noised", 0), spoilt(field, "noised", 1)) and np.array_equal(spoilt(field, "noised", 1), spoilt(field, "noised", 1))
    changed = spoilt(field, "noised") != field
    assert .45 < changed.mean() <= .5 and (spoilt(field, "blank") == np.median(field)).all()
    colours = np.random.default_rng(1).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    key = lambda x: sorted(map(tuple, x.reshape(-1, 3)))
    assert key(spoilt(colours, "noised")) == key(spoilt(colours, "shuffled")) == key(colours) and spoilt(colours, "blank").dtype == np.uint8 # a pixel keeps its three colours
    assert spoilt(np.arange(6.).reshape(2, 3), "shuffled").shape == (2, 3)


def test_what_began_otherwise_is_asked_again(small, exam, tmp_path):
    first = spoken(small, exam, tmp_path)
    other = score(exam, [r | dict(seed=7) for r in first.rows])
    of = lambda base: [MapAnswers(small, base, "blank", exam.items, **OPTIONS).config(), OtherChoice(small, base, **OPTIONS).config()]
    assert of(first) == of(score(exam, first.rows[:3])) and all(a != b for a, b in zip(of(first), of(other)))


def test_its_own_map_changes_nothing_and_another_one_does(small, exam, tmp_path):
    base = score(exam, collect(exam, CooperAnswers(small, "perceive", "m", tmp_path/"traces", **OPTIONS), tmp_path/"r.jsonl"))
    found = with_maps(small, base, tmp_path/"r.jsonl", ("drawn", "other", "noised", "shuffled", "blank"), traces=tmp_path/"traces", **OPTIONS)
    assert len(found["drawn"].rows) == 10 and {r["mode"] for r in found["blank"].rows} == {"perceive, map: blank"}
    moved = {w: 0 for w in found}
    for k, row in enumerate(base.rows):
        was = read_trace(row)
        for which, s in found.items():
            now = read_trace(s.rows[k])
            assert (s.rows[k]["id"], now.question, now.drawn) == (row["id"], was.question, was.drawn) and [s.ids for s in now.written[:-1]] == [s.ids for s in was.written[:-1]] # the same words before
            moved[which] += now.written[-1].ids != was.written[-1].ids or not torch.allclose(logprobs(now), logprobs(was), atol=1e-4)
    assert moved["drawn"] == 0 and all(moved[w] == 10 for w in ("noised", "shuffled", "blank", "other")), moved
    with pytest.raises(ValueError, match="classes that the checkpoint does not draw"): with_maps(small, base, tmp_path/"r.jsonl", ("true",), cases(), tmp_path/"traces", **OPTIONS)


def test_another_questions_map_is_of_another_picture(small, exam, tmp_path):
    base = spoken(small, exam, tmp_path)
    items = [i for i in exam.items if i.kind != "relation"]
    other = MapAnswers(small, base, "other", items, traces=tmp_path/"traces", **OPTIONS)
    of = {i.id: i for i in items}
    for a, b in other.partners.items():
        assert of[a].pictures[0].hash != of[b].pictures[0].hash
        theirs = next(s for s in read_trace(other.rows[b]).steps if s.kind == "draw")
        assert np.array_equal(other.maps(of[a])["depth"].values, theirs.map.values)
    alone = replace(exam, items=(items[0],)*1)
    with pytest.raises(ValueError, match="for no other picture than that of"): MapAnswers(small, base, "other", alone.items, **OPTIONS)


def test_the_true_map_is_true(small, exam, tmp_path):
    base, of = spoken(small, exam, tmp_path), cases()
    item = next(i for i in exam.items if i.kind == "depth")
    made = MapAnswers(small, base, "true", exam.items, of, **OPTIONS).maps(item)["depth"]
    drawn = next(s.map for s in read_trace(next(r for r in base.rows if r["id"] == item.id)).steps if s.kind == "draw")
    assert made.values.shape == drawn.values.shape and (made.near, made.far, made.unit) == (drawn.near, drawn.far, "m")
    truth = of(item).depth
    assert abs(np.median(made.values) - np.median(truth)) < .2 and made.values.max() <= truth.max() + 1e-3
    with pytest.raises(ValueError, match="needs `cases`"): MapAnswers(small, base, "true", exam.items, **OPTIONS)
    with pytest.raises(ValueError, match="expected one of drawn, true, other"): MapAnswers(small, base, "upside down", exam.items, **OPTIONS)


def test_maps_by_hand_and_the_killed_go_on(small, exam, tmp_path):
    base = spoken(small, exam, tmp_path)
    assert sorted({r["kind"]: r["calls"] for r in base.rows}.items()) == [("count", 1), ("depth", 1), ("distance", 1), ("relation", 0), ("size", 1)]
    for rank in range(2): part = with_maps(small, base, tmp_path/"r.jsonl", ("drawn", "blank"), traces=tmp_path/"traces", share=(rank, 2), batch_size=3, **OPTIONS)
    assert len(read_records(tmp_path/"r.jsonl")) == 10 + 16 and part["blank"].complete # what drew nothing is not asked
    again = with_maps(small, base, tmp_path/"r.jsonl", ("drawn", "blank"), traces=tmp_path/"traces", **OPTIONS)
    assert len(read_records(tmp_path/"r.jsonl")) == 10 + 16 and part["drawn"].exam.left_out == {"nothing was drawn": 2}
    rows = again["drawn"].rows
    said = lambda replies: score(again["drawn"].exam, [r | dict(reply=x) for r, x in zip(rows, replies)])
    right = [i.said for i in again["drawn"].exam.items]
    table = map_help(dict(drawn=said(right), blank=said([*right[:6], "no idea", "no idea"])))
    own, blank = table.where(map="drawn", kind="all")[0], table.where(map="blank", kind="all")[0]
    assert (own["accuracy"].value, own["difference"].value, own["other"]) == (1., 0., 0.) and (blank["accuracy"].value, blank["difference"].value, blank["other"]) == (.75, -.25, .25)
    assert {r["kind"] for r in table.rows} == {"all", "count", "depth", "distance", "size"} and blank["p"] == .5 and blank["difference"].low < -.25 < blank["difference"].high <= 0.
    assert map_figure(table).size[0] == 640 and "MapCases" in repr(shown_maps(small, base, again)) and "<img" in shown_maps(small, base, again)._repr_html_()
    with pytest.raises(ValueError, match="expected 'drawn' among them"): map_help(dict(blank=again["blank"]))
    with pytest.raises(ValueError, match="no map but the own one"): map_figure(map_help(dict(drawn=again["drawn"])))


def test_the_other_choice_is_made_after_the_same_thought(small, exam, tmp_path):
    base = spoken(small, exam, tmp_path)
    other = OtherChoice(small, base, traces=tmp_path/"traces", **OPTIONS)
    turned = score(exam, collect(exam, other, tmp_path/"r.jsonl"))
    assert turned.name == ("m", "cooperate, the other choice")
    for a, b in zip(base.rows, turned.rows):
        was, now = read_trace(a), read_trace(b)
        assert now.written[0].text.startswith("<think>Hm.</think>\n") and bool(a["calls"]) != bool(b["calls"])
        if b["calls"]: assert now.drawn == ["depth"] and now.written[0].text == "<think>Hm.</think>\n" + modality("depth").request and now.written[0].given and len(now.written) == 2
        else: assert now.written[0].text.startswith("<think>Hm.</think>\n<answer>") and len(now.written) == 1
    table = choice_regret(base, turned)
    assert table.rows[-1]["n"] == 10 and table.rows[-1]["called"] == .8
    assert OtherChoice(small, base, "segmentation", **OPTIONS).config() != other.config()
    with pytest.raises(ValueError, match="expected cooperate, where there is a choice"): OtherChoice(small, score(exam, [r | dict(mode="perceive") for r in base.rows]))
    with pytest.raises(ValueError, match="names no trace"): OtherChoice(small, score(exam, [r | dict(trace="") for r in base.rows]))
    with pytest.raises(ValueError, match="drew nothing for any of the 10"): with_maps(small, score(exam, [r | dict(calls=0) for r in base.rows]), tmp_path/"r.jsonl")
