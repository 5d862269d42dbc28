"Blind baselines, edits and regret, against cases counted by hand."
from dataclasses import replace

import pytest

from cooper.core import NotBuilt
from cooper.measure.benchmarks import benchmark
from cooper.measure.protocols import Exam, Item, mcq_prompt, plain_mean, scene_exam
from cooper.measure.records import Plain, collect, score
from cooper.measure.robustness import Majority, blind, changed, edited, flipped, map_help, regret, rotated

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
    with pytest.raises(NotBuilt, match="same prefix"): map_help()
