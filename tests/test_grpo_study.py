"The study of GRPO: what is refused, what its tables count, and that its sentences say no more than they do."
from types import SimpleNamespace as Fake

import numpy as np, pandas as pd, pytest
from IPython.utils.capture import capture_output

from cooper.cooperate.grpo import GRPOParameters
from cooper.core import read_jsonl
from cooper.measure import grpo_study
from cooper.measure.benchmarks import benchmark
from cooper.measure.grpo_study import *
from cooper.measure.protocols import scene_exam

SMALL = dict(prompts_per_step=2, num_generations=2, keep_every=1, map_every=0, eval_questions=1)


def invented(after, before=0., ways=("cooperate",), seeds=("0", "1"), n=40, samples=0, calls=(1, 1)):
    "A study whose answers are made up: `after(seed, i)` and `before` say who is right."
    p = GRPOStudyParameters(ways={w: dict(mode="cooperate") for w in ways}, common=SMALL, seeds=list(seeds), questions=n, samples=samples)
    exam = scene_exam(benchmark("scenes", folder=p.evaluation, count=n))
    def scored(right, calls):
        return Fake(rows=[dict(id=q.id, scores=dict(score=float(right(i))), calls=calls, tokens=10 + i) for i, q in enumerate(exam.items)])
    study = GRPOStudy(p, exam, {})
    for w in ways:
        study.scored[w, None, "greedy"] = scored(before if callable(before) else lambda i: before, calls[0])
        for s in p.runs(w): study.scored[w, s, "greedy"] = scored(lambda i: after(s, i), calls[1])
    return study


def test_what_cannot_be_studied_is_refused_before_anything_runs():
    for wrong, says in ((dict(seeds=["0", "0"]), "different whole numbers"), (dict(seeds=[]), "'seeds'"), (dict(temperature=0.), "'temperature' is 0"), (dict(ways=dict(a="reason")), "expected options of 30_grpo by name"),
                        (dict(ways={"!": {}}), "a name with letters"), (dict(common=dict(steps=3)), "'common' has 'steps'"), (dict(ways=dict(a=dict(checkpoint="x"))), "'checkpoint' is for all ways"),
                        (dict(ways=dict(a=dict(num_generations=0))), "num_generations"), (dict(ways=dict(a=dict(loss="x"))), "'ways': a: 'loss' is not a parameter"), (dict(steps=0), "'steps' is 0"),
                        (dict(seeds=["1", "01"]), "different whole numbers"), (dict(ways=dict(a=dict(steps=2.5))), "'ways': a: 'steps'"), (dict(common=dict(learning_rate="1e-4")), "'learning_rate'"),
                        (dict(ways=dict(a=dict(mode="reason,cooperate"))), "expected one, in which it is also asked"), (dict(data="data/scenes/../scenes/test"), "expected other rooms"), (dict(data="data/scenes/test/rl.jsonl"), "expected other rooms")):
        with pytest.raises(ValueError) as e: GRPOStudyParameters(**wrong)
        assert says in str(e.value), e.value

def test_a_way_may_have_steps_of_its_own_and_lists_in_words():
    p = GRPOStudyParameters(ways=dict(a=dict(steps=9, mode="reason", rewards="accuracy,format", reward_weights=[1., 1.]), b={}), steps=3)
    a, b = p.training("a", 0), p.training("b", 1)
    assert (a.steps, a.mode, a.rewards) == (9, ["reason"], ["accuracy", "format"]) and (b.steps, b.seed, b.mode) == (3, 1, ["cooperate"])
    assert GRPOStudyParameters(ways=dict(a=dict(seeds="4,5"), b=dict(seeds=7), c={}), seeds=["1"]).runs("a") == [4, 5] and GRPOStudyParameters(ways=dict(b=dict(seeds=7))).runs("b") == [7]
    assert a.data == b.data == f"{p.out}/gain/rl.jsonl" and GRPOStudyParameters(data="rows.jsonl").training("reason", 0).data == "rows.jsonl"


def test_a_difference_is_counted_on_the_same_questions():
    study = invented(lambda s, i: i % 2 == 0 or s == 1 and i % 4 == 1, before=lambda i: i % 4 == 0)
    r, = held_out(study).rows
    assert (r["before"], r["after"], r["each"]) == (.25, .625, "50, 75") and r["better"] == 20 and r["worse"] == 0
    assert abs(r["difference"].value - .375) < 1e-12 and abs(r["over_seeds"].value - .375) < 1e-12 and r["verdict"] == "higher with these seeds"
    kinds = held_out(study, by_kind=True).rows
    assert sum(k["n"] for k in kinds) == 40 and np.isclose(sum(k["n"]*k["after"] for k in kinds)/40, .625)

@pytest.mark.parametrize("after,before,word", [(lambda s, i: i > s, 0., "more are right after training"), (lambda s, i: i > 0, 0., "more are right after these trainings"), (lambda s, i: i <= s, 1., "fewer are right after training"),
                                               (lambda s, i: i % 2, lambda i: i % 2, "a change is not shown"), (lambda s, i: i % 20 == s, 0., "a change is not shown")])
def test_the_conclusion_goes_as_far_as_the_intervals(after, before, word):
    "Seeds that agree to the answer are no spread of seeds: they may do so by chance."
    said = grpo_conclusion(invented(after, before))
    assert f"**{word}**" in said and "a blind guess: " in said, said

def test_rooms_that_offer_too_little_stop_a_study_before_it_trains():
    with pytest.raises(ValueError, match="are wanted|were asked|expected"): study_exam(GRPOStudyParameters(questions=5000))

def test_costs_and_drawings_are_told():
    study = invented(lambda s, i: 1., calls=(2, .5))
    row = tools(study).where(kind="all")[0]
    assert (row["calls before"], row["calls after"], row["calls each"]) == (2., .5, "0.50, 0.50") and row["tokens before"] == 29.5
    assert "cooperate: 2.00 drawings a greedy answer before, 0.50 after." in grpo_conclusion(study)
    assert cooperation_paid(study) is None and drawing_figure(study) is None, "no rollouts were kept"


def test_what_was_paid_is_read_from_the_rollouts():
    study = invented(lambda s, i: 1., seeds=("0",))
    rows = [dict(way="cooperate", seed=0, step=1, group=g, flag=flag, mode="cooperate", kind="depth", drawings=d, **{"reward/cooperation": v})
            for g, flag, d, v in ((0, "negative", "depth", -.2), (0, "negative", "", 0.), (1, "positive", "depth, segmentation", .2), (1, "positive", "", 0.), (2, "boundary", "depth", 0.), (2, "boundary", "depth", 0.))]
    study._kept = pd.DataFrame(rows)
    paid = {r["flag"]: r for r in cooperation_paid(study).rows}
    assert (paid["negative"]["fined"], paid["negative"]["drew"], paid["positive"]["paid"], paid["positive"]["mean"], paid["boundary"]["drew"], paid["boundary"]["mean"]) == (.5, .5, .5, .1, 1., 0.)
    assert "not zero for 33.3 % of the kept traces (negative: 0.0 % paid, 50.0 % fined; positive: 50.0 % paid, 0.0 % fined; boundary: 0.0 % paid, 0.0 % fined)" in grpo_conclusion(study)
    drew = {ax.get_title().split(" (")[0]: ax.lines[0].get_ydata().tolist() for ax in drawing_figure(study).axes}
    assert np.allclose(drew["cooperate: depth"], [400/6]) and np.allclose(drew["cooperate: segmentation"], [100/6])


def test_a_study_that_was_killed_goes_on(tmp_path):
    "Nothing is asked or trained twice, and a study in two pieces is the study in one."
    options = dict(ways=dict(cooperate=dict(mode="cooperate")), common=SMALL, steps=2, gain_questions=3, rollouts=2, questions=5, samples=1)
    def study(out, broken=False):
        p = GRPOStudyParameters(out=str(out), **options)
        with capture_output():
            flags(p)
            curves = train_all(p) if not broken else {("cooperate", 0): grpo_study.train(p.training("cooperate", 0))[0]} # and there it was killed
            return None if broken else ask_study(p, study_exam(p), curves)
    whole = study(tmp_path/"whole")
    study(tmp_path/"pieces", broken=True)
    pieces = study(tmp_path/"pieces")
    assert held_out(whole).rows == held_out(pieces).rows and tools(whole).rows == tools(pieces).rows
    before = read_jsonl(tmp_path/"whole/answers.jsonl")
    again = study(tmp_path/"whole")
    assert read_jsonl(tmp_path/"whole/answers.jsonl") == before and held_out(again).rows == held_out(whole).rows

def test_a_longer_run_is_not_taken_for_a_shorter_one(tmp_path):
    p = lambda steps: GRPOStudyParameters(out=str(tmp_path), ways=dict(direct=dict(mode="direct")), common=SMALL, steps=steps, data="data/scenes/train/rl.jsonl").training("direct", 0)
    longer, shorter = (GRPOParameters(**vars(p(n)) | dict(data="data/scenes/train")) for n in (2, 1))
    with capture_output(): grpo_study.train(longer)
    with pytest.raises(ValueError, match="this run has 2 steps already"), capture_output(): grpo_study.train(shorter)
