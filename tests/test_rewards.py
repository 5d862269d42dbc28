"""Rewards judge what is there, change nothing, and say why (laws 5 and 7; the reference's defects A3, A5, B30, C1, C8 must not come back)."""
import copy, itertools, json
from pathlib import Path
from dataclasses import replace
import pytest
from PIL import Image
from cooper.core import NotBuilt
from cooper.cooperate.rewards import REWARDS, Verdict, accuracy, as_reward_functions, cooperation, format, reward_table, used_tool
from cooper.measure.benchmarks import Benchmark, record
from cooper.model.modalities import modality
from cooper.model.traces import Step, Trace
from cooper.reason.answers import judge
from cooper.reason.data import Question

DEPTH, SEGMENTS = (f"<think>why</think>\n{modality(k).request}" for k in ("depth", "segmentation"))
def says(x): return f"<think>so</think>\n<answer>\\boxed{{{x}}}</answer>"
def write(text, sampled=(True, True), truncated=False): return Step("write", text=text, ids=(1,)*len(sampled), logprobs=(-.1,)*len(sampled), sampled=sampled, truncated=truncated)
def draw(kind="depth"): return Step("draw", modality=kind, picture=Image.new("RGB", (4, 4)))
def trace(*steps, mode="cooperate"):
    steps = [write(s) if isinstance(s, str) else s for s in steps]
    return Trace(mode, "?", [Image.new("RGB", (4, 4))], steps, tokens=3, finished=True)
def tooled(x="2"): return trace(DEPTH, draw(), says(x))
ROW = dict(question="How many?", answer="2", kind="count", choices=list("0123456"), data_id="a", flag="positive", image="x.png")

# ---- accuracy
@pytest.mark.parametrize("steps,value,why", [
    ([says("2")], 1, "'2' is right"), ([says("two")], 1, "right"), ([says("3")], 0, "'3' is not '2'"), ([DEPTH, draw(), says("2")], 1, "right"),
    (["<think>2</think>"], 0, "no <answer>"), (["<think>\\boxed{2}, <answer>"], 0, "no <answer>"), (["2"], 0, "no <answer>"), ([], 0, "no <answer>"),
    (["<think>a</think><answer></answer>"], 0, "empty"), (["<answer>2</answer>"], 1, "right"), (["<answer>2</answer> <answer>3</answer>"], 0, "more than one"),
    ([says("2"), draw(), "<think>hm</think>"], 0, "no <answer>"), ([says("2"), draw(), says("3")], 0, "not '2'"), ([says("2 or 3")], 0, "not '2'"),
    (["<think>a</think><answer>\\boxed{2} or \\boxed{3}</answer>"], 0, "'3' is not '2'"), ([says("1, 2, 3")], 0, "not"), ([says("C")], 0, "not")])
def test_accuracy(steps, value, why):
    got = accuracy(trace(*steps), ROW)
    assert got.value == value and why in got.why

def test_letters_only_where_the_question_shows_them():
    row = dict(question="Which? (A) red cube (B) blue ball", answer="blue ball", choices=["red cube", "blue ball"], kind="depth")
    assert accuracy(trace(says("B")), row).value == accuracy(trace(says("(B) blue ball")), row).value == accuracy(trace(says("blue ball")), row).value == 1
    assert accuracy(trace(says("B")), row | dict(question="Which is closer?")).value == 0
    assert accuracy(trace(says("(A)")), dict(answer="A", question="...")).value == 1   # the reference's rule never matched "(A)"

def test_unjudgeable_is_none_not_wrong():
    assert accuracy(None, ROW) == format(None) == Verdict(None, "there is no trace")
    assert accuracy(trace(says("2")), ROW | dict(answer="")).value is None and accuracy(trace(says("2")), {}).value is None

def test_tolerance(): assert accuracy(trace(says("1.9 m")), dict(answer="2 m")).value == 0 and accuracy(trace(says("1.9 m")), dict(answer="2 m"), rel_tol=.1).value == 1

# ---- format
VALID = [trace(says("2")), tooled(), trace(DEPTH, draw(), SEGMENTS, draw("segmentation"), says("2")), trace("  " + says("2") + "\n"), trace("<think>a\nb</think><answer>c\nd</answer>"),
    trace(says("2"), mode="reason"), trace("<think>Two.</think> It is \\boxed{2}.", mode="reason"), trace("<answer>\\boxed{2}</answer>", mode="direct"), trace("2", mode="direct"), trace("<answer>2</answer>\n", mode="perceive")]
INVALID = [trace(), trace("2"), trace("<answer>2</answer>"), trace("<think>a</think>"), trace(DEPTH), trace(says("2") + " and more"), trace("well " + says("2")), trace("<think>a</think> hm <answer>2</answer>"),
    trace(says("2"), draw(), says("2")), trace("<think>a</think>" + modality("depth").request + modality("segmentation").request, draw(), says("2")), trace("<think><answer>2</answer></think>"),
    trace(write(says("2"), truncated=True)), trace(write(DEPTH, truncated=True), draw(), says("2")), trace(modality("depth").request, draw(), says("2")),
    trace(DEPTH, draw(), says("2"), mode="reason"), trace("2 <answer>2</answer>", mode="direct"), trace("2", mode="perceive"), trace(says("2"), mode="direct"), trace(says("2"), mode="perceive"), trace("<answer>2", mode="perceive"),
    trace("<answer>1</answer><answer>2</answer>", mode="direct"), trace("<think>a</think>\n<answer>2</answer>\n<answer>3</answer>")]
@pytest.mark.parametrize("t", VALID)
def test_valid_format(t): assert format(t).value == 1 and "valid form" in format(t).why
@pytest.mark.parametrize("t", INVALID)
def test_invalid_format(t): assert format(t).value == 0 and format(t).why

@pytest.mark.parametrize("sampled", [(False, False, False), ()])   # as the engine records what it puts into the model's mouth, and as it might
def test_forced_requests_are_not_judged_but_forced_beginnings_are(sampled):
    forced = lambda name: Step("write", text=modality(name).request, ids=(1, 1, 1), sampled=sampled)
    given = [forced("depth"), draw(), forced("segmentation"), draw("segmentation")]
    ends = write("<answer>\\boxed{2}</answer>", (False, True, True))
    assert format(trace(*given, ends, mode="perceive")).value == 1 and trace(*given, ends, mode="perceive").own == [ends]
    assert format(trace(*given, write("<answer>\\boxed{2}", (False, True)), mode="perceive")).value == 0
    assert format(trace(*given, mode="perceive")).value == 0 and not used_tool(trace(*given, ends, mode="perceive"))

# ---- one judge
REPLIES = ["\\boxed{2}", "2", "<answer>2</answer>", "<answer>2</answer><answer>3</answer>", "<answer>3</answer><answer>2</answer>", "<answer>C</answer>", "<answer>2", "<answer>2 or 3</answer>", "", "<think>2", "It is 2 or 3.",
    "<think>a</think>", "<think>a</think> 2", "<think>a</think>\nThe answer is two.", "<think>a</think><answer>2</answer>", "<think><answer>2</answer></think>", "<think>2</think> I do not know, and nobody else can know it either", DEPTH]
@pytest.mark.parametrize("mode,truncated", list(itertools.product(("direct", "reason", "perceive", "cooperate"), (False, True))))
def test_the_benchmark_judges_as_the_reward_does(mode, truncated):
    q = Question("count", ROW["question"], "2", 1/7, tuple("0123456"), (1,), "x.png", "a", "positive")
    bench = Benchmark("", Path("."), (q,), {"count": "1"})
    for reply in REPLIES:
        t = trace(write(reply, truncated=truncated), mode=mode)
        row = record(t, q, bench)
        assert row["correct"] == (accuracy(t, ROW).value == 1) == (judge(t, ROW).value == 1), (reply, accuracy(t, ROW))
        assert row["valid"] == (format(t).value == 1), (reply, format(t))
        assert not row["correct"] or row["prediction"] is not None

@pytest.mark.parametrize("mode,right", [("cooperate", {2, 14}), ("perceive", {2, 6, 14}), ("direct", {0, 1, 2, 6, 12, 13, 14}), ("reason", {0, 1, 2, 6, 12, 13, 14})])
def test_what_each_mode_takes_for_an_answer(mode, right): # the prompt of the released checkpoints asks for no tag in `reason`, and has none in `direct`
    assert {i for i, r in enumerate(REPLIES) if accuracy(trace(r, mode=mode), ROW).value} == right
    closed = {i for i, r in enumerate(REPLIES) if accuracy(trace(write(r, truncated=True), mode=mode), ROW).value}
    assert closed == right & {2, 14} # what was cut off might have gone on

# ---- cooperation
@pytest.mark.parametrize("flag,count", list(itertools.product(("positive", "negative", "boundary", None), range(9))))
def test_the_reference_table(flag, count):
    group = [tooled() if k < count else trace(says("2")) for k in range(8)]
    want = .2 if flag == "positive" and count < 3 else -.2 if flag == "negative" and count > 3 else 0.
    assert [v.value for v in cooperation(group, flag)] == [want]*count + [0.]*(8 - count)
    assert all(v.why for v in cooperation(group, flag))

@pytest.mark.parametrize("size,few", [(4, 1), (8, 2), (16, 5), (2, 0), (6, 2)])
def test_other_group_sizes_keep_the_share(size, few):
    values = lambda k, flag: {v.value for v in cooperation([tooled()]*k + [trace(says("2"))]*(size - k), flag)} - {0.}
    assert all(values(k, "positive") == ({.2} if 0 < k <= few else set()) for k in range(size + 1))
    assert all(values(k, "negative") == ({-.2} if k > 3*size/8 else set()) for k in range(size + 1))

def test_what_counts_as_using_a_tool():
    assert used_tool(tooled()) and used_tool(trace(DEPTH, draw(), SEGMENTS)) and used_tool(trace(SEGMENTS, draw("segmentation"), "rubbish"))   # two turns before the last, one, one
    assert not used_tool(trace(DEPTH)) and not used_tool(trace(says("2"))) and not used_tool(trace()) and not used_tool(trace(modality("depth").request, draw(), says("2")))
    assert not used_tool(trace(DEPTH + " hm", draw(), says("2")))

def test_options_and_bad_flag():
    group = [tooled()] + [trace(says("2"))]*3
    assert cooperation(group, "positive", bonus=1.)[0].value == 1. and cooperation(group, "positive", fraction=.25)[0].value == 0.
    assert cooperation(group, "negative", fraction=0., penalty=.5)[0].value == -.5
    with pytest.raises(ValueError, match="flag is 'postive'; expected one of positive, negative, boundary"): cooperation(group, "postive")
    mixed = cooperation([tooled(), None, trace(says("2")), trace(says("2"))], "positive")
    assert [v.value for v in mixed] == [.2, None, 0., 0.] and cooperation([], "positive") == []

# ---- purity and order
def test_nothing_is_changed_and_order_does_not_matter():
    group = [tooled(), tooled("3"), *INVALID[:5], trace(says("2"))]
    columns = {k: [copy.deepcopy(ROW[k]) for _ in group] for k in ROW}
    before, kept = json.dumps([t.to_dict() for t in group]), copy.deepcopy(columns)
    seen = {}
    for order in itertools.permutations(as_reward_functions()):   # the reference's format reward spoils the exploration reward that runs after it
        for f in order: seen.setdefault(f.__name__, []).append(f(prompts=["?"]*8, completions=["x"]*8, traces=group, **columns))
    assert all(all(v == values[0] for v in values) for values in seen.values()) and seen["cooperation"][0][:2] == [.2, .2]
    assert json.dumps([t.to_dict() for t in group]) == before and columns == kept

def test_a_trace_is_judged_alone():
    ts = [tooled(), trace(says("3")), trace("junk"), *VALID, *INVALID]
    alone = [(accuracy(t, ROW), format(t)) for t in ts]
    for f, n in zip(as_reward_functions(["accuracy", "format"], num_generations=1), range(2)):
        assert f.verdicts(ts, **{k: [v]*len(ts) for k, v in ROW.items()}) == [pair[n] for pair in alone]

# ---- for TRL
COLUMNS = {k: [v]*8 for k, v in ROW.items()}
def test_names_weights_and_refusals():
    fs = as_reward_functions(["accuracy", "exploration_guided"], weights=[1, .5], num_generations=4)
    assert [f.__name__ for f in fs] == ["accuracy", "cooperation"] and [f.weight for f in fs] == [1., .5] and copy.deepcopy(fs) == fs
    assert [f.__name__ for f in as_reward_functions()] == list(REWARDS)
    for name in ("judge", "llm_judge"):
        with pytest.raises(NotBuilt, match="language model"): as_reward_functions([name])
    with pytest.raises(ValueError, match="'beauty' is unknown; expected some of accuracy"): as_reward_functions(["beauty"])
    with pytest.raises(ValueError, match="1 weights for 3"): as_reward_functions(weights=[1])

def test_groups_must_be_whole():
    f, = as_reward_functions(["cooperation"], num_generations=4)
    group = [tooled()] + [trace(says("2"))]*7
    assert f(traces=group, **COLUMNS | dict(data_id=["a"]*4 + ["b"]*4)) == [.2] + [0.]*7
    assert f(traces=group, **COLUMNS | dict(flag=["boundary"]*8)) == [0.]*8
    for torn in ("aaaaabbb", "aaaaaabb", "abababab", "aabbaabb", "aaaaaaab", "aaaab", "aab"):
        with pytest.raises(ValueError, match=f"{len(torn)} traces are no whole groups: .* of a, .* of b.*; expected 4 of each data_id"):
            f(traces=group[:len(torn)], **{k: v[:len(torn)] for k, v in COLUMNS.items()} | dict(data_id=list(torn)))
    with pytest.raises(ValueError, match="without 'traces'"): f(prompts=["?"]*8, completions=[""]*8, **COLUMNS)
    with pytest.raises(ValueError, match="needs the column 'data_id'"): f(traces=group, flag=["positive"]*8)
    with pytest.raises(ValueError, match="needs the column 'answer'"): as_reward_functions(["accuracy"])[0](traces=group)

@pytest.mark.parametrize("ids", ["abcd", "aabb", "a", "aaabbb", "aaaaaabbbbbb", "aaaaaa", "aaaaaaaabbbb", "aaaabbbbaaaa"])
def test_evaluations_have_groups_of_their_own_size(ids):
    f, = as_reward_functions(["cooperation"], num_generations=4)
    got = f(traces=[tooled()] + [trace(says("2"))]*(len(ids) - 1), data_id=list(ids), flag=["positive"]*len(ids))
    size = 4 if ids in ("aaaaaaaabbbb", "aaaabbbbaaaa") else ids.count("a")
    assert got == [.2 if 1 < 3/8*size else 0.] + [0.]*(len(ids) - 1)

def test_columns_as_trl_passes_them():
    extra = dict(trainer_state=object(), log_extra=lambda *a: None, log_metric=None, completion_ids=[[1]]*8, short=[1, 2], choices=[None]*8)
    group = [tooled(), None] + [trace(says("3"))]*6
    got = {f.__name__: f(prompts=["?"]*8, completions=[""]*8, traces=group, **COLUMNS | extra) for f in as_reward_functions()}
    assert got["accuracy"] == [1., None] + [0.]*6 and got["format"] == [1., None] + [1.]*6 and got["cooperation"] == [.2, None] + [0.]*6

def test_table_says_why():
    table = reward_table([tooled(), None, trace("<b>junk</b>"), trace(says("3"))], ROW)
    page = table._repr_html_()
    assert "not judged" in page and "&lt;b&gt;junk" in page and "<b>junk" not in page and "is right" in page and table.totals == [2.2, None, 0., 1.]
