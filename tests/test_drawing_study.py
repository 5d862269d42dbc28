"What the study of stage 1 refuses, what its ways share, and how far its sentences go; no training."
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from cooper.core import checked
from cooper.measure.drawing_study import ANSWERS, DRAWING, LONGER, DrawingStudy, DrawingStudyParameters, drawing_conclusion, drawing_exam, what_it_helped

P = DrawingStudyParameters(questions=30, drawing=dict(steps=7, batch_size=3), answering=dict(steps=5, batch_size=2), longer=9)


def test_ways_differ_in_start_and_length_alone():
    drawing, answers, longer = (asdict(P.stage2(way, 1)) for way in P.ways)
    assert {k for k in drawing if drawing[k] != answers[k]} == {"checkpoint", "out"}
    assert {k for k in longer if longer[k] != answers[k]} == {"steps", "out"} and longer["steps"] == 14
    assert answers["mode_weights"] == {"direct": 1.} and not any(answers[k] for k in ("amg_weight", "grounding_weight", "placing_weight", "comparing_weight"))


def test_parameters_as_papermill_gives_them():
    assert checked(DrawingStudyParameters, dict(seeds="0,1,2")).runs == [0, 1, 2] and replace(P, longer=0).ways == (DRAWING, ANSWERS)


@pytest.mark.parametrize("changes, says", [
    (dict(answering=dict(mode_weights={"cooperate": 1.})), "'answering' has 'mode_weights'"), (dict(answering=dict(stop_after=1)), "'answering' has 'stop_after'"),
    (dict(drawing=dict(autoencoder_steps=5)), "'drawing' has 'autoencoder_steps'"), (dict(drawing=dict(replay_weight=.5)), "'drawing' has 'replay_weight'"),
    (dict(drawing=dict(steps="many")), "'drawing': 'steps'"), (dict(seeds="a"), "'seeds' is 'a'; expected different whole numbers"),
    (dict(evaluation="data/nowhere"), "'evaluation' is 'data/nowhere', where there is no scenes.jsonl and no amg.jsonl"), (dict(longer=-1), "'longer' is -1")])
def test_what_would_undo_the_comparison_is_refused(changes, says):
    with pytest.raises(ValueError) as error: replace(P, **changes)
    assert says in str(error.value)


def study(right): # right: way -> which kinds it answers rightly
    exam = drawing_exam(P)
    def scored(way): return SimpleNamespace(rows=[dict(id=i.id, scores=dict(score=float(i.kind in right[way]))) for i in exam.items])
    return DrawingStudy(P, exam, {}, {(way, seed): scored(way) for way in P.ways for seed in P.runs}, {})


def test_tables_and_sentences_follow_the_answers():
    won = study({DRAWING: ("size", "distance", "count"), ANSWERS: ("count",), LONGER: ("count",)})
    kinds = {r["kind"]: r for r in what_it_helped(won, by_kind=True).where(than=ANSWERS)}
    assert [(k, r["before"], r["after"]) for k, r in sorted(kinds.items())] == [("count", 1, 1), ("depth", 0, 0), ("distance", 0, 1), ("relation", 0, 0), ("size", 0, 1)]
    both = what_it_helped(won).where(kind="distance and size", than=LONGER)[0]
    assert both["n"] == 12 and both["difference"].value == 1 and both["verdict"] in ("higher", "higher with these seeds")
    said = drawing_conclusion(won)
    assert "About depth, relation no way is shown to answer better than a blind guess" in said
    assert "trained for 7 steps of 3 sequences more, and the longer control had 9 steps of 2 sequences more instead" in said
    assert "distance and size, against *answers only, longer*: **drawing first helped" in said


def test_no_difference_is_not_shown():
    same = study(dict.fromkeys(P.ways, ("count",)))
    assert {r["verdict"] for r in what_it_helped(same).rows} == {"not shown"} and drawing_conclusion(same).count("that drawing first helped is not shown") == 4
