"The owners' files with their quirks, their rules against sums done by hand, and evaluations that are killed."
import base64, csv, io, json, os
from string import ascii_uppercase

import pytest
from PIL import Image

from cooper.core import NotBuilt, append_jsonl
from cooper.measure.benchmarks import benchmark, swap_test
from cooper.measure.protocols import OWNERS, circular, open_exam, read_item, scene_exam, scores, tagged_length
from cooper.measure.records import CooperAnswers, HostedAnswers, Plain, collect, details, pass_at_k, paired, passes, read_records, results, score
from cooper.measure.robustness import blind
from cooper.reason.answers import Reading
from house import ROOT
from pretend import Cooper


def png(colour="red"):
    file = io.BytesIO(); Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


def b64(colour="red"): return base64.b64encode(png(colour)).decode()


def tsv(path, rows):
    heads = list(dict.fromkeys(k for r in rows for k in r))
    with open(path, "w", newline="", encoding="utf-8") as f:
        out = csv.DictWriter(f, heads, delimiter="\t"); out.writeheader(); out.writerows(rows)
    return path


def mcq(**more): return dict(index=0, image=b64(), question="Which?", A="cat", B="dog", answer="A") | more


def parquet(path, rows):
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def scored(exam, right, folder): # `right`: a function of an item: is it answered rightly?
    def answer(item): return item.answer if right(item) else "B" if item.answer == "A" else "A"
    rows = [dict(id=i.id, sample=0, stamp=i.id, key=exam.key, exam=exam.name, model="m", mode="direct", config="c", reply=answer(i), error="", calls=0, tokens=1, seconds=.1) for i in exam.items]
    return score(exam, rows)


def measured(s): return {m.name: m.estimate().value for m in s.measures if len(m.values)}


# --- files

def test_a_file_with_every_quirk(tmp_path):
    (tmp_path/"a.png").write_bytes(png("blue"))
    rows = [mcq(index="0.0", question='5\'4"\tor two\nlines?'), mcq(index="1.0", image="0"), mcq(index="2.0", image=str([b64(), "a.png"])), mcq(index="3.0", image="", image_path="['a.png']"),
            mcq(index="4.0", A="None", B="0", answer="None"), mcq(index="5.0", A="None", B="0", answer="0"), mcq(index="6.0", image="1"), mcq(index="7.0", answer="(b)"),
            mcq(index="8.0", **{c: f"thing {c}" for c in "CDEFGHI"}, answer="I"), mcq(index="9.0", C="", D="fish", answer="D"), mcq(index="10.0", image="data:image/png;base64," + b64())]
    exam = open_exam("mcq", tsv(tmp_path/"odd.tsv", rows))
    assert [i.id for i in exam.items] == [str(n) for n in range(11)]
    assert exam.items[0].question == '5\'4"\tor two\nlines?'
    assert [len(i.pictures) for i in exam.items] == [1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert exam.items[6].pictures[0].hash == exam.items[0].pictures[0].hash # a reference to a reference
    assert [i.answer for i in exam.items] == list("AAAAABABIDA")
    assert exam.items[8].chance == 1/9 and exam.items[9].chance == 1/3 and "C." not in exam.items[9].prompt
    assert all(p.open().mode == "RGB" for i in exam.items for p in i.pictures)


@pytest.mark.parametrize("row, message", [
    (mcq(answer="C"), r":2: 'answer' is 'C'; expected one of A, B"), (mcq(answer=""), r":2: 'answer' is missing"), (mcq(question=" "), r":2: 'question' is missing"),
    (mcq(image="no.png"), r":2: 'image' is 'no.png'; expected base64"), (mcq(image=""), r":2: 'image' is missing; expected a picture"), (mcq(image="0"), r"only point to each other"),
    (mcq(A="", answer="B"), r":2: 'A' is missing; expected an option"), (mcq(image=base64.b64encode(b"x"*200).decode()), r":2: 'image' is .* expected base64 of a picture")])
def test_bad_cells_name_their_place(row, message, tmp_path):
    with pytest.raises(ValueError, match=message): open_exam("mcq", tsv(tmp_path/"bad.tsv", [row]))


def test_more_quirks_of_pictures(tmp_path):
    wrapped = "\n".join(b64()[k:k + 76] for k in range(0, len(b64()), 76))
    (tmp_path/"a, b.png").write_bytes(png("blue"))
    rows = [mcq(index=5), mcq(index=6, image='["5", "7"]'), mcq(index=7, image=b64("blue")), mcq(index=8, image="6"), mcq(index=9, image=wrapped), mcq(index=10, image=b64("blue").rstrip("=")), mcq(index=11, image="", image_path="a, b.png")]
    red, both, blue, again, lines, bare, comma = (tuple(p.hash for p in i.pictures) for i in open_exam("mcq", tsv(tmp_path/"more.tsv", rows)).items)
    assert both == again == red + blue and lines == red and bare == comma == blue
    with pytest.raises(ValueError, match=r":2: 'image' is .*only point to each other"): open_exam("mcq", tsv(tmp_path/"round.tsv", [mcq(index=5, image='["6", "6"]'), mcq(index=6, image="5")]))


def test_bad_files_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"'index' is '0'; expected an index of its own; .*:2 has it too"): open_exam("mcq", tsv(tmp_path/"a.tsv", [mcq(), mcq()]))
    with pytest.raises(ValueError, match="unknown; expected one of mcq"): open_exam("cvbench", tmp_path/"a.tsv")
    with pytest.raises(NotBuilt, match="spar-bench"): open_exam("spar-bench", tmp_path/"a.tsv")
    with pytest.raises(ValueError, match="has no option labels"): open_exam("mcq", tmp_path/"a.tsv", labels="original")
    with pytest.raises(FileNotFoundError): open_exam("mcq", tmp_path/"none.tsv")
    (tmp_path/"wide.tsv").write_text("index\tquestion\n0\tq\tmore\n")
    with pytest.raises(ValueError, match=r"wide.tsv:2: has 3 cells; expected at most 2"): open_exam("mcq", tmp_path/"wide.tsv")
    (tmp_path/"twice.tsv").write_text("index\tA\tA\n0\tq\tmore\n")
    with pytest.raises(ValueError, match="two columns have the same name"): open_exam("mcq", tmp_path/"twice.tsv")
    (tmp_path/"latin.tsv").write_bytes("index\tquestion\n0\t\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8"): open_exam("mcq", tmp_path/"latin.tsv")
    (tmp_path/"empty.tsv").write_text("index\tquestion\n")
    with pytest.raises(ValueError, match="holds no rows"): open_exam("mcq", tmp_path/"empty.tsv")


def test_nothing_in_a_file_is_executed(tmp_path):
    trap = f"[__import__('pathlib').Path({str(tmp_path/'owned')!r}).touch()]"
    with pytest.raises(ValueError): open_exam("mcq", tsv(tmp_path/"trap.tsv", [mcq(image=trap)]))
    exam = open_exam("sibench", tsv(tmp_path/"Height.tsv", [si(type="Number", answer="2")]))
    assert scores(exam.items[0], read_item(exam.items[0], trap[1:-1])) == dict(score=0., mra_vsi=0.)
    assert not (tmp_path/"owned").exists()
    source = "".join((ROOT/f"cooper/measure/{m}.py").read_text() for m in ("protocols", "records", "extraction"))
    assert "eval(" not in source.replace("literal_eval(", "")


# --- owners

def si(**more): return dict(index=0, question="How high?", answer="2", type="Number", input_type="image", data_source="SPAR-Bench", image=b64()) | more


def test_sibench(tmp_path):
    (tmp_path/"a.png").write_bytes(png()); (tmp_path/"b.png").write_bytes(png("blue"))
    rows = [si(index=n, **r) for n, r in enumerate([dict(answer="4"), dict(answer="0"), dict(answer="-2", data_source="VSI-Bench"), dict(type="Number_Int", answer="3"), dict(type="YN", answer="No", data_source="BLINK"),
            dict(type="MCQ", answer="C", question="Which? A. cat B. dog C. cow", data_source="BLINK", image="", image_path="a.png, b.png", input_type="multi-view"), dict(input_type="video")])]
    exam = open_exam("sibench", tsv(tmp_path/"Height.tsv", rows))
    assert exam.left_out == dict(video=1) and {i.kind for i in exam.items} == {"Height"} and "1 rows left out: video" in exam.card
    assert exam.items[0].prompt == "How high?" and exam.items[2].prompt == "How high?\nAnswer using a single number and nothing else."
    assert exam.items[4].prompt.endswith("\nAnswer with 'Yes' or 'No' only.") and exam.items[5].prompt.endswith("C. cow\nSelect from the given options, answer with letters only.")
    assert len(exam.items[5].pictures) == 2
    worth = lambda n, reply: scores(exam.items[n], read_item(exam.items[n], reply))["score"]
    assert worth(0, "5") == .5 and worth(0, "4") == 1. and worth(0, "6") == 0. # errors .25 (below .50 ... .30: five of ten), 0, .5
    assert scores(exam.items[0], Reading("value", "5"))["mra_vsi"] == .6 and scores(exam.items[0], Reading("value", "6"))["mra_vsi"] == .1 # and with <=
    assert (worth(1, "0"), worth(1, "0.1"), worth(2, "-2"), worth(2, "2")) == (1., 0., 1., 0.)
    assert (worth(3, "three"), worth(3, "3.0"), worth(3, "4"), worth(4, "no."), worth(4, "yes and no"), worth(5, "(C)"), worth(5, "cow")) == (1., 1., 0., 1., 0., 1., 1.)
    for bad in (dict(type="MC"), dict(input_type="photo"), dict(answer="None"), dict(answer="tall"), dict(type="YN", answer="maybe"), dict(type="Number_Int", answer="2.5")):
        with pytest.raises(ValueError, match=r"bad.tsv:2: '(type|input_type|answer)' is"): open_exam("sibench", tsv(tmp_path/"bad.tsv", [si(**bad)]))
    with pytest.raises(ValueError, match="has no column 'data_source'"): open_exam("sibench", tsv(tmp_path/"bad.tsv", [{k: v for k, v in si().items() if k != "data_source"}]))


def test_sibench_folder_macro_and_full(tmp_path):
    tsv(tmp_path/"Height.tsv", [si(index=n) for n in range(3)]); tsv(tmp_path/"Occlusion.tsv", [si(type="YN", answer="Yes")]); tsv(tmp_path/"Object_Shape.tsv", [si(input_type="multi-view")])
    exam = open_exam("sibench", tmp_path)
    assert [i.id for i in exam.items] == ["Height/0", "Height/1", "Height/2", "Occlusion/0"] and list(exam.left_out.values()) == [1]
    assert len(open_exam("sibench", tmp_path, full=True)) == 5
    m = measured(scored(exam, lambda i: i.id in ("Height/0", "Height/1"), tmp_path))
    assert m["overall"] == .5 and m["macro over settings"] == pytest.approx(1/3) and m["level BP"] == .5


def test_cv_bench_official_score_by_hand(tmp_path):
    sources = ["ADE20K"]*2 + ["COCO"]*4 + ["Omni3D"]*2 # right: 1 of 2, 1 of 4, 2 of 2
    rows = [dict(idx=n, task="Count" if n < 4 else "Depth", image=dict(bytes=png(), path=None), question="Which?", choices=["1", "2"], answer="(A)", prompt=f"P{n}\n(A) 1 (B) 2", source=s) for n, s in enumerate(sources)]
    exam = open_exam("cv-bench", parquet(tmp_path/"cv.parquet", rows))
    m = measured(scored(exam, lambda i: i.id in "0267", tmp_path))
    assert m["official ½((ADE+COCO)/2 + Omni3D)"] == pytest.approx(((1/2 + 1/4)/2 + 1)/2)
    assert m["micro"] == .5 and m["macro over tasks"] == .5 and m["source COCO"] == .25
    assert exam.items[0].prompt == "P0\n(A) 1 (B) 2"
    part = open_exam("cv-bench", parquet(tmp_path/"part.parquet", rows[:6]))
    assert next(iter(measured(scored(part, lambda i: True, tmp_path)))) == "micro" # no official score without all sources


def test_q_spatial(tmp_path):
    rows = [dict(question="How far?", answer_value=.6, answer_unit="m", question_type="gap", image_path="a.png", image=dict(bytes=png(), path=None)), dict(question="How tall?", answer_value=10., answer_unit="inch", question_type="height", image_path="", image=dict(bytes=png(), path=None))]
    exam = open_exam("q-spatial", parquet(tmp_path/"q.parquet", rows))
    worth = lambda n, reply, rules="cooper": scores(exam.items[n], read_item(exam.items[n], reply, rules))
    tags = lambda v, u: rf"So \scalar{{{v}}} \distance_unit{{{u}}}"
    assert worth(0, tags(119, "cm")) == {"score": 1., "delta<1.5": 0.} and worth(0, tags(1.2, "m"))["score"] == 0. and worth(0, tags(31, "cm")) == {"score": 1., "delta<1.5": 0.}
    assert worth(0, tags("50-70", "cm"))["delta<1.5"] == 1. and worth(1, tags(1, "foot"))["delta<1.5"] == 1. and worth(0, tags(0, "m"))["score"] == 0.
    assert worth(0, "About 70 cm.")["score"] == 1. and worth(0, "About 70 cm.", "published")["score"] == 0. and worth(0, "0.6")["score"] == 0.
    assert worth(0, r"<think>\scalar{0.6} \distance_unit{m}</think> I do not know.")["score"] == 0.
    assert exam.items[0].system.endswith("at the end of your response.") and exam.items[0].prompt.startswith("Question: How far?\nLet's thinkg")
    assert tagged_length(r"\scalar{0.5} \distance_unit{parsec}").outcome == "none"
    bad = parquet(tmp_path/"bad.parquet", [rows[0] | dict(answer_value=-1.)])
    with pytest.raises(ValueError, match="row 1: 'answer_value' is .*above 0"): open_exam("q-spatial", bad)


def mmvp(tmp_path, count, answer=lambda n: "(a)"):
    (tmp_path/"MMVP Images").mkdir(exist_ok=True)
    with open(tmp_path/"Questions.csv", "w", newline="") as f:
        out = csv.writer(f); out.writerow(["Index", "Question", "Options", "Correct Answer"])
        for n in range(1, count + 1):
            out.writerow([n, f"q{(n - 1)//2}", "(a) Open (b) Closed", answer(n)]); (tmp_path/f"MMVP Images/{n}.jpg").write_bytes(png())
    return tmp_path/"Questions.csv"


def test_mmvp_pairs_and_labels(tmp_path):
    exam = open_exam("mmvp", mmvp(tmp_path, 6))
    m = measured(scored(exam, lambda i: i.id in "123", tmp_path))
    assert m == {"pairs": pytest.approx(1/3), "individual": .5} and exam.items[0].options == ("Open", "Closed")
    assert exam.measures([(i, dict(score=1.)) for i in exam.items])[0].chance == .25
    whole = mmvp(tmp_path, 300, lambda n: "(a)" if n % 2 else "(b)")
    original, corrected = ({i.id: i.answer for i in open_exam("mmvp", whole, labels=labels).items} for labels in ("original", "corrected"))
    assert {n for n in original if original[n] != corrected[n]} == {"99", "100", "279", "280"}
    with pytest.raises(ValueError, match="question 5 has no partner"): open_exam("mmvp", mmvp(tmp_path, 5))


def test_mmbench_and_circular(tmp_path):
    rows = [mcq(index=i, answer=a) for i, a in ((7, "A"), (1000007, "B"), (8, "A"), (1000008, "B"))]
    exam = open_exam("mmbench", tsv(tmp_path/"mmb.tsv", rows))
    m = measured(scored(exam, lambda i: i.id != "1000008", tmp_path))
    assert (m["circular"], m["first rotation only"], m["all rows"]) == (.5, 1., .75)
    turned = circular(open_exam("mcq", tsv(tmp_path/"one.tsv", [mcq(C="cow", answer="B")])))
    assert [(i.options, i.answer) for i in turned.items] == [(("cat", "dog", "cow"), "B"), (("dog", "cow", "cat"), "A"), (("cow", "cat", "dog"), "C")]
    assert all(i.options[ord(i.answer) - 65] == "dog" and "\nA. " + i.options[0] in i.prompt for i in turned.items)


def test_3dsrbench_four_ways(tmp_path):
    ids = ["AAAAAAAA", "AAAAAAAA-1", "AAAAAAAA-flip", "AAAAAAAA-flip-1", "BBBBBBBB", "BBBBBBBB-1", "BBBBBBBB-flip", "BBBBBBBB-flip-1"]
    exam = open_exam("3dsrbench", tsv(tmp_path/"3d.tsv", [mcq(index=n, qid=q) for n, q in enumerate(ids)]))
    m = measured(scored(exam, lambda i: i.group != "BBBBBBBB-flip-1", tmp_path))
    assert (m["vanilla"], m["flip"], m["circular"], m["flip and circular"]) == (7/8, 3/4, 3/4, 1/2)


def test_blink_vsi_and_the_counting_sets(tmp_path):
    rows = [dict(idx=f"v{n}", sub_task="Counting" if n else "Jigsaw", question="q", image_1=dict(bytes=png(), path=None), image_2=dict(bytes=png("blue"), path=None) if n else None, choices=["x", "y"], answer="(B)", prompt="p") for n in range(4)]
    exam = open_exam("blink", parquet(tmp_path/"b.parquet", rows))
    assert [len(i.pictures) for i in exam.items] == [1, 2, 2, 2]
    m = measured(scored(exam, lambda i: i.id == "v0", tmp_path))
    assert m["macro over tasks"] == .5 and m["micro"] == .25
    exam = open_exam("superclevr", parquet(tmp_path/"c.parquet", [dict(image=dict(bytes=png(), path=None), problem="How many?", solution="<answer> 3 </answer>")]))
    assert scores(exam.items[0], read_item(exam.items[0], "<answer> 3 </answer>")) == dict(score=1.)
    row = lambda said: dict(image=dict(bytes=png(), path=None), problem="Is there?", solution=f"<answer> {said} </answer>")
    mixed = open_exam("clevr-cogent", parquet(tmp_path/"yes.parquet", [row("no"), row("True"), row("0")]))
    assert [(i.rule, i.answer, i.kind, i.chance) for i in mixed.items] == [("yes_no", "no", "yes or no", .5), ("yes_no", "yes", "yes or no", .5), ("integer", "0", "count", 0.)]
    assert measured(score(mixed, [dict(id=i.id, sample=0, stamp="", key=mixed.key, exam="", model="m", mode="", config="", reply="no", error="", calls=0, tokens=1, seconds=0.) for i in mixed.items]))["overall"] == pytest.approx(1/3)
    with pytest.raises(ValueError, match="'solution' is .*; expected <answer> with a number, or yes or no"): open_exam("clevr-cogent", parquet(tmp_path/"bad.parquet", [row("red")]))
    sha = "a"*64; (tmp_path/f"{sha}.png").write_bytes(png())
    exam = open_exam("pixmo-count", parquet(tmp_path/"p.parquet", [dict(image_url="", image_sha256=sha, count=0, label="cats")]), images=tmp_path)
    assert scores(exam.items[0], read_item(exam.items[0], "zero")) == dict(score=1.)
    with pytest.raises(ValueError, match="image_sha256"): open_exam("pixmo-count", parquet(tmp_path/"p2.parquet", [dict(image_sha256="../etc", count=1, label="cats")]))
    kinds = ["object_counting", "object_rel_direction_easy", "object_rel_direction_hard"]
    (tmp_path/"arkit"/"s1").mkdir(parents=True); [(tmp_path/"arkit"/"s1"/f"{n}.png").write_bytes(png()) for n in range(3)]
    vsi = [dict(id=n, dataset="arkit", scene_name="s1", question_type=k, question="q", options=None if n == 0 else ["A. left", "B. right"], ground_truth="2" if n == 0 else "A") for n, k in enumerate(kinds)]
    exam = open_exam("vsi-bench", parquet(tmp_path/"v.parquet", vsi))
    assert len(exam.items[0].pictures) == 3 and exam.items[1].options == ("left", "right")
    m = measured(scored(exam, lambda i: i.kind != "object_rel_direction_hard", tmp_path))
    assert m["macro over types"] == pytest.approx((1 + 1/2)/2) and m["micro"] == pytest.approx(2/3)


def test_sat_vsr_and_mm_vet(tmp_path):
    sat = [dict(image_bytes=[dict(bytes=png(), path=None)]*2, question="q", answers=["left", "right", "none"], question_type="move", correct_answer="right") for _ in range(12)]
    exam = open_exam("sat", parquet(tmp_path/"s.parquet", sat))
    assert all(i.options[ord(i.answer) - 65] == "right" for i in exam.items) and len({i.answer for i in exam.items}) == 3
    assert [i.options for i in exam.items] == [i.options for i in open_exam("sat", tmp_path/"s.parquet").items] and len(exam.items[0].pictures) == 2
    (tmp_path/"1.jpg").write_bytes(png())
    (tmp_path/"vsr.jsonl").write_text("".join(json.dumps(dict(image="1.jpg", caption="The cat is on the mat.", label=n, relation="on")) + "\n" for n in (0, 1)))
    exam = open_exam("vsr", tmp_path/"vsr.jsonl")
    assert [i.answer for i in exam.items] == ["no", "yes"] and exam.items[0].chance == .5
    (tmp_path/"mm-vet.json").write_text(json.dumps({"v1_0": dict(imagename="1.jpg", question="What is x?", answer="-1<AND>-5", capability=["ocr", "math"])}))
    exam = open_exam("mm-vet", tmp_path/"mm-vet.json")
    s = score(exam, collect(exam, Plain("x", lambda *_: "-1"), tmp_path/"r.jsonl"))
    assert s.rows[0]["outcome"] == "unjudged" and results([s]).rows[0]["unjudged"] == 1 and results([s]).rows[0]["score"] is None # no judge: no score, and not wrong


# --- records

def killed(out, rank): # a process that answers five questions and is killed in the sixth
    pid = os.fork()
    if pid: return pid
    count = []
    try: collect(scene_exam(benchmark("scenes", count=20)), Plain("a", lambda p, q, s: "A" if len(count) < 5 and not count.append(1) else os.kill(os.getpid(), 9)), out, batch_size=2, share=(rank, 2))
    finally: os._exit(1)


def test_killed_and_resumed_with_another_process_count(tmp_path):
    out = tmp_path/"r.jsonl"
    assert [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in [killed(out, rank) for rank in range(2)]] == [-9, -9] # two at once, one file
    assert len(read_records(out)) == 8 # two whole batches of two each
    with open(out, "ab") as f: f.write(b'{"id": "torn')
    exam, asked = scene_exam(benchmark("scenes", count=20)), []
    for rank in range(3): done = collect(exam, Plain("a", lambda p, q, s: asked.append(q) or "A"), out, batch_size=2, share=(rank, 3))
    assert len(asked) == 12 and [r["id"] for r in done] == [i.id for i in exam.items]
    assert len({r["stamp"] for r in read_records(out)}) == len(read_records(out)) == 20


def test_what_was_not_answered_is_asked_again(tmp_path):
    exam, out = scene_exam(benchmark("scenes", count=5)), tmp_path/"r.jsonl"
    first = collect(exam, Plain("a", lambda p, q, s: None), out)
    assert results([score(exam, first)]).rows[0]["unjudged"] == 5
    assert [r["reply"] for r in collect(exam, Plain("a", lambda p, q, s: "A"), out)] == ["A"]*5
    assert [r["reply"] for r in collect(exam, Plain("a", lambda p, q, s: "B"), out)] == ["A"]*5 # known now
    assert [r["reply"] for r in collect(exam, Plain("a", lambda p, q, s: "B", temperature=1), out)] == ["B"]*5 # another config
    assert [r["reply"] for r in collect(exam, Plain("a", lambda p, q, s: "C"), out, seed=1)] == ["C"]*5
    append_jsonl(tmp_path/"other.jsonl", dict(id=1))
    with pytest.raises(ValueError, match="a row has no id, stamp or key"): collect(exam, Plain("a", lambda *_: "A"), tmp_path/"other.jsonl")
    with pytest.raises(ValueError, match=r"share is \(2, 2\)"): collect(exam, Plain("a", lambda *_: "A"), out, share=(2, 2))


def test_a_cooper_answers_and_keeps_its_traces(tmp_path):
    bench = benchmark("scenes", count=10)
    truth = {q.data_id: q.answer for q in bench.questions}
    cooper = Cooper(lambda question, seed: truth[seed[2]])
    exam = scene_exam(bench)
    rows = collect(exam, CooperAnswers(cooper, "cooperate", "pretend", tmp_path/"traces"), tmp_path/"r.jsonl")
    assert score(exam, rows).measures[0].estimate().value == 1. and all(r["calls"] == 1 and json.loads(open(r["trace"]).read()) for r in rows)
    other = collect(blind(exam, "shuffled"), CooperAnswers(cooper, "cooperate", "pretend", tmp_path/"traces"), tmp_path/"r.jsonl")
    assert not {r["trace"] for r in rows} & {r["trace"] for r in other}, "the same words about other pictures are other traces"


def test_tables_refuse_what_cannot_be_compared_and_count_by_hand(tmp_path):
    exam = scene_exam(benchmark("scenes", count=20))
    def know(share): # asked in the exam's order
        turn = iter(range(99))
        return lambda p, q, s: exam.items[n].said if (n := next(turn)) % share == 0 else "no idea"
    a, b = (score(exam, collect(exam, Plain(n, know(k)), tmp_path/"r.jsonl")) for n, k in (("all", 1), ("half", 2)))
    row = results([a, b]).rows[1]
    assert row["score"].value == .5 and row["valid"] == .5 and row["rule"] == 20 and row["unjudged"] == 0
    change = paired(b, a).rows[-1]
    pictures = len({i.pictures[0].hash for i in exam.items[1::2]}) # of the ten questions that changed: whole pictures are exchanged
    assert (change["better"], change["worse"], change["difference"].value) == (10, 0, .5) and change["p"] == pytest.approx(2/2**pictures) and pictures < 10
    assert details(a).rows[0]["n"] == 20 and [r["score1"].value for r in details(a, b).rows][0] == .5
    with pytest.raises(ValueError, match="different protocols"): results([a, score(exam, b.rows, rules="published")])
    with pytest.raises(ValueError, match="different protocols"): paired(a, score(exam, b.rows, rules="published"))
    with pytest.raises(ValueError, match="records of 2 answerers"): score(exam, a.rows + b.rows)
    with pytest.raises(ValueError, match="belongs to scenes"): score(scene_exam(benchmark("scenes", count=10)), a.rows)


def test_pass_at_k_and_swap_test_by_hand(tmp_path):
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3/10) and pass_at_k(3, 0, 3) == 0. and pass_at_k(3, 1, 3) == 1.
    with pytest.raises(ValueError, match="pass@4 of 3"): pass_at_k(3, 1, 4)
    assert swap_test([1]*8 + [-1]*2) == pytest.approx(2*(1 + 10 + 45)/1024) and swap_test([]) == 1.
    exam = scene_exam(benchmark("scenes", count=5)); turn = []
    s = score(exam, collect(exam, Plain("a", lambda p, q, x: next(i for i in exam.items if i.prompt == q).said if turn.append(1) or len(turn) % 2 else "?"), tmp_path/"r.jsonl", samples=2))
    assert [r["score"].value for r in passes(s).rows] == [.5, 1.] and passes(s).rows[1]["chance"] > passes(s).rows[0]["chance"]


def test_a_hosted_model_answers(tmp_path):
    hosted = pytest.importorskip("cooper.reason.hosted")
    exam = open_exam("mcq", tsv(tmp_path/"a.tsv", [mcq(), mcq(index=1, answer="B")]))
    with hosted.Rehearsal(lambda body: "A") as server:
        asker = hosted.Hosted(hosted.Endpoint("m", server.url, key="", first_wait=.01), tmp_path/"cache")
        s = score(exam, collect(exam, HostedAnswers(asker), tmp_path/"r.jsonl"))
    assert s.measures[0].estimate().value == .5 and server.seen[0]["messages"][-1]["content"][-1]["text"] == exam.items[0].prompt


def test_every_owner_is_named_in_an_error():
    with pytest.raises(ValueError, match="open_exam"): benchmark("sibench")
    assert len(ascii_uppercase) == 26 and len(OWNERS) == 15


# --- one file with everything at once, from reading to the score

def test_a_hostile_file_from_reading_to_the_score(tmp_path):
    (tmp_path/"images").mkdir(); (tmp_path/"images/two words.png").write_bytes(png("blue"))
    letters = {c: f"thing {c}" for c in "ABCDEFGHI"}
    rows = [si(index="10.0", type="Number", answer="0", image=b64()), si(index="11.0", type="Number", answer="-4", image="10"), si(index="12.0", type="Number_Int", answer="0", image="11.0"),
            si(index="13.0", type="MCQ", question="Which? A. None B. 0 C. -1", answer="None", image=str([b64(), b64("blue")])), si(index="14.0", type="YN", answer="FALSE", image="", image_path="two words.png"),
            si(index="15.0", type="MCQ", question="Which? " + " ".join(f"{c}. {t}" for c, t in letters.items()), answer="(i)", image="data:image/png;base64," + b64()), si(index="16.0", type="Number", answer="1,000", image="10")]
    path = tsv(tmp_path/"Height.tsv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()) # saved by a spreadsheet
    exam = open_exam("sibench", path)
    assert [i.id for i in exam.items] == [str(n) for n in range(10, 17)] and [len(i.pictures) for i in exam.items] == [1, 1, 1, 2, 1, 1, 1]
    assert exam.items[2].pictures[0].hash == exam.items[0].pictures[0].hash != exam.items[4].pictures[0].hash
    assert [i.answer for i in exam.items][3:6] == ["A", "no", "I"] and exam.items[5].chance == 1/9 and exam.items[3].options == ("None", "0", "-1")
    said = {"10": "zero", "11": "minus four", "12": "None", "13": "none", "14": "No, it is not.", "15": "**I**", "16": "about 900"}
    def answers(name, said): return score(exam, collect(exam, Plain(name, lambda p, q, s: next(said[i.id] for i in exam.items if i.prompt == q and len(i.pictures) == len(p) and i.id in said and said[i.id] not in done and not done.append(said[i.id]))), tmp_path/"r.jsonl"))
    done = []
    s = answers("right", said)
    assert {r["id"]: r["scores"]["score"] for r in s.rows} == {"10": 1., "11": 1., "12": 1., "13": 1., "14": 1., "15": 1., "16": .8} # 100 of 1000: below 0.50 ... 0.15, eight of ten
    done = []
    wrong = answers("wrong", {"10": "0.1", "11": "4", "12": "1", "13": "0", "14": "No and yes", "15": "A or I", "16": "many"})
    assert measured(wrong)["overall"] == 0. and [r["outcome"] for r in wrong.rows][4:] == ["ambiguous", "ambiguous", "none"]


@pytest.mark.parametrize("gone", ["question", "answer", "type", "data_source", "input_type"])
def test_a_missing_column_is_named(gone, tmp_path):
    row = {k: v for k, v in si().items() if k != gone}
    with pytest.raises(ValueError, match=rf"Height.tsv.*'{gone}'"): open_exam("sibench", tsv(tmp_path/"Height.tsv", [row]))


@pytest.mark.parametrize("name, gone", [("cv-bench", "answer"), ("cv-bench", "question"), ("blink", "answer"), ("mmvp", "answer"), ("mmbench", "question"), ("vsr", "label"), ("sat", "answers"), ("q-spatial", "answer_unit"), ("mm-vet", "answer")])
def test_a_missing_column_is_named_by_every_owner(name, gone, tmp_path):
    whole = dict(index=0, image=b64(), question="Which?", answer="A", A="cat", B="dog", caption="The cat sits.", label=1, answers="['a', 'b']", correct_answer="a", answer_value="2", answer_unit="m", capability="rec", imagename="x", prompt="Which?", **{"Correct Answer": "A", "Question": "Which?"})
    extra = {"answer": ("Correct Answer",), "question": ("Question", "prompt")}.get(gone, ())
    with pytest.raises(ValueError, match="a.tsv"): open_exam(name, tsv(tmp_path/"a.tsv", [{k: v for k, v in whole.items() if k != gone and k not in extra}]))


def test_pictures_of_two_picture_rows_are_sent_in_order(tmp_path):
    blink = [dict(idx=f"val_{n}", sub_task="Multi-view_Reasoning", question="q", prompt="Which way?", choices=["left", "right"], answer="(A)", image_1=dict(bytes=png("red")), image_2=dict(bytes=png("blue")), image_3=None) for n in range(2)]
    exam, seen = open_exam("blink", parquet(tmp_path/"b.parquet", blink)), []
    collect(exam, Plain("looks", lambda p, q, s: seen.append([x.getpixel((0, 0)) for x in p]) or "A"), tmp_path/"r.jsonl")
    assert seen == [[(255, 0, 0), (0, 0, 255)]]*2
    rows = read_records(tmp_path/"r.jsonl")
    assert [len(r["pictures"]) for r in rows] == [2, 2] and set(rows[0]) >= {"id", "prompt", "pictures", "reply", "trace", "seconds", "tokens", "calls", "seed", "config"}


def test_corrected_labels_need_no_asking(tmp_path):
    rows = [mcq(index=n, answer="A") for n in range(4)]
    def says(p, q, s): raise AssertionError("asked again")
    first = open_exam("mcq", tsv(tmp_path/"a.tsv", rows))
    assert measured(score(first, collect(first, Plain("m", lambda *_: "A"), tmp_path/"r.jsonl")))["overall"] == 1.
    rows[0]["answer"] = "B"
    mended = open_exam("mcq", tsv(tmp_path/"a.tsv", rows))
    assert mended.key != first.key and measured(score(mended, collect(mended, Plain("m", says), tmp_path/"r.jsonl")))["overall"] == .75
