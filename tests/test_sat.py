"SAT: what its reader takes and refuses, what is asked out of distribution, and whether the study can say more than it knows."
import io, json
from dataclasses import replace

import numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest
from PIL import Image

from cooper.measure.protocols import Exam, Item, open_exam
from cooper.measure.records import Answered, Plain, collect, score
from cooper.measure.sat_study import *
from cooper.measure.sat_study import _beside_chance
from cooper.reason.prompting import SAT_ZERO
from cooper.reason.sat import *

TEST = "data/scenes/test"


def png(colour="red", kind="PNG"):
    file = io.BytesIO(); Image.new("RGB", (6, 4), colour).save(file, kind)
    return file.getvalue()


GOOD = dict(image_bytes=[dict(bytes=png(kind="JPEG"), path=None)], question="Which is closer?", answers=["chair", "bed"], question_type="other", correct_answer="bed")


def parquet(folder, *rows, name="sat.parquet"):
    pq.write_table(pa.Table.from_pylist(list(rows)), folder/name)
    return folder/name


# reading

@pytest.mark.parametrize("cell", [
    [dict(bytes=png(), path=None)], [dict(bytes=png(), path="a.png")], dict(bytes=png(), path=None), [png()], png(), ["shots/a.png"], "shots/a.png", [dict(bytes=None, path="shots/a.png")], "['shots/a.png']"])
def test_a_picture_may_be_struct_bytes_or_path(tmp_path, cell):
    (tmp_path/"shots").mkdir(); (tmp_path/"shots/a.png").write_bytes(png())
    item, = read_sat(parquet(tmp_path, GOOD | dict(image_bytes=cell)))
    shot, = item.pictures
    assert (shot if isinstance(shot, bytes) else shot.read_bytes()) == png()
    assert picture(shot).size == (6, 4)


@pytest.mark.parametrize("cell, gold, texts", [
    (["a, b", "c"], "a, b", {"a, b", "c"}), ("['a, b', 'c']", "a, b", {"a, b", "c"}), ('["a, b", "c"]', "c", {"a, b", "c"}), ("['a, b' 'c']", "c", {"a, b", "c"}),
    ("['it\\'s far', \"it's near\"]", "it's far", {"it's far", "it's near"}), ("['a'\n 'b']", "b", {"a", "b"}), ([2, 3, 5], "3", {"2", "3", "5"}), ([2., 3.], "3", {"2", "3"}), ("[2, 3]", "2", {"2", "3"}), ("('a', 'b')", "a", {"a", "b"})])
def test_options_may_be_a_list_or_a_list_as_text(tmp_path, cell, gold, texts):
    item, = read_sat(parquet(tmp_path, GOOD | dict(answers=cell, correct_answer=gold)))
    assert set(item.options) == texts and item.answer == gold


@pytest.mark.parametrize("change, told", [
    (dict(correct_answer="sofa"), "'correct_answer' is 'sofa'; expected one of the row's options: 'chair', 'bed'"), (dict(correct_answer=1), "'correct_answer' is 1; expected one of the row's options"),
    (dict(correct_answer=None), "'correct_answer' is empty"), (dict(question=""), "'question' is empty"), (dict(question_type=None), "'question_type' is empty"),
    (dict(answers=["bed"]), "'answers' is ['bed']; expected two or more texts"), (dict(answers="[chair, bed]"), "with quotes around each"), (dict(answers="chair, bed"), "a list of two or more texts"),
    (dict(answers=["bed", "bed"]), "options that differ"), (dict(answers=["bed", None]), "none of them empty"), (dict(answers=None), "'answers' is empty"),
    (dict(image_bytes=[]), "'image_bytes' is []; expected one picture or more"), (dict(image_bytes=None), "one picture or more"), (dict(image_bytes=[b"no picture"]), "the bytes of a picture"),
    (dict(image_bytes=["gone.png"]), "'image_bytes' is 'gone.png'; expected bytes, a struct of bytes and path, or the name of a file below"), (dict(image_bytes="[b'\\xff\\xd8']"), "bytes written as text")])
def test_a_fault_names_file_row_and_column(tmp_path, change, told):
    path = parquet(tmp_path, GOOD | change)
    with pytest.raises(ValueError) as e: read_sat(path)
    assert str(e.value).startswith(f"{path}: row 1: ") and told in str(e.value), str(e.value)


@pytest.mark.parametrize("column", list(GOOD))
def test_a_missing_column_is_told(tmp_path, column):
    path = parquet(tmp_path, {k: v for k, v in GOOD.items() if k != column})
    with pytest.raises(ValueError, match=f"row 1: column '{column}' is missing; expected .*; the columns are "): read_sat(path)


def test_a_bad_row_can_be_left_out_and_is_counted(tmp_path):
    found = read_sat(parquet(tmp_path, GOOD, GOOD | dict(correct_answer="sofa"), GOOD | dict(question_type="goal_aim")), on_bad="skip")
    assert [(i.id, i.index, i.kind) for i in found] == [("0", 0, "other"), ("2", 2, "goal_aim")]
    assert len(found.skipped) == 1 and "row 2" in found.skipped[0] and found.skipped.kept == 2


def test_several_pictures_limit_and_folders(tmp_path):
    two = GOOD | dict(image_bytes=GOOD["image_bytes"]*2)
    parquet(tmp_path, GOOD, two, GOOD, name="train-0.parquet"); parquet(tmp_path, GOOD, name="train-1.parquet")
    assert [len(i.pictures) for i in read_sat(tmp_path)] == [1, 2, 1, 1]
    one = read_sat(tmp_path, pictures="one", limit=3)
    assert [i.id for i in one] == ["train-0/0", "train-0/2"] and one.left_out == 1 # a limit counts rows, as the published one did
    assert sat_row(read_sat(tmp_path)[1])["prompt"].startswith("<image><image> Answer")
    (tmp_path/"none.parquet").write_bytes(b"PAR0")
    with pytest.raises(ValueError, match="none.parquet: is no Parquet file"): read_sat(tmp_path/"none.parquet")
    with pytest.raises(FileNotFoundError, match="array/SAT"): read_sat(tmp_path/"gone.parquet")


def test_the_order_of_options_is_the_seeds_and_the_benchmarks(tmp_path):
    rows = [GOOD | dict(answers=["a", "b", "c", "d"], correct_answer="c") for _ in range(12)]
    path = parquet(tmp_path, *rows)
    one, again, other = read_sat(path), read_sat(path), read_sat(path, seed=1)
    assert [i.options for i in one] == [i.options for i in again] != [i.options for i in other]
    assert [i.options for i in read_sat(path, limit=5)] == [i.options for i in one[:5]]
    assert [i.options for i in open_exam("sat", path).items] == [i.options for i in one] # trained and measured on the same question
    assert len({i.letter for i in one}) > 1


# prompts

def test_the_published_prompts():
    i = SatItem("0", "other", "Which is closer?", ("chair", "bed", "rug"), "bed", (png(),))
    assert prefix_prompt(i) == "<image> Answer in natural language. Which is closer? Choose between the following options: chair, bed or rug"
    row = sat_row(i, "chat")
    assert row["prompt"] == "Which is closer?\n\nA. chair\nB. bed\nC. rug" and row["system"] == SAT_ZERO and row["answer"] == "<answer>B</answer>"
    with pytest.raises(ValueError, match="expected one of prefix, chat"): sat_row(i, "turns")


def test_pictures_stay_the_bytes_that_they_were(tmp_path):
    item, = read_sat(parquet(tmp_path, GOOD))
    kept, = keep_pictures([item], tmp_path/"kept")
    assert kept.pictures[0].read_bytes() == GOOD["image_bytes"][0]["bytes"] and kept.pictures[0].suffix == ".jpeg"
    assert picture(png(kind="PNG")).mode == "RGB"
    file = io.BytesIO(); Image.new("RGBA", (4, 4), (1, 2, 3, 9)).save(file, "PNG")
    assert picture(file.getvalue()).mode == "RGB" # CLEVR's are RGBA


# the published file

@pytest.mark.parametrize("options, gold", [(("left", "right"), "left"), (("a", "b", "c"), "c"), (("moved left, a bit", "moved right"), "moved left, a bit"), (("x", "left or right", "y"), "left or right"), (("2", "3", "5"), "3")])
def test_the_published_file_goes_there_and_back(tmp_path, options, gold):
    item = SatItem("17", "other", "What now?", options, gold, (png(),), index=17)
    path = write_published([item], tmp_path/"SAT_train_15000.json")
    entry, = json.loads(path.read_text())
    assert set(entry) == {"messages", "images"} and entry["messages"][1] == dict(role="assistant", content=gold) and entry["images"] == ["SAT_images/17_0.png"]
    back, = read_published(path)
    assert (back.id, back.index, back.question, back.options, back.answer) == ("17", 17, "What now?", options, gold)


@pytest.mark.parametrize("change, told", [
    (lambda e: e["messages"][1].update(content="sofa"), "'messages[1].content' is 'sofa'"), (lambda e: e["messages"][0].update(content="Which?"), "'messages[0].content' is 'Which?'"), (lambda e: e.update(images=[]), "'images' is []; expected 1 names of pictures"),
    (lambda e: e.update(images=["gone.png"]), "'images' is 'gone.png'"), (lambda e: e.pop("messages"), "'messages' is None")])
def test_a_fault_in_the_published_file_has_a_place(tmp_path, change, told):
    path = write_published([SatItem("0", "other", "Which?", ("chair", "bed"), "bed", (png(),))], tmp_path/"a.json")
    listing = json.loads(path.read_text()); change(listing[0]); path.write_text(json.dumps(listing))
    with pytest.raises(ValueError) as e: read_published(path)
    assert str(e.value).startswith(f"{path}: entry 1: ") and told in str(e.value)
    assert len(read_published(path, on_bad="skip").skipped) == 1


def test_thoughts_in_both_forms(tmp_path):
    apart = dict(image=png(), problem="How many?", thinking="<think>One, two.</think>", solution="<answer> 2 </answer>")
    whole = dict(image=png(), problem="Is it?", thinking=None, solution="<think>It is.</think><answer>yes</answer>")
    rows = read_thoughts(parquet(tmp_path, apart, whole))
    assert [(r["answer"], r["kind"], r["truth"]) for r in rows] == [("<think>One, two.</think>\n<answer>2</answer>", "count", "2"), ("<think>It is.</think>\n<answer>yes</answer>", "yes or no", "yes")]
    assert [r["answer"] for r in read_thoughts(parquet(tmp_path, apart), thoughts=False, style="chat")] == ["<answer>2</answer>"]
    with pytest.raises(ValueError, match="row 1: 'thinking' is empty; expected a thought"): read_thoughts(parquet(tmp_path, apart | dict(thinking=None)))
    with pytest.raises(ValueError, match="row 1: column 'solution' is missing"): read_thoughts(parquet(tmp_path, {k: v for k, v in apart.items() if k != "solution"}))


# rooms

def metres(item, thing): # by hand, from the facts
    if item.kind == "depth": return thing["depth_m"]
    if item.kind == "size": return thing["radius_m"]
    return np.linalg.norm(np.array(thing["position_m"]) - np.array(item.things[0]["position_m"]))


def nearest(item): # name of the object that has less of what is asked for
    a, b = item.things[-2:]
    return min((a, b), key=lambda o: metres(item, o))


def test_rooms_are_asked_evenly_and_truly():
    items = sat_from_scenes(TEST, 50, seed=3)
    assert {k: sum(i.kind == k for i in items) for k in {i.kind for i in items}} == dict.fromkeys(("count", "relation", "depth", "distance", "size"), 10)
    assert [i.options for i in items] != [i.options for i in sat_from_scenes(TEST, 50, seed=4)]
    for i in items:
        if i.kind in ("depth", "distance", "size"):
            less = nearest(i)
            assert (i.answer == f"{less['colour']} {less['shape']}") == (i.kind != "size")
        if i.kind == "relation": assert i.answer == ("left" if i.things[0]["pixel"][0] < i.things[1]["pixel"][0] else "right")
    for kind in ("count", "depth"): assert len({i.options.index(i.answer) for i in items if i.kind == kind}) == (3 if kind == "count" else 2)
    with pytest.raises(ValueError, match="its rooms offer .* questions of kind"): sat_from_scenes(TEST, 10**5)
    with pytest.raises(ValueError, match="named by no count"): sat_from_scenes(TEST, 5, unseen=True)
    with pytest.raises(ValueError, match="offer 0 questions of kind"): sat_from_scenes(TEST, 4, ("depth",), unseen=True) # this split has no unseen pair


def test_the_opposite_question_has_the_other_answer_in_the_room():
    items = [i for i in sat_from_scenes(TEST, 60) if i.kind in ("depth", "distance", "size")]
    for i in items:
        f, less = flip(i), nearest(i)
        assert {i.answer, f.answer} == set(i.options) == set(f.options) and f.question != i.question
        assert (f.answer == f"{less['colour']} {less['shape']}") == (i.kind == "size")
        with pytest.raises(ValueError, match="expected a plain question"): flip(f)
    bad = next(i for i in items if i.kind == "depth")
    wrong = next(o for o in bad.options if o != bad.answer)
    with pytest.raises(ValueError, match="and the other option than"): flip(replace(bad, answer=wrong))
    with pytest.raises(ValueError, match="no rendered room"): flip(SatItem("0", "depth", "?", ("a", "b"), "a", (png(),)))


def test_other_words_ask_the_same():
    for i in sat_from_scenes(TEST, 30):
        for how in ("reordered", "rephrased"):
            r = reword(i, how)
            assert r.answer == i.answer and r.question != i.question and all(f"{o['colour']} {o['shape']}" in r.question for o in i.things if i.kind != "count")
    with pytest.raises(ValueError, match="in its room; expected"): reword(replace(i, answer=next(o for o in i.options if o != i.answer)))


# measuring

def answers(tmp_path, exam, function, name="m", **more):
    told = {(i.prompt, i.pictures[0].hash): i for i in exam.items}
    class Known(Plain):
        def ask(self, items, seeds): return [Answered(function(i, s[-1])) for i, s in zip(items, seeds)]
    assert len(told) == len(exam.items)
    return score(exam, collect(exam, Known(name, None), tmp_path/f"{name}.jsonl", **more))


def test_every_accuracy_comes_with_what_it_is_made_of(tmp_path):
    exam = sat_exam(sat_from_scenes(TEST, 20))
    exam = Exam(exam.name, tuple(i for i in exam.items if i.kind in ("count", "depth"))[:6], exam.measures, "") # three of each
    table = honest([answers(tmp_path, exam, lambda i, k: i.said if i.kind == "depth" else "(C)")])
    row = {r["kind"]: r for r in table.rows}
    assert row["depth"]["accuracy"].value == 1 and row["count"]["accuracy"].value == 0 == row["count"]["valid"].value and row["count"]["given"] is None
    assert row["all, micro"]["accuracy"].value == .5 == row["all, macro"]["accuracy"].value and row["all, micro"]["given"].value == 1 and row["all, micro"]["chance"] == pytest.approx((1/3 + .5)/2)
    uneven = Exam(exam.name, exam.items[:5], exam.measures, "") # two and three
    row = {r["kind"]: r for r in honest([answers(tmp_path, uneven, lambda i, k: i.said if i.kind == "depth" else "?", "n")]).rows}
    depth = sum(i.kind == "depth" for i in uneven.items)
    assert row["all, micro"]["accuracy"].value == depth/5 and row["all, macro"]["accuracy"].value == .5


def test_pass_at_four_stands_beside_its_chance(tmp_path):
    exam = sat_exam(sat_from_scenes(TEST, 10))
    table = tries_by_kind([answers(tmp_path, exam, lambda i, k: i.said if k == 0 else "?", samples=4)])
    assert table.where(kind="depth", k=4)[0]["score"].value == 1 and table.where(kind="depth", k=4)[0]["chance"] == .9375
    assert table.where(kind="depth", k=1)[0]["score"].value == .25 and table.where(kind="count", k=4)[0]["chance"] == pytest.approx(1 - (2/3)**4)


def test_counting_keeps_those_that_said_no_number(tmp_path):
    items = tuple(Item(str(n), (), f"How many, {n}?", f"How many, {n}?", "3", "integer", kind="count") for n in range(8))
    exam = Exam("clevr-cogent", items, sat_exam(sat_from_scenes(TEST, 5)).measures)
    said = dict(zip("01234567", ["3", "3", "4", "9", "none at all of them, I think not", "", "what", "2"]))
    row, = counting([score(exam, collect(exam, Plain("m", lambda shown, prompt, system: said[prompt[-2]]), tmp_path/"a.jsonl"))]).rows
    assert row["exact"].value == 2/8 and row["invalid"].value == 3/8 and row["published"] == 2/5 and row["within"].value == 4/8
    assert row["close"].value == pytest.approx(2/6) and row["published_close"] == pytest.approx(2/3)
    assert counting_exam(exam).items[0].prompt == "How many, 0? Please answer with the answer, wrapped in <answer> </answer> tags, e.g. <answer> 3 </answer>."
    assert "our choice" in counting_exam(replace(exam, name="superclevr")).about and "our choice" not in counting_exam(exam).about
    with pytest.raises(ValueError, match="was not asked in that study's words"): counting_exam(replace(exam, name="vsr"))


def test_the_published_edit_fires_on_every_item_or_stops():
    def cv(kind, words, answer="A", options=("a", "b")): return Item("1", (), words, f"{words} Select from the following choices.\n(A) a\n(B) b", answer, "letter", options, kind)
    near = "Which object is closer to the camera taking this photo?"
    exam = Exam("cv-bench", (cv("Depth", near), cv("Count", "How many?"), cv("Distance", near, "B")), list)
    edited = far_away(exam)
    assert [i.answer for i in edited.items] == ["B", "A"] and edited.left_out == {"neither Depth nor Distance": 1} and all("is far away from" in i.prompt and "closer" not in i.prompt for i in edited.items)
    for wrong in (cv("Depth", "Which one is nearer?"), cv("Depth", near, "C", ("a", "b", "c")), cv("Depth", f"{near} {near}")):
        with pytest.raises(ValueError, match="far_away: cv-bench 1"): far_away(Exam("cv-bench", (wrong,), list))


def test_published_words():
    vsr = Exam("vsr", (Item("0", (), "The cat is on the mat. Is this sentence true of the picture? Answer with yes or no only.", "", "yes", "yes_no"),), list)
    assert as_published(vsr).items[0].prompt == "The cat is on the mat. Is this true?"
    clevr = Exam("clevr-cogent", (Item("0", (), "How many?", "How many?", "2", "integer"),), list)
    assert described(clevr, lambda i: "Scene: x").items[0].prompt == "Scene: x\nQuestion: How many?"
    assert described(clevr, lambda i: "Scene: x", "words").items[0].prompt.startswith("Scene: x\nContext: The scene is described by spatial order")
    assert described(clevr, lambda i: "Scene: x", "words", same_words=True).items[0].prompt == "Scene: x\nQuestion: How many?"


def test_what_does_not_add_up_in_the_published_tables():
    odd = {(r["model"], r["how"]): r["odd"] for r in published_cvbench().rows}
    assert [bool(odd[m, "greedy"]) for m in ("PaliGemma 2 mix", "PaliGemma 2 mix, GRPO v1 on SAT", "PaliGemma 2 mix, SFT on SAT", "PaliGemma 2 mix, GRPO v2 on SAT")] == [True, True, False, False]
    assert "84.22 is no mean" in odd["PaliGemma 2 mix, SFT on SAT", "any of 4"]
    rows = {r["model"]: r for r in published_polarity().rows}
    assert [rows[m]["distance"] for m in ("base", "SFT", "GRPO v2")] == ["+9.00", "+12.03", "+3.17"] and rows["GRPO v2"]["relative"] == "+19.5 %" and "47.47 is no share" in rows["SFT"]["odd"]
    fits = {(r["data"], r["model"][:4]): (r["least"], r["fits"]) for r in published_counting().rows}
    assert fits["CV-Bench Count", "Qwen"] == (38, False) and fits["CV-Bench Count", "Spac"] == (394, True) and fits["CLEVR-CoGenT ValB", "Spac"] == (920, False) and fits["SAT", "Qwen"] == (305, None)


# the conclusion

def test_a_few_equal_answers_are_no_knowledge(tmp_path):
    exam = sat_exam(sat_from_scenes(TEST, 3, ("depth",)))
    row, = sat_scores(SatRuns({"few": exam}, {("base", 0, "few"): answers(tmp_path, exam, lambda i, k: "?")})).rows
    assert row["accuracy"].high == 0 and row["against"] == "at chance" # 0 of 3 happens to coins
    e = row["accuracy"]
    assert _beside_chance(e, .5, 3) == "at chance" and _beside_chance(e, .5, 30) == "below"


def test_replies_that_were_cut_short_are_told(tmp_path):
    exam = sat_exams(SatParameters(questions=10, kinds=["count"], changes=[], unseen_rooms=0))["as trained"]
    said = answers(tmp_path, exam, lambda i, k: i.said)
    for r in said.rows[:3]: r["truncated"] = True
    row, = sat_scores(SatRuns({"few": exam}, {("base", 0, "few"): said})).rows
    assert row["cut"] == .3 and honest([said]).where(kind="all, micro")[0]["cut"] == .3 and row["accuracy"].value == 1


def test_where_nothing_differs_nothing_is_concluded(tmp_path):
    from cooper.core import seed_for
    exams = sat_exams(SatParameters(questions=60, unseen_rooms=0))
    for world in range(2): # both methods know six of ten answers
        runs = SatRuns(exams)
        for m in ("sft", "grpo"):
            for s in range(3):
                for name, e in exams.items():
                    runs.greedy[m, s, name] = answers(tmp_path, e, lambda i, k: i.said if seed_for(world, m, s, i.id) % 10 < 6 else next(o for o in i.options if o != i.said), f"{world} {m} {s} {name}")
        said = conclusion(runs)
        assert "Supported" not in said and "Contradicted" not in said and said.count("Not decided") >= 3, said


def test_who_knows_nothing_loses_nothing(tmp_path):
    exams = sat_exams(SatParameters(questions=60, unseen_rooms=0, changes=["flipped"]))
    lot = lambda i: int(i.pictures[0].hash, 16)
    knows = dict(sft=lambda i, name, s: name == "as trained" and lot(i) % 40 != s, grpo=lambda i, name, s: lot(i) % 2) # grpo guesses, and so has no gap
    runs = SatRuns(exams, {(m, s, name): answers(tmp_path, e, lambda i, k: i.said if knows[m](i, name, s) else next(o for o in i.options if o != i.said), f"{m} {s} {name}") for m in knows for s in range(3) for name, e in exams.items()})
    row, = sat_gaps(runs).where(exam="flipped", first="sft", second="grpo")
    said = conclusion(runs)
    assert "- What 'flipped' costs sft: **lower**" in said and "What 'flipped' costs grpo" not in said
    assert "No better than guessing where it was trained: grpo in " in said and "sft in" not in said
    assert row["verdict"] == "higher" and "**Not decided: grpo cannot be told from guessing where it was trained, and so has nothing to lose.**" in conclusion(runs)


def test_parameters_are_refused_before_anything_runs():
    for bad, told in ((dict(method=["ppo"]), "'method' has 'ppo'"), (dict(seeds=["0", "0"]), "different whole numbers"), (dict(steps=0), "there is no preset that says how many"), (dict(preset=["v3"]), "'preset' is 'v3'; expected some of v1, v2, sft"), (dict(preset=["v1", "v2"]), "at most one for sft and one for grpo"),
                      (dict(preset=["v2"], model="large"), "says nothing of sft"), (dict(preset=["v2"], steps=0), "how many for sft"), (dict(benchmarks=["vsr=a.json", "VSR=a.json"]), "files of one benchmark that differ"),
                      (dict(benchmarks=["cvbench.parquet"]), "expected NAME=FILE"), (dict(evaluation="data/scenes/train"), "which is what is learned from"), (dict(looking=1.), "expected a share below 1"), (dict(num_generations=1), "'num_generations' is 1")):
        with pytest.raises(ValueError, match=told): SatParameters(**bad)


SMALL = dict(picture=32, patch=16, width=32, layers=1, heads=2, vision_width=32, vision_layers=1, vocabulary=400)


def test_a_run_goes_on_where_it_was(tmp_path):
    p = SatParameters(sizes=SMALL, eyes="", warmup_steps=1, warmup_batch=2, steps=1, batch_size=1, num_generations=2, examples=10, questions=5, unseen_rooms=0, changes=[], samples=0, max_new_tokens=2, method=["base", "sft"], seeds=["0", "1"], out=str(tmp_path))
    exams, (warm, rows) = sat_exams(p), sat_examples(p)
    assert not {r["id"] for r in warm} & {r["id"] for r in rows} and {r["kind"] for r in warm} >= {"looking"}
    first, _ = run_methods(p, base_vlm(p, warm), rows, exams)
    lines = (tmp_path/"answers.jsonl").read_text().splitlines()
    assert len(lines) == 5*3 and len({json.loads(l)["config"] for l in lines}) == 3 # the base is asked once
    again, _ = run_methods(p, base_vlm(p, warm), rows, exams)
    assert (tmp_path/"answers.jsonl").read_text().splitlines() == lines and sat_scores(again).to_dict() == sat_scores(first).to_dict()
    with pytest.raises(ValueError): base_vlm(replace(p, warmup_learning_rate=1e-5), warm) # another run wants another folder
    named = replace(p, model=str(tmp_path/"base/model"), method=["base"], out=str(tmp_path/"named")) # a model by name is a base already
    base, (warm, rows) = base_vlm(named, []), sat_examples(named, sat_style(named))
    assert not warm and len(rows) == 10 and sat_style(named) == "prefix" and base.start() is not base.model
    theirs, _ = run_methods(named, base, rows, exams)
    assert [r["reply"] for r in theirs.greedy["base", 0, "as trained"].rows] == [r["reply"] for r in first.greedy["base", 0, "as trained"].rows]


@pytest.mark.parametrize("preset, method, told", [
    ("v1", "grpo", dict(reward="as_released_grpo", skip_even=False, beta=.04, rank=8)), ("v2", "grpo", dict(reward="as_released_sft", skip_even=True, beta=.01, rank=16)), ("sft", "sft", dict(labels="as_released", rank=16)), ("v2,sft", "sft", dict(labels="as_released", rank=16)), ("v2,sft", "grpo", dict(reward="as_released_sft", rank=16))])
def test_presets_reach_the_trainers(tmp_path, monkeypatch, preset, method, told):
    from cooper.cooperate import vlm_grpo
    from cooper.perceive import vlm_supervised
    seen = {}
    def trainer(model, processor, rows, args, reward=None, labels=None, lora=None, skip_even=None):
        seen.update(reward=reward, labels=labels, skip_even=skip_even, beta=getattr(args, "beta", None), rank=lora.r if lora else None, steps=args.max_steps, seed=args.seed)
    monkeypatch.setattr(vlm_grpo, "train_vlm_grpo", trainer); monkeypatch.setattr(vlm_supervised, "train_vlm_sft", trainer)
    rows = sat_rows(sat_from_scenes(TEST, 5))
    base = Base(*vlm_supervised.small_vlm("paligemma", rows, **SMALL))
    method_vlm(SatParameters(preset=preset.split(","), method=[method], steps=0, out=str(tmp_path)), method, 7, base, rows)
    assert {k: seen[k] for k in told} == told and seen["steps"] == (1000 if preset == "v1" else 2000) and seen["seed"] == 7
    method_vlm(SatParameters(preset=preset.split(","), steps=3, reward="clean", labels="clean", out=str(tmp_path)), method, 7, base, rows)
    assert seen["steps"] == 3 and seen["reward" if method == "grpo" else "labels"] == "clean"


def test_a_chat_model_is_asked_in_turns(tmp_path):
    from cooper.perceive.vlm_supervised import small_vlm
    items = sat_from_scenes(TEST, 5)
    model, processor = small_vlm("smolvlm", sat_rows(items, "chat"), **SMALL)
    exam, answerer = sat_exam(items, style="chat"), VlmAnswers(model, processor, max_new_tokens=2)
    row = answerer.row(exam.items[0], (0, "greedy", "q", 0))
    assert "<image>" not in row["prompt"] and row["system"] == SAT_ZERO and exam.items[0].rule == "letter"
    rows = score(exam, collect(exam, answerer, tmp_path/"a.jsonl")).rows
    assert len(rows) == 5 and all(0 < r["tokens"] <= 2 for r in rows)


def test_a_cut_reply_is_known_as_one(monkeypatch):
    from cooper.perceive import vlm_supervised
    item = sat_exam(sat_from_scenes(TEST, 5)).items[0]
    monkeypatch.setattr(vlm_supervised, "sample_vlm", lambda model, processor, rows, seeds, *more: [vlm_supervised.Completion([5, 6], [0., 0.], " the red", k == 1) for k in range(len(rows))])
    answerer = VlmAnswers(None, type("P", (), {}), max_new_tokens=2, weights="0")
    assert [(a.text, a.tokens, a.truncated) for a in answerer.ask([item]*2, [(0, "greedy", "q", k) for k in range(2)])] == [("the red", 2, True), ("the red", 2, False)]


def test_others_benchmarks_are_asked_with_their_changes(tmp_path):
    near = "Which object is closer to the camera taking this photo, the a or the b?"
    cv = [dict(idx=n, image=png(), task=task, question=words, choices=["a", "b"], answer="(A)", prompt=f"{words} Select from the following choices.\n(A) a\n(B) b", source="COCO") for n, (task, words) in enumerate([("Depth", near), ("Count", "How many?")])]
    clevr = dict(image=png(), problem="How many things?", solution="<answer> 3 </answer>")
    for name, rows in (("cv", cv), ("ValA", [clevr]), ("ValB", [clevr, clevr | dict(problem="Is it red?", solution="<answer> yes </answer>")])): parquet(tmp_path, *rows, name=f"{name}.parquet")
    p = SatParameters(benchmarks=[f"cv-bench={tmp_path}/cv.parquet", f"clevr-cogent={tmp_path}/ValA.parquet", f"clevr-cogent={tmp_path}/ValB.parquet"], ask_counting=True, questions=5, unseen_rooms=0, changes=["flipped"])
    exams = sat_exams(p)
    assert list(exams) == ["as trained", "flipped", "cv-bench", "cv-bench, far away", "clevr-cogent ValA", "clevr-cogent ValA, counting", "clevr-cogent ValB", "clevr-cogent ValB, counting"]
    assert [len(e) for e in exams.values()][2:] == [2, 1, 1, 1, 2, 1] and exams["clevr-cogent ValB, counting"].left_out == {"counts nothing": 1}
    asked = {}
    class Silent:
        mode = "direct"
        def __init__(self, lead): self.name, self.lead = f"m{lead}", lead
        def config(self): return dict(lead=self.lead)
        def ask(self, items, seeds): asked.update({i.prompt: self.lead for i in items}); return [Answered("?") for _ in items]
    ask_all(replace(p, samples=0, out=str(tmp_path/"out")), SatRuns(exams), "base", 0, lambda temperature, lead: Silent(lead))
    assert asked[cv[0]["prompt"]] == "" and asked["How many things?"] == "" and asked[exams["as trained"].items[0].prompt] == " "
    assert exams.not_asked == ["not asked: unseen pairs, because 'unseen_rooms' is 0", "not asked: cv-bench, counting, because the words in which the published counting study asked it are not known"]
    part = "train-00000-of-00001.parquet"
    assert list(SatParameters(benchmarks=[f"clevr-cogent=ValA/{part}", f"clevr-cogent=ValB/{part}"]).labelled) == ["clevr-cogent ValA", "clevr-cogent ValB"]
    with pytest.raises(ValueError, match="'clevr' is 'scenes.json'; expected SCENES.json@PICTURES"): SatParameters(clevr="scenes.json")


def test_a_sat_file_is_asked_and_learned_from(tmp_path):
    rows = [GOOD | dict(question="Which is closer to me?", image_bytes=[dict(bytes=png((n, 0, 0)), path=None)]) for n in range(4)]
    data, held = parquet(tmp_path, *rows, rows[0] | dict(image_bytes=rows[0]["image_bytes"]*2)), parquet(tmp_path, *rows, name="val.parquet")
    p = SatParameters(data=str(data), evaluation=str(held), questions=0, out=str(tmp_path/"out"))
    exams, (warm, rows) = sat_exams(p), sat_examples(p)
    assert list(exams) == ["as trained", "flipped"] and exams["flipped"].items[0].question == "Which is farther from me?" and exams["flipped"].items[0].answer != exams["as trained"].items[0].answer
    assert len(warm) + len(rows) == 4 and all(type(r["images"][0]) is str for r in warm + rows) # two pictures: left out, as published
    published = write_published(read_sat(data, pictures="one"), tmp_path/"SAT_train.json")
    assert sorted(r["prompt"] for part in sat_examples(replace(p, data=str(published))) for r in part) == sorted(r["prompt"] for r in warm + rows)
    assert [w.split(", because ")[0] for w in exams.not_asked] == [f"not asked: {w}" for w in ("reordered", "rephrased", "unseen pairs")]
    kinds = [i.kind for i in sat_exams(replace(p, evaluation=str(parquet(tmp_path, *[r | dict(question="What now?") for r in held_rows(6)], name="mixed.parquet")), questions=4)).pop("as trained").items]
    assert sorted(kinds) == ["goal_aim", "goal_aim", "other", "other"] # drawn over kinds, not the first of the file


def held_rows(n): return [GOOD | dict(question_type=kind) for kind in ("other", "goal_aim") for _ in range(n)]


def test_items_of_like_names_keep_their_pictures(tmp_path):
    items = [SatItem(i, "", "Which?", ("a", "b"), "a", (png(c),)) for i, c in (("a/1", "red"), ("a-1", "blue"), ("a 1", "green"))]
    back = read_published(write_published(items, tmp_path/"p.json"))
    assert [picture(i.pictures[0].read_bytes()).convert("RGB").getpixel((0, 0)) for i in back] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]

@pytest.mark.parametrize("spoil,says", [(lambda e: [e | dict(images=[None])], "'images'"), (lambda e: [e | dict(images=["p.json"])], "a file that is a picture"), (lambda e: [], "has no entry")])
def test_a_published_file_that_cannot_be_is_refused(tmp_path, spoil, says):
    path = write_published([SatItem("1", "", "Which?", ("a", "b"), "a", (png(),))], tmp_path/"p.json")
    entry, = json.loads(path.read_text())
    path.write_text("\ufeff" + json.dumps([entry]), encoding="utf-8")
    assert len(read_published(path)) == 1, "a mark of byte order is no fault"
    path.write_text(json.dumps(spoil(entry)))
    with pytest.raises(ValueError, match=says): read_published(path)

def test_more_options_than_letters_are_refused():
    with pytest.raises(ValueError, match="27 options; expected 26 at most"): SatItem("1", "", "Which?", tuple(map(str, range(27))), "3", (png(),))
