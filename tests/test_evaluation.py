"One table for checkpoints, local and hosted models; evaluations that are killed and go on with other processes; what must not be compared."
import json, os, re

import numpy as np
import pytest
import torch
from PIL import Image

import cooper as co
import owners
import pretend
from cooper.core import read_jsonl, resolve, write_jsonl
from cooper.measure.benchmarks import benchmark, bootstrap, grid, holm, save_tables
from cooper.measure.evaluation import (SOURCES, EvalParameters, Shown, answers, beside, by_protocol, changes, constant_guesses, cooper_answerer, drawings_figure, exam_of, extractor_of, finish, first_maps, for_figure, missing, possible, put, put_cooper,
                                       put_drawings, put_edits, put_maps, put_model, readings, regrets, replies, told, true_case)
from cooper.measure.extraction import Extractor
from cooper.measure.protocols import Exam, Item, RowPicture, clusters, plain_mean, read_item, scene_exam, scores
from cooper.measure.records import PUBLISHED, Answered, CooperAnswers, HostedAnswers, Plain, against, collect, details, published, read_records, read_trace, results, score
from cooper.measure.robustness import blind
from cooper.model.modalities import DepthMap, SegmentMap
from cooper.perceive.data import ADE150
from cooper.perceive.protocols import open_maps
from cooper.present.report import TraceCase, accuracy_figure, difference_figure, glance, page, telling
from cooper.reason.hosted import Endpoint, Hosted, Rehearsal
from house import cells
from pretend import Cooper
from test_protocols import b64, mcq, png, tsv


def parameters(tmp_path, **more): return EvalParameters(**dict(checkpoints=["a"], questions=10, batch_size=4, key="", out=str(tmp_path)) | more)


def knows(exam): # a pretend COOPER that does
    said = {(i.prompt, i.id): i.said for i in exam.items}
    return lambda question, seed: said[question, seed[2]]


# --- parameters

def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(ValueError) as e: parameters(tmp_path, modes=("quick",), samples=2, share="3/3", batch_size=0, rules="mine", benchmark="mmvp")
    for what in ("modes: quick; expected some of direct", "samples is 2 at temperature 0", "share is '3/3'; expected this process / processes", "batch_size is 0; expected 1 or more",
                 "rules is 'mine'; expected one of cooper, published", "benchmark is 'mmvp', and file is empty"): assert what in str(e.value), what
    for bad, message in [(dict(checkpoints=[]), "none given"), (dict(checkpoints=["x/a"], others=["a=hf:b"]), "two have the same name a"), (dict(file="a.tsv"), "benchmark is 'scenes'; expected its name"), (dict(questions=0), "questions is 0; expected 1")]:
        with pytest.raises(ValueError, match=message): parameters(tmp_path, **bad)
    assert parameters(tmp_path, benchmark="mcq", file="a.tsv", questions=0).questions == 0


def test_names_of_rows():
    p = EvalParameters(["data/tiny-cooper", "b=x=y"], ["hf:models/small", "m-2@http://host:1/v1", "best=m@https://host/v1?", "llava=hf:org/model"])
    assert p.named == [("tiny-cooper", "data/tiny-cooper"), ("b", "x=y")] and [n for n, _ in p.models] == ["small", "m-2", "best", "llava"] and p.models[1][1] == "m-2@http://host:1/v1"


# --- one table for all

def test_a_checkpoint_a_hosted_and_a_function_share_a_table(tmp_path):
    p = parameters(tmp_path, modes=("direct", "cooperate"))
    exam = exam_of(p)
    with Rehearsal(lambda body: "left") as server: rows = put_cooper(p, exam, Cooper(knows(exam)), "knows") + put_model(p, exam, "hosted", f"m@{server.url}")
    table = results(rows)
    assert [(r["model"], r["mode"], r["n"]) for r in table.rows] == [("knows", "direct", 10), ("knows", "cooperate", 10), ("hosted", "direct", 10)]
    assert [r["score"].value for r in table.rows][:2] == [1., 1.] and table.rows[1]["calls"] == 1 and table.rows[2]["score"].value < .5
    assert all(t.note.count(exam.key) and "Unjudged answers are in no score" in t.note for t in (table, answers(rows), details(*rows), against(rows))) # a card under each
    assert len(read_jsonl(tmp_path/"answers.jsonl")) == 30 and "m@http" not in str(table.rows)
    asked = Cooper(knows(exam))
    put_cooper(p, exam, asked, "another name")
    assert not asked.asked and put_cooper(p, exam, asked, "another name")[0].name == ("another name", "direct") # the same weights


def test_tables_feed_figures_and_the_report(tmp_path):
    p = parameters(tmp_path, modes=("direct", "cooperate"))
    exam = exam_of(p)
    rows = put_cooper(p, exam, Cooper(knows(exam)), "after") + put_cooper(p, exam, Cooper(lambda q, s: "a sofa", weight=1.), "before")
    summary, change = answers(rows), changes(rows, "before", "after")
    for plate in (accuracy_figure(for_figure(summary)), difference_figure(change)): assert plate._repr_png_()[:4] == b"\x89PNG"
    assert grid(for_figure(summary), "after").rows[-1]["cooperate"].value == 1.
    last = change.where(mode="cooperate", kind="all")[0]
    assert (last["better"], last["worse"], last["before"], last["after"]) == (10, 0, 0., 1.) and last["p"] == pytest.approx(2/2**len({i.pictures[0].hash for i in exam.items})) and last["holm"] >= last["p"]
    save_tables(tmp_path, answers=summary)
    assert glance(tmp_path).count("class='tile'") == 2 # nothing was drawn: no tiles of drawings
    assert changes(rows, "after", "after") is None and changes(rows, "nobody", "after") is None
    wrong = [r for r in told(rows[3]) if not r["correct"]]
    assert len(wrong) == 10 and {r["prediction"] for r in wrong if r["kind"] != "count"} == {None} and all(r["truth"] for r in wrong)


def test_kept_traces_are_shown_with_their_truth(tmp_path):
    p = parameters(tmp_path, modes=("cooperate",))
    exam = exam_of(p)
    one, = put_cooper(p, exam, Cooper(knows(exam)), "a")
    two, = put_cooper(p, exam, Cooper(lambda q, s: "a sofa", weight=1.), "b")
    assert len(list((tmp_path/"traces").glob("*.json"))) == 20 # two checkpoints, the same questions and seeds
    chosen = telling(told(one), "cooperate", 3)
    shown = page([TraceCase(read_trace(r), r["truth"], r["correct"], true_case(p, exam, r["data_id"]), r["data_id"]) for r in chosen]).data
    assert shown.count(">true depth<") == 3 and shown.count("✓") == 3 and "A map helps." in shown
    assert read_trace(dict(trace="")) is None
    quiet, = put_cooper(parameters(tmp_path/"quiet", modes=("cooperate",), keep_traces=False), exam, Cooper(knows(exam)), "a")
    assert not (tmp_path/"quiet/traces").exists() and quiet.rows[0]["trace"] == ""


def test_kinds_and_guesses_by_hand(tmp_path):
    item = lambda n, answer, kind, rule="letter", **more: Item(str(n), (), "Which?", "Which?", answer, rule, ("cat", "dog") if rule == "letter" else (), kind, **more)
    exam = Exam("made up", (item(0, "A", "x"), item(1, "A", "x"), item(2, "B", "x"), item(3, "4", "y", "mra"), item(4, "4", "y", "mra"), item(5, "5", "y", "mra"), item(6, "yes", "z", "grade")), lambda pairs: [plain_mean(pairs)])
    assert constant_guesses(exam) == {"0": 1., "1": 1., "2": 0., "3": 1., "4": 1., "5": .6, "6": 0.} # 4 for 5: an error of 0.2, below 0.50 ... 0.25: six of ten
    s = put(parameters(tmp_path), exam, Plain("m", lambda p, q, system: "A"))
    table = answers([s])
    assert [(r["kind"], r["n"]) for r in table.rows] == [("x", 3), ("y", 3), ("z", 0), ("all", 6)]
    assert table.rows[0]["constant"] == pytest.approx(2/3) and table.rows[0]["chance"] == .5 and table.rows[2]["accuracy"] is None and table.rows[2]["unjudged"] == 1
    assert [r["kind"] for r in for_figure(table).rows] == ["x", "y", "all"]
    unknown = Exam("open", (Item("0", (), "Which?", "Which?", "A", "letter"),), exam.measures) # nobody knows among how many options
    table = answers([put(parameters(tmp_path), unknown, Plain("m", lambda *_: "A"))])
    assert table.rows[0]["chance"] is None and accuracy_figure(table)._repr_png_() and grid(table).rows[0]["guess"] == 1.


def test_scenes_are_not_answered_by_letters(tmp_path):
    p = parameters(tmp_path)
    exam = exam_of(p)
    which = [i for i in exam.items if i.rule == "choice"]
    assert which and all(i.options for i in which)
    for i in which:
        assert scores(i, read_item(i, i.answer)) == dict(score=0.) and read_item(i, f"({i.answer})").outcome == "none"
        assert scores(i, read_item(i, i.said)) == dict(score=1.) and scores(i, read_item(i, f"<think>{i.options[0]}</think><answer>{i.said}</answer>")) == dict(score=1.)
    s = put(p, exam, Plain("letters", lambda *_: "A"))
    assert all(r["outcome"] == "none" for r in told(s) if r["kind"] != "count") and answers([s]).rows[-1]["accuracy"].value == 0.


# --- killed and resumed

def dies(p, exam, rank): # a process that is killed in its third batch
    pid = os.fork()
    if pid: return pid
    try: put_cooper(EvalParameters(**vars(p) | dict(share=f"{rank}/2")), exam, Killed(knows(exam)), "a")
    finally: os._exit(1)


class Killed(Cooper):
    def engine(self, **options):
        if len(self.asked) >= 4: os.kill(os.getpid(), 9)
        return super().engine(**options)


def test_a_killed_evaluation_goes_on_with_another_process_count(tmp_path):
    p = parameters(tmp_path, questions=20, modes=("direct", "reason"), batch_size=2)
    exam = exam_of(p)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [dies(p, exam, rank) for rank in range(2)]] == [-9, -9]
    assert len(read_records(tmp_path/"answers.jsonl")) == 8 # two batches of two each
    with open(tmp_path/"answers.jsonl", "ab") as f: f.write(b'{"id": "torn, and never en')
    thirds = [Cooper(knows(exam)) for _ in range(3)]
    for rank, cooper in enumerate(thirds): rows = put_cooper(EvalParameters(**vars(p) | dict(share=f"{rank}/3")), exam, cooper, "a")
    assert sum(len(c.asked) for c in thirds) == 32 and len(read_records(tmp_path/"answers.jsonl")) == 40
    whole = put_cooper(parameters(tmp_path/"whole", questions=20, modes=("direct", "reason")), exam, Cooper(knows(exam)), "a")
    plain = lambda rows: [{k: v for k, v in r.items() if k not in ("seconds", "trace")} for s in rows for r in s.rows]
    assert plain(rows) == plain(whole) and results(rows).rows[0]["asked"] == 1.
    def table(t): return [{k: v for k, v in r.items() if k != "seconds"} for r in t.to_dict()["rows"]], t.title, t.note
    for make in (results, answers, lambda x: details(*x), against): assert table(make(rows)) == table(make(whole)) # every table is the same one


def test_what_is_not_whole_is_no_result(tmp_path):
    p = parameters(tmp_path, questions=20, modes=("direct", "reason"), batch_size=2)
    exam = exam_of(p)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [dies(p, exam, rank) for rank in range(2)]] == [-9, -9]
    one = EvalParameters(**vars(p) | dict(share="1/2"))
    rows = put_cooper(one, exam, Cooper(knows(exam)), "a")
    assert missing(one, exam, rows) == ["a direct: 14 of 20 answers", "a reason: 10 of 20 answers", "no drawings of a: the process with share 0 makes them"] # 4 of the killed process 0
    for table in (results(rows), answers(rows), details(*rows), against(rows)): assert table.note.count("INCOMPLETE, no result yet: a direct 14 of 20 answers; a reason 10 of 20 answers.") == 1
    assert results(rows).title == "scenes, incomplete" and finish(one, exam, rows, results=results(rows)).name == "incomplete.json" and not (tmp_path/"results.json").exists()
    assert json.loads((tmp_path/"incomplete.json").read_text())["incomplete"].startswith("a direct: 14 of 20 answers; ")
    rows = put_cooper(p, exam, Cooper(knows(exam)), "a")
    assert finish(p, exam, rows, results=results(rows)).name == "incomplete.json" # nothing was drawn yet
    done = finish(p, exam, rows, dict(a=None), results=results(rows), change=None)
    assert done.name == "results.json" and not (tmp_path/"incomplete.json").exists() and list(json.loads(done.read_text())) == ["results"] and "INCOMPLETE" not in done.read_text()
    assert missing(p, exam, rows[:1], dict(a=None)) == ["1 of 2 rows"]
    looks = EvalParameters(**vars(p) | dict(modes=("cooperate",), maps=("blank",), out=str(tmp_path/"c")))
    drew = put_cooper(looks, exam, Cooper(knows(exam)), "a")
    assert missing(looks, exam, drew, dict(a=None)) == ["answers of a with other maps"] and missing(looks, exam, drew, dict(a=None), dict(a=None)) == []
    twice = parameters(tmp_path, questions=20, modes=("direct",), samples=2, temperature=1.) # more answers are wanted than there are
    assert not score(exam, rows[0].rows, samples=2).complete and put_cooper(twice, exam, Cooper(knows(exam)), "a")[0].expected == 40


# --- what an answer depends on

def test_a_record_knows_its_dtype_and_its_sampler(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COOPER_QUIET", raising=False)
    exam, cooper = exam_of(parameters(tmp_path)), Cooper(lambda q, s: "left")
    first = collect(exam, CooperAnswers(cooper, "direct", "a"), tmp_path/"r.jsonl")
    assert first[0]["settings"]["dtype"] == '"float32"' and "not taken" not in capsys.readouterr().err
    cooper.model.to(torch.bfloat16)
    again = collect(exam, CooperAnswers(cooper, "direct", "a"), tmp_path/"r.jsonl")
    assert len(read_records(tmp_path/"r.jsonl")) == 20 and not {r["stamp"] for r in first} & {r["stamp"] for r in again}
    said = capsys.readouterr().err
    assert f"{resolve(tmp_path/'r.jsonl')}, a direct: 10 answers are there that were made otherwise, and are not taken: dtype was \"float32\", now \"bfloat16\"" in said
    old = [{k: v for k, v in r.items() if k != "settings"} | dict(stamp=f"old{n}") for n, r in enumerate(read_jsonl(tmp_path/"r.jsonl")[:10])]
    write_jsonl(tmp_path/"old.jsonl", old)
    collect(exam, CooperAnswers(cooper, "direct", "a"), tmp_path/"old.jsonl")
    assert "they were written before records said with which dtype and sampler" in capsys.readouterr().err and len(read_records(tmp_path/"old.jsonl")) == 20
    collect(exam, CooperAnswers(cooper, "direct", "another"), tmp_path/"old.jsonl") # another name is another matter; its answers are known
    assert "not taken" not in capsys.readouterr().err and len(read_records(tmp_path/"old.jsonl")) == 20


def test_a_real_checkpoint_says_how_it_draws():
    import grpo_house
    from cooper.model.engine import Cooper as Real
    real = Real(*grpo_house.miniature())
    of = lambda **options: CooperAnswers(real, "cooperate", "a", **options).config()
    assert of()["sampler"]["num_timesteps"] == 3 and of()["dtype"] == "float32" and of() == of(batch_size=3)
    assert len({json.dumps(of(**o), default=str) for o in (dict(), dict(thought="unguided"), dict(sampler=dict(num_timesteps=7)), dict(temperature=.5))}) == 4
    real.processor.protocol["samplers"] = dict(ask=dict(num_timesteps=9))
    assert of()["sampler"]["num_timesteps"] == 9 # the one for questions, where a protocol has several


def test_hosted_replies_depend_on_the_seed_and_on_the_question(tmp_path):
    picture = RowPicture("here", png())
    exam = Exam("two alike", tuple(Item(str(n), (picture,), "Which?", "Which?", "A", "letter", ("cat", "dog")) for n in range(2)), lambda pairs: [plain_mean(pairs)])
    with Rehearsal(lambda body: "A") as server:
        ask = lambda seed, out, temperature=.7: collect(exam, HostedAnswers(Hosted(Endpoint("m", server.url, key=""), tmp_path/"cache"), "m", temperature=temperature), tmp_path/out, seed, samples=2 if temperature else 1)
        ask(0, "a"); assert len(server.seen) == 4 # two questions in the same words, two answers each
        ask(0, "b"); assert len(server.seen) == 4 # the same run once more
        ask(1, "c"); assert len(server.seen) == 8 # another seed
        ask(0, "d", 0.); ask(1, "e", 0.); assert len(server.seen) == 9 # without luck there is one reply


def test_a_picture_file_is_hashed_once(tmp_path, monkeypatch):
    exam, reads = exam_of(parameters(tmp_path)), []
    read = RowPicture.read
    monkeypatch.setattr(RowPicture, "read", lambda self: reads.append(self) or read(self))
    for mode in ("direct", "cooperate"): collect(exam, CooperAnswers(Cooper(knows(exam)), mode, "a", tmp_path/"traces"), tmp_path/"r.jsonl")
    assert len(reads) == 10 + 2*10 # once for the hash, once for each asking


def test_a_share_shows_what_is_known(tmp_path):
    p = parameters(tmp_path, share="1/2")
    s = put(p, exam_of(p), Plain("m", lambda *_: "2"))
    assert results([s]).rows[0]["asked"] == .5 and "asked %" in results([s]).columns.values()
    assert put(parameters(tmp_path/"x", share="11/12"), exam_of(p), Plain("m", lambda *_: "2")) is None


# --- a benchmark's file, a judge, and published numbers

def mmvp(tmp_path, n=4): return tsv(tmp_path/"MMVP.tsv", [dict(index=k, image=b64(), question="Which?", A="cat", B="dog", answer="AB"[k % 2]) for k in range(n)])


def test_a_file_with_a_judge(tmp_path):
    p = parameters(tmp_path, benchmark="mmvp", file=str(mmvp(tmp_path)), options=dict(labels="original"), questions=0)
    exam = exam_of(p)
    vague = Plain("vague", lambda *_: "the feline one")
    assert results([put(p, exam, vague)]).rows[0]["valid"] == 0.
    with Rehearsal(lambda body: "A") as server:
        judged = parameters(tmp_path, benchmark="mmvp", file=p.file, options=p.options, questions=0, judge=f"deepseek=DeepSeek-V3@{server.url}")
        s = put(judged, exam, vague, extractor_of(judged))
        assert (s.measures[1].estimate().value, s.measures[0].estimate().value) == (.5, 0.) # individual, and pairs
        row = results([s]).rows[0]
        assert (row["rule"], row["model_read"], row["unjudged"]) == (0, 4, 0) and len(read_records(tmp_path/"answers.jsonl")) == 4 # scored again, not asked again
        with pytest.raises(ValueError, match="different protocols"): results([s, put(p, exam, vague)])
        with pytest.raises(ValueError, match="different protocols"): published([s, put(p, exam, vague)])
    assert "the feline one" in replies(s, 2).rows[0]["reply"] and true_case(p, exam, exam.items[0].id) is None


def test_published_numbers_name_what_differs(tmp_path):
    p = parameters(tmp_path, benchmark="mmvp", file=str(mmvp(tmp_path)), questions=0)
    s = put(p, exam_of(p), Plain("m", lambda *_: "A"))
    last = published([s]).rows[-1]
    assert last["model"] == "ours: m direct" and last["MMVP"].value == .5 and "BAGEL" in published().column("model")
    assert last["differs"] == "4 questions, 300 there; read by rules (by DeepSeek-V3 there)"
    scenes = put(parameters(tmp_path/"s"), scene_exam(benchmark("scenes", count=5)), Plain("m", lambda *_: "A"))
    assert "Nothing here may be compared with scenes" in published([scenes]).note and len(published([scenes])) == len(published())


def test_the_papers_table_is_whole():
    assert len(PUBLISHED) == 12 and list(PUBLISHED)[-1] == "COOPER"
    averages = dict(zip(PUBLISHED, (70.44, 68.59, 71.83, 67.30, 70.73, 68.16, 53.45, 40.61, 60.49, 59.45, 62.24, 66.42))) # as printed beside
    for name, row in PUBLISHED.items(): assert abs(sum(row)/5 - averages[name]) < .011, name


def test_what_else_is_published_stands_beside(tmp_path):
    assert {s.exam for s in SOURCES} == {"sibench", "cv-bench", "clevr-cogent", "vsr", "sat", "pixmo-count"} and all(s.may and s.may_not for s in SOURCES)
    for s in SOURCES: assert all(len(values) == len(s.ours) for *_, values in s.rows), s.title
    rows = [dict(idx=n, task=k, image=b64(), question="Which?", choices="['1', '2']", answer="(A)", prompt="Which?\n(A) 1 (B) 2", source=s) for n, (k, s) in enumerate([("Count", "ADE20K"), ("Relation", "COCO"), ("Depth", "Omni3D"), ("Distance", "Omni3D")])]
    p = parameters(tmp_path, benchmark="cv-bench", file=str(tsv(tmp_path/"cv.tsv", rows)), questions=0)
    s = put(p, exam_of(p), Plain("m", lambda *_: "A"))
    study, counting = beside([s])
    assert study.rows[-1]["model"] == "ours: m direct" and study.rows[-1]["Depth"].value == 1. and "Total" not in study.rows[-1]
    assert counting.rows[-1]["model"] == "SpaceQwen2.5-VL-3B" # nothing of ours may stand there
    qwen = study.where(model="Qwen2.5-VL-7B", prompt="zero-shot")[0]
    assert qwen["Count"] == pytest.approx(.5076) and qwen["doubt"] == "" and study.where(model="PaliGemma 2 mix, GRPO v1 on SAT")[0]["doubt"] == "*"
    assert possible(100*400/788, 788) and not possible(78.41, 650) and "May not: Total" in study.note
    with pytest.raises(ValueError, match="different protocols"): beside([s, put(parameters(tmp_path, benchmark="cv-bench", file=p.file, questions=0, rules="published"), exam_of(p), Plain("m", None))])


# --- what the drawings are good for

def test_regret_comes_with_the_modes(tmp_path):
    p = parameters(tmp_path, modes=("direct", "reason", "perceive", "cooperate"))
    exam = exam_of(p)
    def half(question, seed): return next(i for i in exam.items if i.id == seed[2]).said if seed[1] in ("reason", "perceive") else "a sofa"
    table, = regrets(put_cooper(p, exam, Cooper(half), "a"))
    assert table.rows[-1]["calling"].value == 1. and table.rows[-1]["called"] == 1. and table.rows[-1]["not_calling"] is None and "mode reason" in table.note
    assert regrets(put_cooper(EvalParameters(**vars(p) | dict(modes=("direct", "cooperate"))), exam, Cooper(half), "a")) == []


def test_maps_are_asked_for_by_name(tmp_path):
    with pytest.raises(ValueError, match="maps: upside; expected all, or some of drawn, true, other"): parameters(tmp_path, maps=("upside",))
    for bad in (dict(modes=("direct",)), dict(keep_traces=False), dict(checkpoints=[], others=["hf:a"])):
        with pytest.raises(ValueError, match="expected checkpoints, that mode, and keep_traces"): parameters(tmp_path, maps=("all",), **bad)
    with pytest.raises(ValueError, match="nobody knows the true maps of benchmark 'mmvp'"): parameters(tmp_path, benchmark="mmvp", file="a.tsv", maps=("true",))
    with pytest.raises(ValueError, match="share is '11/12', and there are 10 answers to get"): exam_of(parameters(tmp_path, share="11/12"))


def test_what_the_drawings_of_a_checkpoint_are_good_for(tmp_path):
    p = parameters(tmp_path, checkpoints=["data/tiny-cooper"], modes=("cooperate",), maps=("true", "blank"), batch_size=16)
    exam, cooper = exam_of(p), co.load("data/tiny-cooper")
    base, = put_cooper(p, exam, cooper, "tiny")
    worth = put_maps(p, cooper, base)
    drew = [r["id"] for r in base.rows if r["calls"]]
    assert drew and list(worth.found) == ["drawn", "true", "blank"] and [r["id"] for r in worth.found["true"].rows] == drew # what the tiny checkpoint draws for is its own choice; that it draws is not
    same = {r["id"]: r["reply"] for r in base.rows if r["calls"] == 1} # who draws twice sees the first drawing twice
    assert {r["id"]: r["reply"] for r in worth.found["drawn"].rows if r["id"] in same} == same
    assert worth.help.where(map="blank", kind="all")[0]["n"] == len(drew) and worth.regret.rows[-1]["n"] == 10 and "<img" in worth.shown._repr_html_()
    before = len(read_records(tmp_path/"answers.jsonl"))
    put_maps(p, cooper, base); assert len(read_records(tmp_path/"answers.jsonl")) == before # all on record
    assert put_maps(EvalParameters(**vars(p) | dict(maps=())), cooper, base) is None and put_maps(p, cooper, score(exam, base.rows[:5])) is None


def test_what_cannot_be_shown_is_left_out_and_said(tmp_path, monkeypatch):
    p = parameters(tmp_path, checkpoints=["data/tiny-cooper"], questions=5, modes=("cooperate",), maps=("other", "blank"), batch_size=16)
    exam, cooper = exam_of(p), co.load("data/tiny-cooper")
    base, = put_cooper(p, exam, cooper, "tiny")
    def alone(items, rows, seed): raise ValueError("for no other picture was depth drawn")
    monkeypatch.setattr("cooper.measure.robustness._partners", alone)
    worth = put_maps(p, cooper, base)
    assert list(worth.found) == ["drawn", "blank"] and "Left out: other: for no other picture was depth drawn." in worth.help.note
    rows = [r for r in read_jsonl(tmp_path/"answers.jsonl") if r["mode"] != "cooperate, the other choice" or r["id"] != base.rows[0]["id"]]
    write_jsonl(tmp_path/"answers.jsonl", rows) # one answer of the other choice belongs to a process that is still at it
    assert put_maps(EvalParameters(**vars(p) | dict(share="1/2")), cooper, base) is None


def test_circular_options_of_a_file(tmp_path):
    p = parameters(tmp_path, benchmark="mcq", file=str(tsv(tmp_path/"a.tsv", [mcq(), mcq(index=1)])), options=dict(circular=True), questions=0)
    s = put(p, exam_of(p), Plain("a", lambda *_: "A"))
    assert len(exam_of(p)) == 4 and details(s).rows[0]["score"].value == 0. and details(s).rows[1]["score"].value == .5


def test_holm_by_hand():
    assert holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02]) and holm([]) == [] and holm([.9]) == [.9]


# --- any image-text-to-text model of transformers

def tiny_llava(folder): # random weights, eight words
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    words = ["<unk>", "<pad>", "<eos>", "<image>", "left", "right", "2", "3"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", additional_special_tokens=["<image>"])
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **small).to_dict(), text_config=LlamaConfig(vocab_size=8, num_key_value_heads=2, **small).to_dict(), image_token_index=3))
    template = "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    processor = LlavaProcessor(CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template)
    model.save_pretrained(folder); processor.save_pretrained(folder)
    return folder


def test_a_transformers_model_stands_in_the_table(tmp_path):
    folder = tiny_llava(tmp_path/"llava")
    p = parameters(tmp_path, checkpoints=[], others=[f"llava=hf:{folder}"], questions=5, max_tokens=3)
    exam = exam_of(p)
    (name, spec), = p.models
    rows = put_model(p, exam, name, spec) + [put(p, exam, Plain("blind", lambda *_: "left"))]
    table = results(rows)
    assert [(r["model"], r["n"], r["asked"]) for r in table.rows] == [("llava", 5, 1.), ("blind", 5, 1.)] and table.rows[0]["tokens"] == 3 and table.rows[0]["seconds"] > 0
    assert put_model(p, exam, name, spec)[0].rows == rows[0].rows # on record
    assert against(rows).rows[0]["n"] == 5


def test_an_older_result_never_stands_beside_a_newer_incomplete_one(tmp_path):
    p = parameters(tmp_path, modes=("direct",), questions=20)
    exam = exam_of(p)
    rows = put_cooper(p, exam, Cooper(knows(exam)), "a")
    show = Shown(); show("answers", answers(rows))
    assert finish(p, exam, rows, dict(a=None), **show).name == "results.json" and "100 %" in glance(tmp_path)
    wider = EvalParameters(**vars(p) | dict(checkpoints=["a", "b"], share="1/2"))
    half = rows + put_cooper(wider, exam, Cooper(knows(exam), weight=1.), "b")
    assert finish(wider, exam, half, dict(a=None, b=None), answers=answers(half)).name == "incomplete.json"
    assert not (tmp_path/"results.json").exists() and "class='tile'" not in glance(tmp_path) and "b direct: 10 of 20 answers" in glance(tmp_path)
    whole = rows + put_cooper(EvalParameters(**vars(wider) | dict(share="0/1")), exam, Cooper(knows(exam), weight=1.), "b")
    assert finish(wider, exam, whole, dict(a=None, b=None), answers=answers(whole)).name == "results.json" and not (tmp_path/"incomplete.json").exists()
    (tmp_path/"incomplete.json").write_text('{"incomplete": "old"}'); os.utime(tmp_path/"incomplete.json", (1, 1)) # two processes that end at the same time may leave both: the newer one tells
    assert "100 %" in glance(tmp_path)


def test_no_share_writes_results_before_all_edits_are_answered(tmp_path):
    p = parameters(tmp_path, modes=("direct",), edits=("polite",))
    exam = exam_of(p)
    says, rows = Plain("a", lambda *_: "left"), None
    both = [EvalParameters(**vars(p) | dict(share=f"{k}/2", checkpoints=[], others=["a=hf:x"])) for k in range(2)]
    for q in both: put(q, exam, says) # the rows are whole, the edited ones not yet
    row = put(both[0], exam, says)
    edits = put_edits(both[0], exam, [row], lambda mode: says)
    assert row.complete and edits[0].lacks == ["polite"] and missing(both[0], exam, [row], edits=edits) == ["a direct, edited: polite"]
    assert finish(both[0], exam, [row], (), (), edits, edits=edits).name == "incomplete.json"
    assert missing(both[0], exam, [row]) == ["a direct, edited: polite"] # nobody asked
    edits = put_edits(both[1], exam, [row], lambda mode: says)
    assert edits[0].lacks == [] and finish(both[1], exam, [row], (), (), edits, edits=edits).name == "results.json"
    kept = json.loads((tmp_path/"results.json").read_text())["edits"][0]
    assert [r["edit"] for r in kept["rows"]] == ["polite"] and {"p", "holm", "difference"} <= set(kept["rows"][0])


def test_answers_without_traces_are_asked_again_where_maps_are_looked_at(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COOPER_QUIET", raising=False)
    quick = parameters(tmp_path, modes=("direct", "cooperate"), keep_traces=False)
    exam = exam_of(quick)
    put_cooper(quick, exam, Cooper(knows(exam)), "a")
    with pytest.raises(ValueError, match="and keep_traces"): EvalParameters(**vars(quick) | dict(maps=("blank",))) # before anything is asked
    looks, again = EvalParameters(**vars(quick) | dict(maps=("blank",), keep_traces=True)), Cooper(knows(exam))
    rows = put_cooper(looks, exam, again, "a")
    assert {mode for mode, _ in again.asked} == {"cooperate"} and len(again.asked) == 10 and all(read_trace(r) for r in rows[1].rows)
    assert "a cooperate: 10 answers are there without their traces, and are asked for again" in capsys.readouterr().err
    resolve(rows[1].rows[0]["trace"]).unlink() # somebody tidied up
    third = Cooper(knows(exam))
    assert read_trace(put_cooper(looks, exam, third, "a")[1].rows[0]) and len(third.asked) == 1


def test_weights_are_hashed_once(tmp_path, monkeypatch):
    import cooper.measure.evaluation as evaluation, cooper.measure.records as records
    hashed = []
    for module in (evaluation, records): monkeypatch.setattr(module, "weights_hash", lambda model: hashed.append(1) or "w")
    p = parameters(tmp_path, modes=("direct", "reason", "cooperate"))
    exam = exam_of(p)
    put_cooper(p, exam, Cooper(knows(exam)), "a")
    assert len(hashed) == 1


def test_the_notebook_shows_no_table_that_results_lack():
    makers = ("grid(", "results(", "summary\n", "details(", "readings", "changed_by)", "against(", "change)", "tries(", "published(", "regrets(", "w.help", "judged_by(", "perceived)", "by_scene(", "traced(")
    after = [c.source for c in cells("40_eval") if c.cell_type == "code"][3:]
    for maker in makers: assert any("show(" in s and maker.strip() in s for s in after), maker
    for source in after:
        last = source.strip().splitlines()[-1]
        assert not re.match(r"(grid|results|details|against|passes|published|beside|regrets|summary|change|perceived|extractor)\b", last), last
    assert "**show)" in after[-2] and "part(" in after[-1]


def test_several_questions_about_one_picture_are_one_fact(tmp_path):
    exam = scene_exam(benchmark("scenes", count=40))
    n = len({i.pictures[0].hash for i in exam.items})
    assert n < 40 and f"Intervals draw {n} pictures, each with all its questions." in exam.card and len(set(clusters(exam.items))) == n
    hidden = [blind(exam, how) for how in ("grey", "shuffled", "none")]
    assert all(clusters(h.items) == clusters(exam.items) for h in hidden) # still about their own scenes
    bad = {p for k, p in enumerate(dict.fromkeys(i.pictures[0].hash for i in exam.items)) if k % 2}
    says = lambda item: "no idea" if item.pictures[0].hash in bad else item.said # fails for whole pictures
    turn = {i.prompt + i.pictures[0].hash: says(i) for i in exam.items}
    s = score(exam, collect(exam, Fails(turn), tmp_path/"r.jsonl"))
    drawn, naive = s.measures[0].estimate(), bootstrap([x["score"] for _, x in s.pairs])
    assert drawn.n == 40 and drawn.value == naive.value and drawn.high - drawn.low > naive.high - naive.low


class Fails:
    name, mode = "fails", "direct"
    def __init__(self, turn): self.turn = turn
    def config(self): return {}
    def ask(self, items, seeds): return [Answered(self.turn[i.prompt + i.pictures[0].hash]) for i in items]


def test_what_rules_and_judge_read_differently(tmp_path):
    exam = Exam("made up", tuple(Item(str(n), (), "Which?", "Which?", "B", "letter", ("cat", "dog")) for n in range(3)), lambda pairs: [plain_mean(pairs)])
    p, turn = parameters(tmp_path), iter(["A", "the canine one", "A or B"])
    vague = Plain("v", lambda *_: next(turn))
    assert readings(put(p, exam, vague)) is None
    table = readings(put(p, exam, vague, Extractor(lambda words: "B", "j")))
    assert [(r["id"], r["rules"], r["j, guarded, what rules left"]) for r in table.rows] == [("1", "none", "B"), ("2", "ambiguous", "B")]
    assert table.title == "v direct: 2 of 3 replies are read differently" and table.note == "rules: 0.000 of 3 judged; j, guarded, what rules left: 0.667 of 3 judged"


def test_every_row_is_asked_blind_and_in_other_words(tmp_path, monkeypatch):
    p = parameters(tmp_path, modes=("cooperate",), edits=("none", "grey", "polite", "rotated"))
    exam, says = exam_of(p), Plain("p", lambda *_: "left")
    grey = Image.new("RGB", exam.items[0].pictures[0].open().size, (128,)*3)
    monkeypatch.setitem(pretend.ROWS, pretend.known(grey), next(iter(pretend.ROWS.values()))) # the pretend one knows the grey picture, too
    cooper = Cooper(lambda q, seed: next(i for i in exam.items if i.id == seed[2]).said)
    draws, = put_edits(p, exam, put_cooper(p, exam, cooper, "a"), lambda mode: cooper_answerer(p, cooper, "a", mode))
    direct, = put_edits(p, exam, [put(p, exam, says)], lambda mode: says)
    assert [r["edit"] for r in direct.rows] == ["none", "grey", "polite"] and [r["edit"] for r in draws.rows] == ["grey", "polite"]
    assert "none: mode cooperate needs a picture" in draws.note and "'rotated' applies to none" in direct.note and all(r["n"] == 10 and r["difference"].value == 0 for r in direct.rows)
    assert put_edits(EvalParameters(**vars(p) | dict(edits=())), exam, [put(p, exam, says)], None) == []
    with pytest.raises(ValueError, match="edits: turned; expected some of grey, shuffled, none, flipped"): parameters(tmp_path, edits=("turned",))


# --- test sets with a published protocol

class Draws: # a checkpoint that draws every depth twice too large and two metres too far, at half the size
    def __init__(self, truths, unit="m", segments=True):
        self.truths, self.model, self.drew = truths, torch.nn.Linear(2, 2), []
        with torch.no_grad(): [w.fill_(1.) for w in self.model.parameters()]
        modalities = dict(depth=dict(near=0., far=80., unit=unit)) | (dict(segmentation=dict(palette={n: (k, k, k) for k, n in enumerate(ADE150)})) if segments else {})
        self.processor = type("Processor", (), dict(protocol=dict(modalities=modalities)))
    def perceive(self, pictures, kind, seed=0, **options):
        self.drew += [kind]*len(pictures)
        known = [self.truths[np.asarray(x).tobytes()] for x in pictures]
        if kind == "depth": return [DepthMap(2*t + 2, 0, 80, self.processor.protocol["modalities"]["depth"]["unit"]) for t in known]
        return [SegmentMap(np.where(t == 1, 2, t), self.processor.protocol["modalities"]["segmentation"]["palette"]) for t in known] # buildings for walls


@pytest.fixture(scope="module")
def sets(tmp_path_factory): # folders in their owners' layout; picture -> truth
    tmp_path = tmp_path_factory.mktemp("sets")
    owners.kitti(tmp_path/"kitti", ("val",)); owners.vkitti(tmp_path/"vkitti", ("Scene01",), 1, size=(370, 1224)); owners.ade150(tmp_path/"ade")
    at = dict(kitti=str(tmp_path/"kitti"), vkitti=str(tmp_path/"vkitti"), ade20k=str(tmp_path/"ade"))
    return at, {np.asarray(x.picture).tobytes(): x.truth for n, f in at.items() for x in open_maps(n, f)}


def test_test_sets_are_measured_as_published(tmp_path, sets):
    at, truths = sets
    p, cooper = parameters(tmp_path/"out", maps_of=at, maps_of_limit=2, cases=2), Draws(truths)
    assert list(first_maps(p)) == list(at)
    drawn = put_drawings(p, cooper, "a")
    kitti, vkitti, ade = by_protocol(drawn)
    value = lambda t, label, how: next(r for r in t.rows if r["measure"] == label and how in r["how"])["drawn a"]
    assert (kitti.rows[0]["n"], vkitti.rows[0]["n"], ade.rows[0]["n"]) == (2, 2, 1)
    assert value(kitti, "AbsRel", "as drawn").value == pytest.approx(1.2) and value(kitti, "δ < 1.25", "as drawn").value == 0. # 22 m for 10 m
    assert value(vkitti, "AbsRel", "as drawn").value == pytest.approx((12.34 + 2)/12.34, abs=2e-3) and value(vkitti, "AbsRel", "aligned").value < 1e-3 and value(vkitti, "δ < 1.25", "aligned").value == 1.
    numbers = next(x.truth for x in open_maps("ade20k", at["ade20k"]))
    ones, twos, there = (numbers == 1).sum(), (numbers == 2).sum(), len(set(numbers.ravel()) - {0})
    assert ones and twos and value(ade, "mIoU", "with classes").value == pytest.approx((there - 2 + twos/(ones + twos))/there) # class 1 is nowhere drawn, class 2 is drawn on both
    assert value(ade, "pixel accuracy", "with classes").value == pytest.approx(1 - ones/(numbers > 0).sum())
    assert value(ade, "IoU of the best region", "without names").value == pytest.approx((there - 2 + (ones + twos)/(ones + twos))/there)
    assert "not aligned; 2 pictures, the published numbers have 652" in kitti.note and "aligned: scale_shift" in kitti.note and all("never on its owner's archive" in t.note for t in (kitti, vkitti, ade))
    file = save_tables(tmp_path/"out", maps_of=by_protocol(drawn))
    kept = json.loads(file.read_text())["maps_of"]
    assert [t["title"].split(":")[0] for t in kept] == ["kitti", "vkitti", "ade20k"] and kept[0]["rows"][0]["drawn a"]["n"] == 2
    assert all(drawings_figure(d).size[0] > 300 for d in drawn) and [len(d.first) for d in drawn] == [2, 2, 1]
    assert all(np.array_equal(pair.truth, truths[np.asarray(pair.picture).tobytes()]) and np.array_equal(m.values, np.float32(2*pair.truth + 2)) for d in drawn[:2] for pair, m in d.first) # beside its own truth
    again = Draws(truths)
    assert [t.to_dict() for t in by_protocol(put_drawings(p, again, "a"))] == [t.to_dict() for t in (kitti, vkitti, ade)] and not again.drew and cooper.drew.count("depth") == 4
    put_drawings(EvalParameters(**vars(p) | dict(seed=1)), again, "a")
    assert len(again.drew) == 5 # another seed draws anew


def test_test_sets_of_checkpoints_without_metres_or_segments(tmp_path, sets):
    at, truths = sets
    p = parameters(tmp_path/"out", maps_of=dict(vkitti=dict(folder=at["vkitti"], limit=1), ade20k=at["ade20k"]), keep_traces=False)
    drawn = put_drawings(p, Draws(truths, "relative", False), "a")
    depth, segments = by_protocol(drawn + put_drawings(p, Draws(truths), "b"))
    assert "drawn a" not in depth.where(how="as drawn, in metres", measure="AbsRel")[0] and {"drawn a", "drawn b"} <= set(depth.where(how="aligned in scale and shift", measure="AbsRel")[0]) and depth.rows[0]["n"] == 1
    assert "a draws no segments" in segments.note and list(segments.columns)[3:] == ["drawn a", "drawn b"] and segments.cell(segments.rows[0], "drawn a") == "–"
    assert drawings_figure(drawn[1]) is None and not (tmp_path/"out/maps").exists()
    class Paints(Draws): # as the released checkpoints do: colours without names
        def perceive(self, pictures, kind, seed=0, **options): return [Image.fromarray(np.stack([np.where(self.truths[np.asarray(x).tobytes()] > 75, 255, 0).astype(np.uint8)]*3, -1)) for x in pictures]
    p = parameters(tmp_path/"out", maps_of=dict(ade20k=at["ade20k"]))
    one, two = (put_drawings(p, Paints(truths), "c") for _ in range(2))
    assert {r["how"] for r in by_protocol(one)[0].rows} == {"without names"} and by_protocol(one)[0].to_dict() == by_protocol(two)[0].to_dict() and drawings_figure(one[0])


def test_wrong_test_sets_are_refused_first(tmp_path, sets):
    at, _ = sets
    for bad, message in [(dict(nyuv2="x"), "maps_of has 'nyuv2'; expected some of nyu, kitti"), (dict(kitti=str(tmp_path/"none")), r"maps_of\['kitti'\]: .*none: no such folder"),
                         (dict(kitti=3), r"maps_of\['kitti'\] is 3; expected a folder"), (dict(kitti={"listed": "x"}), "expected a folder, or an object with 'folder'")]:
        with pytest.raises(ValueError, match=message): parameters(tmp_path, maps_of=bad)
    with pytest.raises(ValueError, match="maps_of measures what checkpoints draw"): parameters(tmp_path, checkpoints=[], others=["b=hf:b"], maps_of=at)
    for bad, message in [(dict(nyu=at["ade20k"]), r"maps_of\['nyu'\]: "), (dict(kitti=at["vkitti"]), r"maps_of\['kitti'\]: "), (dict(ade20k=at["kitti"]), r"maps_of\['ade20k'\]: "), (dict(vkitti=dict(folder=at["vkitti"], colour=1)), "has no option 'colour'")]:
        with pytest.raises(ValueError, match=message): first_maps(parameters(tmp_path, maps_of=bad))
