"Models × prompts × benchmarks: owners' files asked in four conditions, counted as their owners count, and what cannot be asked told."
import base64, csv, io, json
from collections import Counter

import pytest
from PIL import Image

from cooper.core import resolve, write_jsonl
from cooper.measure.protocols import open_exam
from cooper.measure.records import read_records, score
from cooper.measure.study import (Bank, StudyParameters, exam_bank, graph_counts, helped, prompt_item, read_shots, rule_reader, scene_bank, study, study_banks, study_figure, study_files, study_models, study_pictures,
                                  study_plan, study_shots)
from cooper.reason.descriptions import describe, from_clevr, worded
from cooper.reason.hosted import Endpoint, Hosted, LocalCooper, Rehearsal, picture_bytes
from cooper.reason.prompting import SEEN
from test_descriptions import VAL_0, clevr_file, clevr_scene


def png(colour="red", size=(8, 6), mode="RGB"):
    file = io.BytesIO(); Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def b64(colour="red"): return base64.b64encode(png(colour)).decode()


def tsv(path, rows):
    heads = list(dict.fromkeys(k for r in rows for k in r))
    with open(path, "w", newline="", encoding="utf-8") as f: out = csv.DictWriter(f, heads, delimiter="\t"); out.writeheader(); out.writerows(rows)
    return path


def parquet(path, rows):
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def vsr(folder): # as cambridgeltl has it: JSON lines, pictures in a folder of COCO
    (folder/"coco").mkdir(); (folder/"coco"/"1.jpg").write_bytes(b""); Image.new("RGB", (9, 7), "blue").save(folder/"coco"/"1.jpg")
    rows = [("The cat is on the mat.", 1, "on"), ("The cat is under the mat.", 0, "under"), ("The dog is on the mat.", 1, "on")]
    return write_jsonl(folder/"dev.jsonl", [dict(image="1.jpg", image_link="", caption=c, label=l, relation=r) for c, l, r in rows]), folder/"coco"


def cvbench(folder): # as nyu-visionx has it
    def row(n, task, source, choices, answer):
        q = f"Which one is it, number {n}?"
        return dict(idx=n, type="2D", task=task, image=dict(bytes=png(), path=None), question=q, choices=choices, answer=answer, prompt=q + " Select from the following choices.\n" + "\n".join(f"({a}) {c}" for a, c in zip("ABCDEF", choices)),
                    source=source, source_dataset=source)
    return parquet(folder/"cv.parquet", [row(0, "Count", "ADE20K", ["2", "1", "3", "0"], "(A)"), row(1, "Relation", "COCO", ["left", "right"], "(B)"), row(2, "Depth", "Omni3D", ["cup", "jar"], "(A)"), row(3, "Distance", "Omni3D", ["cup", "jar"], "(A)")])


def sat(folder): # as array/SAT has it: the right answer first among the answers, one or two pictures
    return parquet(folder/"sat.parquet", [dict(image_bytes=[png(c) for c in colours], question=f"Did it move, {n}?", answers=["yes, left", "no"], question_type="movement", correct_answer="yes, left") for n, colours in enumerate((("red",), ("red", "blue")))])


def talk(server, folder, **more): return Hosted(Endpoint("m", server.url, key="", name="here", price=(1., 1.), **more), folder)


def words_of(body): # all words of a request
    parts = lambda m: [dict(type="text", text=m["content"])] if isinstance(m["content"], str) else m["content"]
    return "\n".join(p["text"] for m in body["messages"] for p in parts(m) if p["type"] == "text")


def pictures_of(body): return [p["image_url"]["url"] for m in body["messages"] if not isinstance(m["content"], str) for p in m["content"] if p["type"] == "image_url"]


def lines(done, **fields): return done.table.where(**fields)


def test_models_prompts_and_benchmarks(tmp_path):
    "Three owners' files and our scenes, two prompts, four conditions: every number by hand."
    file, coco = vsr(tmp_path)
    p = StudyParameters(["m@http://127.0.0.1:9/v1"], ("plain", "cvbench_zero_shot", "owner"), ("scenes", f"vsr={file}@{coco}", f"cv-bench={cvbench(tmp_path)}", f"SAT={sat(tmp_path)}"), questions=5, out=str(tmp_path))
    banks = study_banks(p)
    assert [(b.name, len(b.items)) for b in banks] == [("scenes", 5), ("vsr", 3), ("cv-bench", 4), ("sat", 2)] and len(study_files(p)) == 4
    def answer(body): # always yes, always A
        said = words_of(body)
        return "yes" if "yes or no" in said else "<answer>(A)</answer>"
    with Rehearsal(answer) as server:
        model = talk(server, tmp_path)
        plan, = study_plan([model], p.prompts, banks)
        assert not server.calls
        done = study([model], p.prompts, banks, show=False)
        assert len(server.seen) == len({json.dumps(b) for b in server.seen}) <= plan.sent and model.spent.money <= plan.money
        once = len(server.seen)
        assert [r["value"] for r in study([model], p.prompts, banks, show=False).rows] == [r["value"] for r in done.rows] and len(server.seen) == once
    line = lambda b, pr, s="picture": lines(done, benchmark=b, prompt=pr, seen=s)[0]
    assert line("vsr", "plain")["score"].value == pytest.approx(2/3) and line("vsr", "plain")["constant"] == pytest.approx(2/3) and line("vsr", "plain")["chance"] == .5
    cv = line("cv-bench", "cvbench_zero_shot")
    assert cv["measure"].startswith("official") and cv["score"].value == pytest.approx(.25*1 + .25*0 + .5*1) # ADE right, COCO wrong, Omni3D right
    assert line("cv-bench", "owner")["score"].value == cv["score"].value
    assert [r["measure"] for r in done.details.where(benchmark="cv-bench", prompt="plain", seen="nothing")][:3] == [cv["measure"], "micro", "macro over tasks"]
    assert {r.get("n") for r in lines(done, benchmark="sat", prompt="plain")} == {2, None}
    for b in ("vsr", "cv-bench", "sat"): # no truth about the scenes: said in the table, and not asked
        for s in ("picture+words", "words"): assert "no description" in line(b, "plain", s)["why"] and line(b, "plain", s).get("score") is None
    assert {line("vsr", "cvbench_zero_shot", s)["why"] for s in SEEN} == {"the prompt prints options, and the questions have none"}
    assert all("why" not in r for r in lines(done, benchmark="scenes")) and len(lines(done, benchmark="scenes")) == 12
    assert len(done.table) == 4*3*4 and "left out, because" in done.table.columns.values() # nothing is missing without a word
    study_figure(done.table.rows)


def test_the_same_question_in_every_condition_of_an_owners_file(tmp_path):
    banks = [exam_bank(open_exam("cv-bench", cvbench(tmp_path)), lambda i: f"Words about {i.id}.")]
    with Rehearsal(lambda body: "A") as server:
        study([talk(server, tmp_path, concurrency=1)], ("plain",), banks, show=False)
    of = {n: [b for b in server.seen if f"number {n}?" in words_of(b)] for n in range(4)}
    for n, bodies in of.items():
        texts = [words_of(b) for b in bodies]
        assert texts[0] == texts[3] and texts[1] == texts[2] == f"Words about {n}.\n" + "\n" + texts[0]
        assert [len(pictures_of(b)) for b in bodies] == [1, 1, 0, 0]
        assert pictures_of(bodies[0])[0].endswith(base64.b64encode(png()).decode()) # the file's own bytes


def test_two_pictures_are_both_shown(tmp_path):
    bank = exam_bank(open_exam("sat", sat(tmp_path)))
    with Rehearsal(lambda body: "<answer>yes, left</answer>") as server: done = study([talk(server, tmp_path, concurrency=1)], ("plain", "optical_flow"), [bank], ("picture",), show=False)
    assert [len(pictures_of(b)) for b in server.seen[:2]] == [1, 2]
    assert [r["calls"] for r in done.rows] == [1, 1, 1, 2] and all(r["scores"]["score"] == 1 for r in done.rows) # the option in words, wherever it stands


def test_clevr_pictures_get_their_scenes_words(tmp_path):
    "CLEVR-CoGenT as MMInstruction has it (RGBA, problem, solution), CLEVR's own scene file beside."
    from cooper.perceive.scenes import load_facts
    facts = load_facts("data/scenes/test", 4)
    (tmp_path/"valB").mkdir()
    pictures = [Image.open(resolve("data/scenes/test")/f["image"]).convert("RGBA").resize((480, 320)) for f in facts]
    for i, x in enumerate(pictures): x.save(tmp_path/"valB"/f"CLEVR_valB_{i:06d}.png")
    scenes = clevr_file(tmp_path/"CLEVR_valB_scenes.json", "valB", map(clevr_scene, facts))
    def row(i):
        file = io.BytesIO(); pictures[i].save(file, "PNG")
        return dict(image=dict(bytes=file.getvalue(), path=None), problem=f"How many items are there, {i}?", solution=f"<answer> {len(facts[i]['objects'])} </answer>")
    file = parquet(tmp_path/"cogent.parquet", [row(i) for i in (2, 0, 3)])
    p = StudyParameters(["rehearsal"], ("plain", "clevr_words", "clevr_zero_shot"), (f"clevr-cogent={file}",), clevr=(f"clevr-cogent={scenes}@{tmp_path/'valB'}",), form="structured", out=str(tmp_path/"out"))
    bank, = study_banks(p)
    assert [i.words for i in bank.items] == [describe(from_clevr(clevr_scene(facts[i]) | dict(image_filename="x.png")), "structured") for i in (2, 0, 3)]
    def count(body): return f"<answer>{words_of(body).split('Objects: ')[1].splitlines()[0].count(';') + 1}</answer>" if "Objects:" in words_of(body) else "<answer>99</answer>"
    with Rehearsal(count) as server: done = study([talk(server, tmp_path)], p.prompts, [bank], show=False)
    score = lambda pr, s: lines(done, prompt=pr, seen=s)[0]["score"].value
    assert [score("plain", s) for s in SEEN] == [0, 1, 1, 0] and score("clevr_words", "picture+words") == 1
    assert "shows a description itself" in lines(done, prompt="clevr_words", seen="picture")[0]["why"]
    change = helped(done).where(kind="all", prompt="plain")[0]
    assert (change["n"], change["better"], change["worse"], change["difference"].value) == (3, 3, 0, 1)
    other = clevr_file(tmp_path/"other.json", "valB", [VAL_0])
    with pytest.raises(ValueError, match="clevr-cogent, question 0 .*differs by|clevr-cogent, question 0 .*nearest"):
        (tmp_path/"o").mkdir(); Image.new("RGB", (480, 320), "red").save(tmp_path/"o"/"CLEVR_valB_000000.png")
        study_banks(StudyParameters(["rehearsal"], ("plain",), (f"clevr-cogent={file}",), clevr=(f"clevr-cogent={other}@{tmp_path/'o'}",)))


def test_a_question_without_a_reply_is_wrong_and_stays(tmp_path):
    file, coco = vsr(tmp_path)
    def fault(n, body): return (400, {}, '{"error": {"message": "too rude"}}') if "under" in words_of(body) else None
    with Rehearsal(lambda body: "yes", fault) as server: done = study([talk(server, tmp_path)], ("plain",), [exam_bank(open_exam("vsr", file, coco))], ("picture",), show=False)
    line, = done.table.rows
    assert (line["n"], line["failed"], line["unjudged"], line["score"].n) == (3, 1, 0, 3) and line["score"].value == pytest.approx(2/3)
    bad, = (r for r in done.rows if r["reply"] is None)
    assert "too rude" in bad["why"] and bad["scores"]["score"] == 0 and bad["outcome"] == "none"


def test_what_only_a_judge_can_grade_is_unjudged(tmp_path):
    (tmp_path/"a.png").write_bytes(png())
    (tmp_path/"mm-vet.json").write_text(json.dumps({f"v1_{n}": dict(imagename="a.png", question="What?", answer="A cup", capability=["ocr"]) for n in range(2)}))
    with Rehearsal(lambda body: "A cup") as server: done = study([talk(server, tmp_path)], ("plain",), [exam_bank(open_exam("mm-vet", tmp_path/"mm-vet.json"))], ("picture",), show=False)
    line, = done.table.rows
    assert (line["unjudged"], line["score"], line["constant"]) == (2, None, None)
    done.table._repr_html_(); done.details._repr_html_()
    with pytest.raises(ValueError, match="nothing to draw"): study_figure(done.table.rows)


def test_the_records_can_be_counted_again(tmp_path):
    "What 51 writes is what chapter 4 reads."
    file, coco = vsr(tmp_path)
    exam = open_exam("vsr", file, coco)
    with Rehearsal(lambda body: "<answer>yes</answer>") as server: done = study([talk(server, tmp_path)], ("plain", "bare"), [exam_bank(exam)], ("picture",), show=False)
    rows = [r for r in read_records(write_jsonl(tmp_path/"answers.jsonl", done.rows)) if r["variant"] == "plain"]
    assert score(exam, rows).measures[0].estimate().value == pytest.approx(2/3) and len({r["stamp"] for r in done.rows}) == 6


def test_an_empty_graph_is_counted(tmp_path):
    says = iter(["```json\n{}\n```", '```json\n[["cup", "left of", "jar"]]\n```', "[see above]", '{"objects": ["cup"', 'One: {"objects": ["cup"]} Two: {"objects": ["jar"]}'])
    def answer(body): return "<answer>A</answer>" if "Scene Graph:" in json.dumps(body) else next(says)
    rows = [dict(index=n, image=b64(), question=f"Which, {n}?", A="cup", B="jar", answer="A" if n else "B") for n in range(6)]
    def fault(n, body): return (400, {}, "no") if "Which, 5?" in words_of(body) else None
    with Rehearsal(answer, fault) as server: done = study([talk(server, tmp_path, concurrency=1)], ["cvbench_scene_graph"], [exam_bank(open_exam("mcq", tsv(tmp_path/"a.tsv", rows)))], ("picture",), show=False)
    line, = graph_counts(done.rows).rows
    assert {k: line[k] for k in ("n", "json", "repaired", "cut", "ambiguous", "empty", "none", "failed")} == dict(n=6, json=1, repaired=0, cut=1, ambiguous=1, empty=1, none=1, failed=1)
    assert (line["with_graph"], line["without"]) == (1., pytest.approx(2/3))


def test_a_study_of_scenes_from_plan_to_records(tmp_path):
    p = StudyParameters(["rehearsal"], ("plain", "scene_graph"), questions=30, out=str(tmp_path))
    banks = study_banks(p)
    with Rehearsal(rule_reader) as server:
        models = study_models(p, server)
        plan, = study_plan(models, p.prompts, banks)
        assert not server.calls
        done = study(models, p.prompts, banks, show=False)
        spent, calls = models[0].spent, len(server.calls)
        assert plan.sent >= spent.replies == calls and plan.prompt_tokens >= spent.prompt_tokens and plan.completion_tokens >= spent.completion_tokens
        study(models, p.prompts, banks, show=False)
        assert len(server.calls) == calls # nothing twice
    rows = done.rows
    assert len(rows) == 30*2*4
    assert all(r["scores"]["score"] == 1 for r in rows if "words" in r["seen"] and r["kind"] != "distance") # the words hold these answers, and hold them right
    blind = {s: [r["value"] for r in rows if r["variant"] == "plain" and r["seen"] == s] for s in SEEN}
    assert blind["picture"] == blind["nothing"] != blind["words"] == blind["picture+words"]


def test_wrong_words_make_the_reader_wrong(tmp_path):
    bank, true = scene_bank(count=30), worded("data/scenes/test")
    swap = lambda text: text.replace("left to right", "?").replace("front to back", "left to right").replace("?", "front to back")
    from dataclasses import replace
    wrong = Bank(bank.exam, [replace(i, words=swap(i.words)) for i in bank.items], bank.constant)
    with Rehearsal(rule_reader) as server: done = study(study_models(StudyParameters(["rehearsal"], ("plain",), out=str(tmp_path)), server), ["plain"], [wrong], ("words",), show=False)
    assert sum(r["scores"]["score"] for r in done.rows if r["kind"] in ("relation", "depth")) < 10 # of 12


def test_a_model_that_cannot_says_so(tmp_path):
    "A COOPER that draws before it answers has nothing to draw without a picture, and takes one turn."
    from pretend import Cooper, Engine
    class OnePicture(Engine):
        def request(self, picture, *more): return super().request(picture[0], *more)
    class Pretends(Cooper):
        def engine(self, **options): return OnePicture(self)
    model = LocalCooper(Pretends(lambda question, seed: "left"), "perceive", "pretends", tmp_path)
    done = study([model], ("bare", "clevr_describe"), [scene_bank(count=5)], show=False)
    why = {(r["prompt"], r["seen"]): r["why"] for r in done.left_out}
    assert set(why) == {("bare", "words"), ("bare", "nothing"), *(("clevr_describe", s) for s in SEEN)} and "none is shown" in why["bare", "nothing"] and "one turn" in why["clevr_describe", "picture"]
    assert len(done.runs) == 2 and all(r["outcome"] == "value" for r in done.rows if r["kind"] == "relation")


def test_a_picture_that_is_none_names_its_row(tmp_path):
    broken = base64.b64encode(png(size=(200, 200))[:150]).decode()
    exam = open_exam("mcq", tsv(tmp_path/"a.tsv", [dict(index=0, image=broken, question="?", A="x", B="y", answer="A")]))
    with pytest.raises(ValueError, match=r"a.tsv:2: its picture cannot be read"): prompt_item(exam.items[0])


def test_pictures_of_a_file_are_sent_as_they_are(tmp_path):
    exam = open_exam("mcq", tsv(tmp_path/"a.tsv", [dict(index=0, image=b64(), question="?", A="x", B="y", answer="A")]))
    assert picture_bytes(prompt_item(exam.items[0]).shown[0]) == (png(), "png")
    assert picture_bytes(png((255, 0, 0, 0), mode="RGBA")) == picture_bytes(Image.new("RGB", (8, 6), "white")) # what is transparent is white, for everybody


def test_examples_of_a_study_have_words(tmp_path):
    p = StudyParameters(["rehearsal"], ("few_shot_split",), examples="data/scenes/train", out=str(tmp_path))
    shots = study_shots(p)
    assert all(s.item.words.startswith("From left to right") for s in shots)
    with Rehearsal(rule_reader) as server: done = study(study_models(p, server), p.prompts, [scene_bank(count=5)], shots=shots, show=False)
    assert not done.left_out and Counter(r["seen"] for r in done.rows) == dict.fromkeys(SEEN, 5)


@pytest.mark.parametrize("wrong, says", [(dict(models=[]), "'models' is empty"), (dict(prompts=("few_shot_split",)), "'examples' is missing"), (dict(seen=("smell",)), "'smell'"), (dict(prompts=()), "'prompts' is empty"),
    (dict(price=[1.]), "expected two"), (dict(money=2.), "needs 'price'"), (dict(questions=0), "'questions' is 0"), (dict(form="poem"), "'form' is 'poem'"), (dict(benchmarks=()), "'benchmarks' is empty"),
    (dict(benchmarks=("vsr",)), "expected scenes, or NAME=FILE"), (dict(benchmarks=("vrs=a.jsonl",)), "'vrs=a.jsonl'"), (dict(benchmarks=("vsr=a.jsonl", "VSR=b.jsonl")), "vsr twice"),
    (dict(clevr=("clevr-cogent=a.json@b",)), "one of the benchmarks")])
def test_wrong_parameters(wrong, says):
    with pytest.raises(ValueError, match=says): StudyParameters(**dict(models=["rehearsal"], prompts=("plain",)) | wrong)


def test_models_have_names_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="two are called 'm@http://host/v1'"): study_models(StudyParameters(["m@http://host/v1", "m@http://host/v1"], ("plain",), out=str(tmp_path)))
    assert [m.name for m in study_models(StudyParameters(["one=m@http://host/v1", "two=m@http://host/v1"], ("plain",), out=str(tmp_path)))] == ["one", "two"]


# somebody's own file, with a folder of pictures and worked examples


def own(folder, kind, pictures="pictures"): # a benchmark and examples in one of the layouts, by parameters
    (folder/pictures).mkdir()
    for n in range(5): (folder/pictures/f"{n}.png").write_bytes(png((50*n, 0, 0)))
    rows = [dict(index=n, image=f"{n}.png", question="Is the cup left?", A="left", B="right", answer="AB"[n % 2]) for n in range(3)]
    shots = [dict(image=f"{n}.png", question="Is the cup left?", options=["left", "right"], answer=("left", "right")[n % 2], graph={"objects": [{"name": "cup", "x": n}]}) for n in (3, 4)]
    if kind == "tsv": file, more = tsv(folder/"mine.tsv", rows), tsv(folder/"shots.tsv", [r | dict(options=json.dumps(r["options"]), graph=json.dumps(r["graph"])) for r in shots])
    if kind == "jsonl": file, more = write_jsonl(folder/"mine.jsonl", rows), write_jsonl(folder/"shots.jsonl", shots)
    if kind == "parquet": file, more = parquet(folder/"mine.parquet", rows), parquet(folder/"shots.parquet", [r | dict(graph=json.dumps(r["graph"])) for r in shots])
    return dict(benchmarks=f"mcq={file}@{folder/pictures}", examples=f"{more}@{folder/pictures}")


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
def test_an_own_benchmark_with_pictures_and_examples(tmp_path, kind):
    given = own(tmp_path, kind)
    p = StudyParameters(["rehearsal"], ("plain", "few_shot_conversation"), (given["benchmarks"],), ("picture",), examples=given["examples"], out=str(tmp_path/"out"))
    banks, shots = study_banks(p), study_shots(p)
    assert [s.answer for s in shots] == ["B", "A"] and json.loads(shots[0].graph) == {"objects": [{"name": "cup", "x": 3}]}
    with Rehearsal(lambda body: "Answer: <answer>A</answer>") as server: done = study([talk(server, tmp_path, concurrency=1)], p.prompts, banks, p.seen, shots, show=False)
    assert not done.left_out and [r["scores"]["score"] for r in done.rows] == [1, 0, 1]*2
    last = pictures_of(server.seen[-1])
    assert [base64.b64decode(u.partition("base64,")[2]) for u in last] == [png((150, 0, 0)), png((200, 0, 0)), png((100, 0, 0))] # examples, then the question; byte for byte
    assert '{"objects": [{"name": "cup", "x": 3}]}' in words_of(server.seen[-1]) and "<answer>B</answer>" in words_of(server.seen[-1])
    assert [f.rsplit("/", 1)[1] for f in study_files(p)] == [f"mine.{kind}", f"shots.{kind}"]
    before = study_pictures(banks, shots)
    assert {k: v["pictures"] for k, v in before.items()} == {"mcq": 3, "examples": 2}
    (tmp_path/"pictures"/"1.png").write_bytes(png("green"))
    after = study_pictures(banks, shots)
    assert after["mcq"] != before["mcq"] and after["examples"] == before["examples"] # the record tells that a picture changed


@pytest.mark.parametrize("wrong, says", [(dict(graph=None), "'graph' is missing; expected a scene graph"), (dict(graph="a cup"), "'graph' is 'a cup'"), (dict(graph={}), "'graph' is {}"), (dict(answer="above"), "'answer' is 'above'; expected one of A, B"), (dict(answer="C"), "'answer' is 'C'"),
    (dict(question=" "), "'question' is missing"), (dict(image="nine.png"), "'image' is 'nine.png'; expected .* a file below"), (dict(image=""), "'image'")])
def test_a_wrong_example_names_file_row_and_field(tmp_path, wrong, says):
    own(tmp_path, "jsonl")
    rows = [json.loads(l) for l in (tmp_path/"shots.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path/"wrong.jsonl", [rows[0], rows[1] | wrong])
    with pytest.raises(ValueError, match=says) as error: read_shots(tmp_path/"wrong.jsonl", tmp_path/"pictures")
    assert "wrong.jsonl: row 2" in str(error.value)


def test_wrong_files_of_ones_own_are_named(tmp_path):
    given = own(tmp_path, "tsv")
    p = lambda **more: StudyParameters(**dict(models=["rehearsal"], prompts=("few_shot_flat",), benchmarks=(given["benchmarks"],), examples=given["examples"]) | more)
    with pytest.raises(ValueError, match="mine.tsv:2: 'image' is '0.png'; expected .* below .*/nowhere"): study_banks(p(benchmarks=(f"mcq={tmp_path/'mine.tsv'}@{tmp_path/'nowhere'}",)))
    with pytest.raises(FileNotFoundError, match="mine.csv"): study_banks(p(benchmarks=(f"mcq={tmp_path/'mine.csv'}",)))
    with pytest.raises(FileNotFoundError, match="'examples': .*/nothing.jsonl: no such file"): study_shots(p(examples=str(tmp_path/"nothing.jsonl")))
    with pytest.raises(ValueError, match="has no column 'graph'"): read_shots(tmp_path/"mine.tsv", tmp_path/"pictures")
    broken = png(size=(200, 200))[:150]
    (tmp_path/"pictures"/"3.png").write_bytes(broken)
    with pytest.raises(ValueError, match="shots.tsv:2: its picture cannot be read"): study_shots(p())
    tsv(tmp_path/"half.tsv", [dict(index=0, image="0.png", question="?", A="left", B="right", answer="Z")])
    with pytest.raises(ValueError, match="half.tsv:2: 'answer' is 'Z'"): study_banks(p(benchmarks=(f"mcq={tmp_path/'half.tsv'}@{tmp_path/'pictures'}",)))


def test_an_example_about_a_question_that_is_asked_is_refused(tmp_path):
    given = own(tmp_path, "tsv")
    (tmp_path/"pictures"/"4.png").write_bytes(png((50, 0, 0))) # the bytes of 1.png, under another name
    p = StudyParameters(["rehearsal"], ("few_shot_flat",), (given["benchmarks"],), examples=given["examples"], out=str(tmp_path))
    with Rehearsal(rule_reader) as server:
        with pytest.raises(ValueError, match=r"mcq, question 1: its picture is in an example \('shots.tsv:3'\)"): study_plan(study_models(p, server), p.prompts, study_banks(p), shots=study_shots(p))


def test_the_prompting_notebook_on_an_own_benchmark(tmp_path):
    "51 through papermill: a TSV, a folder of pictures, worked examples; and what it leaves behind tells of them."
    import papermill
    from house import NOTEBOOKS, ROOT
    given = own(tmp_path, "tsv")
    papermill.execute_notebook(NOTEBOOKS["51_prompting_study"], tmp_path/"ran.ipynb", given | dict(models="rehearsal", prompts="few_shot_split", seen="picture,nothing", out=str(tmp_path/"out")), progress_bar=False, kernel_name="python3", cwd=ROOT)
    record = json.loads((tmp_path/"out"/"run.json").read_text())
    assert record["status"] == "finished" and set(record["data"]) == {"mine.tsv", "shots.tsv"} and record["notes"]["pictures"]["mcq"]["pictures"] == 3
    rows = read_records(tmp_path/"out"/"answers.jsonl")
    assert [(r["exam"], r["seen"]) for r in rows] == [("mcq", "picture")]*3 + [("mcq", "nothing")]*3
