"Published prompts word for word, graphs that no notebook has shown, and the same question in every condition."
import json, re
from collections import Counter

import pytest

from cooper.core import NotBuilt, resolve
from cooper.measure.benchmarks import benchmark
from cooper.perceive.scenes import load_facts
from cooper.reason.data import KINDS
from cooper.reason.descriptions import worded
from cooper.reason.hosted import Endpoint, Hosted, Rehearsal, Reply
from cooper.reason.prompting import (ABSENT, SEEN, VARIANTS, Item, Outcome, StudyParameters, answer_items, graph_counts, messages, parse_flow, parse_graph, published_graph,
                                     rule_reader, scene_shots, score, study, study_models, study_plan, variant)

PICTURE = "data/scenes/test/rgb/000000.png"
ITEM = Item("Which is closer?", ("the cup", "the {graph}"), (PICTURE,), "Words about it.", "an item")


def talk(server, folder): return Hosted(Endpoint("m", server.url, key="", name="here"), folder)


def sent(name, item=ITEM, replies=("```json\n{\"objects\": [\"cup\"]}\n```", "<answer>A</answer>"), folder=None, **options): # bodies that an endpoint sees
    said = iter(replies)
    with Rehearsal(lambda body: next(said)) as server:
        outcome, = answer_items(talk(server, folder), [item], VARIANTS[name], show=False, **options)
        return server.seen, outcome


def plain(body): # (role, words, number of pictures) of each turn
    def turn(m):
        parts = [dict(type="text", text=m["content"])] if isinstance(m["content"], str) else m["content"]
        return m["role"], "".join(p["text"] for p in parts if p["type"] == "text"), sum(p["type"] == "image_url" for p in parts)
    return [turn(m) for m in body["messages"]]


def test_scene_graph_as_published(tmp_path):
    first, second = sent("cvbench_scene_graph", folder=tmp_path)[0]
    assert plain(first) == [("system", "You are an AI assistant that generates scene graphs based on images and questions.", 0),
        ("user", "Which is closer? (A) the cup (B) the {graph}\n\n\nFor the provided image and its associated question, think and generate a scene graph in JSON format that includes the following:\n"
         "1. Objects that are relevant to answering the question\n2. Object attributes that are relevant to answering the question\n3. Object relationships that are relevant to answering the question\n"
         "Enclose the final scene graph in ```\nscene_graph_here\n```\n", 1)]
    assert plain(second) == [("system", "You are an AI assistant proficient in Visual and Spatial reasoning with tasks involving counting, relations, depth, distances, etc. Think based on the image and the "
         "JSON scene graph and then answer. Final answer should be provided between <answer> </answer> tags. All questions are multiple choice, provide the letter (A, B, C, or D) of the correct answer after thinking.", 0),
        ("user", 'Scene Graph: {"objects": ["cup"]}\n\n\nUse the image and scene graph as context and answer the following question:\n\nWhich is closer? (A) the cup (B) the {graph}\n\n'
         "Answer with the option's letter from the given choices directly.", 1)]
    assert [p["type"] for p in first["messages"][1]["content"]] == ["text", "image_url"] # words first, as published


def test_describe_as_published(tmp_path):
    first, second = sent("clevr_describe", replies=("Two cups.", "<answer>2</answer>"), folder=tmp_path)[0]
    say = "Describe the objects in this image: their color, shape, size, location, relative location, reflectance and material (glossy is metallic, matte is rubber)."
    assert plain(first) == [("system", "You are a helpful assistant that can see and describe images accurately.", 0), ("user", say, 1)]
    assert plain(second) == [("system", 'Final answer should be a single number, "yes" or "no" between <answer> </answer> tags.', 0), ("user", say, 1), ("assistant", "Two cups.", 0), ("user", "Which is closer?", 0)]


@pytest.mark.parametrize("name, system, user", [
    ("clevr_zero_shot", 'Final answer should be a single number, "yes" or "no" between <answer> </answer> tags.', "Which is closer?"),
    ("cvbench_zero_shot", "Final answer should be provided between <answer> </answer> tags. All questions are multiple choice, just provide the letter (A, B, C, or D) of the correct answer.",
     "Which is closer? Select from the following choices. (A) the cup (B) the {graph}"),
    ("sat_zero_shot", "You are solving a spatial aptitude test. Analyze the image(s) carefully and select the best answer from the given options. Your final answer should be just the letter "
     "(A, B, C, D, or E) between <answer> </answer> tags.", "Which is closer?\n\nA. the cup\nB. the {graph}")])
def test_zero_shot_as_published(tmp_path, name, system, user):
    body, = sent(name, folder=tmp_path)[0]
    assert plain(body) == [("system", system, 0), ("user", user, 1)]


def test_what_was_never_published_is_refused():
    for name in ABSENT:
        with pytest.raises(NotBuilt): variant(name)
    with pytest.raises(ValueError, match="expected one of"): variant("scene graph")


OBJECTS = {"objects": [{"name": "cup", "attributes": {"color": "red", "place": {"x": 0.2}}}], "relationships": [{"subject": "cup", "predicate": "left of", "object": "jar"}]}
NESTED = json.dumps(OBJECTS, indent=2)
GRAPHS = { # what models write -> (how, what must be in it)
    "upper-case fence": (f"Sure! Here is the scene graph:\n\n```JSON\n{NESTED}\n```\n\nLet me know if you need more.", "json", "jar"),
    "fence never closed": (f"```json\n{NESTED}\n", "json", "jar"),
    "prose around, no fence": (f"Looking at it {{carefully}}, the graph is {NESTED} and that is all I see.", "json", "jar"),
    "trailing commas, nested": ('```\n{"objects": [{"name": "cup", "near": ["jar", "lid",],},], "relations": [],}\n```', "repaired", "lid"),
    "comments": ('```json\n{\n  // what I see\n  "objects": ["cup", "jar"], /* two */\n}\n```', "repaired", "jar"),
    "Python": ("{'objects': [{'name': 'cup', 'occluded': True, 'behind': None}, {'name': \"the jar's lid\"}]}", "repaired", "lid"),
    "curly quotes": ("```json\n{“objects”: [“cup”, “jar”]}\n```", "repaired", "jar"),
    "a draft and a better one": ('First try:\n```json\n{"objects": ["cup"]}\n```\nOn reflection:\n```json\n{"objects": ["cup", "jar"]}\n```', "json", "jar"),
    "an answer behind it": (f'```json\n{NESTED}\n```\nSo: {{"answer": "A"}}', "json", "jar"),
    "code tags": (f"<code>{NESTED}</code>", "json", "jar"),
    "cut off": (NESTED[:-60], "cut", "cup"), "cut behind a word": ('{"objects": ["cup", "jar"', "cut", "jar"), "cut in a number": ('{"objects": [{"name": "cup", "metres": 5.', "cut", "cup"),
    "triples": ('```json\n[["cup", "left of", "jar"], ["jar", "behind", "lid"]]\n```', "json", "lid"),
    "thought first": (f'<think>Maybe {{"objects": ["dog"]}}?</think>\n```json\n{NESTED}\n```', "json", "jar"),
    "one object a line": ('```\n{"object": "cup", "left_of": "jar"}\n{"object": "jar", "left_of": "lid"}\n```', "repaired", "lid"),
    "dots": ('```json\n{"objects": ["cup", "jar", ...]}\n```', "repaired", "jar"),
    "brackets in strings": ('{"objects": [{"name": "sign }]", "text": "a \\"jar\\" {"}]}', "json", "jar"),
    "no graph": ("I cannot see an image, sorry.", "none", ""), "nothing": ("", "none", ""), "braces only": ("{x} and {y}", "none", ""),
    "empty": ("```json\n{}\n```", "empty", ""), "empty lists": ('{"objects": [], "relationships": []}', "empty", ""), "empty names": ('{"objects": [{"name": ""}]}', "empty", ""),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_unseen_graphs(case):
    text, how, inside = GRAPHS[case]
    graph = parse_graph(text)
    assert graph.how == how and graph.ok == (how in ("json", "repaired", "cut"))
    assert inside in str(graph) and "dog" not in str(graph) and "answer" not in str(graph)
    json.loads(str(graph)) # what goes on is JSON


def test_graphs_that_the_published_code_loses(): # nested JSON in prose, and a trailing comma in a fence
    for text in (f"The graph is {json.dumps(OBJECTS)} and that is all.", GRAPHS["trailing commas, nested"][0]): assert published_graph(text) == {} and parse_graph(text).ok
    assert published_graph(GRAPHS["prose around, no fence"][0]) == OBJECTS["relationships"][0] # a piece of it


def test_strange_replies_do_not_fail():
    for text in ("{"*3000, "["*50000, "```"*500, '{"a":'*400, "\x00{\"objects\": [1e999]}", "{" + '"k": 1, '*9000): assert parse_graph(text).how in ("json", "repaired", "cut", "empty", "none")


def test_an_empty_graph_is_counted(tmp_path):
    says = iter(["```json\n{}\n```", GRAPHS["triples"][0], "no idea", '{"objects": ["cup"'])
    def answer(body): return "<answer>A</answer>" if "Scene Graph:" in json.dumps(body) else next(says)
    with Rehearsal(answer) as server:
        bench = benchmark("scenes", count=5)
        bench = type(bench)("few", bench.folder, bench.questions[1:5], bench.constants)
        model = Hosted(Endpoint("m", server.url, key="", name="here", concurrency=1), tmp_path)
        rows = study([model], ["cvbench_scene_graph"], bench, seen=("picture",), show=False)
    assert Counter(r["graph"] for r in rows) == dict(empty=1, json=1, none=1, cut=1)
    counts, = graph_counts(rows)
    assert (counts["n"], counts["json"], counts["empty"], counts["none"], counts["cut"], counts["failed"]) == (4, 1, 1, 1, 1, 0)


@pytest.mark.parametrize("name", ["bare", "plain", "think", "describe", "scene_graph", "cvbench_zero_shot", "cvbench_scene_graph", "clevr_describe"])
def test_the_question_is_the_same_in_every_condition(name):
    v, values = VARIANTS[name], dict(graph="{}", description="D", flow_note="")
    before = messages(v, v.calls[0], ITEM, values, "picture")
    for call in v.calls:
        if call.goes_on: continue
        turns = {s: messages(v, call, ITEM, values, s, before=before) for s in SEEN}
        words = {s: "\n".join(p for m in t for p in m["content"] if isinstance(p, str)) for s, t in turns.items()}
        pictures = {s: sum(not isinstance(p, str) for m in t for p in m["content"]) for s, t in turns.items()}
        assert words["picture"] == words["nothing"] and words["picture+words"] == words["words"]
        assert words["words"].replace(ITEM.words + "\n\n", "", 1) == words["nothing"]
        assert pictures == {"picture": 1, "picture+words": 1, "words": 0, "nothing": 0}


def test_examples_split_and_as_a_conversation(tmp_path):
    folder = "data/scenes/train"
    shots = scene_shots(load_facts(folder, 12), folder, KINDS, 0)
    assert len(shots) == len(KINDS) and len({s.item.pictures for s in shots}) == len(KINDS)
    seen, _ = sent("few_shot_conversation", folder=tmp_path/"a", shots=shots)
    first, second = map(plain, seen)
    assert [t[0] for t in first] == ["system"] + ["user", "assistant"]*len(KINDS) + ["user"] and all(t[2] == 1 for t in first if t[0] == "user")
    assert all(t[1].startswith("Scene Graph: {") and "<answer>" not in t[1] for t in first if t[0] == "assistant") # stage one shows no answers
    assert all(re.fullmatch(r"Answer: <answer>[A-G]</answer>", t[1]) for t in second if t[0] == "assistant")
    seen, _ = sent("few_shot_split", folder=tmp_path/"b", shots=shots)
    for body, tail in zip(seen, ("Assistant: Scene Graph:", "Assistant: Answer:")):
        assert [t[0] for t in plain(body)] == ["system", "user"] and plain(body)[1][1].endswith(tail) and plain(body)[1][2] == len(KINDS) + 1
    with pytest.raises(ValueError, match="needs examples"): sent("few_shot_split", folder=tmp_path/"c")


def test_flow_notes_only_for_two_pictures(tmp_path):
    two = Item("Did it move?", ("left", "right"), (PICTURE, "data/scenes/test/rgb/000001.png"))
    seen, outcome = sent("optical_flow", two, ('{"cup": 1, "jar": "left"}', "<answer>B</answer>"), tmp_path/"two")
    assert outcome.flow == {"cup": 1, "jar": -1} and len(seen) == 2 and '{"cup": 1, "jar": -1}' in plain(seen[1])[-1][1]
    assert len(sent("optical_flow", replies=("<answer>A</answer>",), folder=tmp_path/"one")[0]) == 1
    assert parse_flow("- cup: right\n- jar: still\n- lid: maybe") == {"cup": 1, "jar": 0} and parse_flow("no") == {}


@pytest.mark.parametrize("text, right", [("<answer>B</answer>", True), ("<ANSWER>(B)</ANSWER>", True), ("<answer>B. the jar</answer>", True), ("Thinking about it...\nThe answer is **the jar**.", True), ("<answer>A</answer>", False),
                                         ("<answer>C</answer>", False), ("I do not know", False), ("", False)])
def test_scores(text, right): assert score(Outcome(Item("?", ("the cup", "the jar")), [Reply(text)]), "the jar")["correct"] == right


def test_a_failed_call_is_wrong_and_told():
    found = score(Outcome(Item("?", ("a", "b")), [Reply(error="answered 500")]), "a")
    assert (found["correct"], found["valid"], found["why"]) == (False, False, "answered 500")


def test_a_study_from_plan_to_records(tmp_path):
    bench, p = benchmark("scenes", count=30), StudyParameters(["rehearsal"], ("plain", "scene_graph"), out=str(tmp_path))
    with Rehearsal(rule_reader) as server:
        models = study_models(p, server)
        asked = models, p.prompts, bench, worded(p.data)
        plan, = study_plan(*asked)
        assert not server.calls
        rows = study(*asked, show=False)
        spent, calls = models[0].spent, len(server.calls)
        assert plan.sent >= spent.replies == calls and plan.prompt_tokens >= spent.prompt_tokens and plan.completion_tokens >= spent.completion_tokens
        assert study(*asked, show=False) == rows or [r["prediction"] for r in study(*asked, show=False)] == [r["prediction"] for r in rows]
        assert len(server.calls) == calls # nothing twice
    assert len(rows) == 30*2*4
    told = [r for r in rows if "words" in r["seen"] and r["kind"] != "distance"]
    assert all(r["correct"] for r in told) # the words hold these answers, and hold them right
    blind = {s: [r["prediction"] for r in rows if r["prompt"] == "plain" and r["seen"] == s] for s in SEEN}
    assert blind["picture"] == blind["nothing"] != blind["words"] == blind["picture+words"]


def test_wrong_words_make_the_reader_wrong(tmp_path):
    bench = benchmark("scenes", count=30)
    with Rehearsal(rule_reader) as server:
        model = study_models(StudyParameters(["rehearsal"], ("plain",), out=str(tmp_path)), server)
        swapped = lambda q: worded("data/scenes/test")(q).replace("left to right", "?").replace("front to back", "left to right").replace("?", "front to back")
        rows = study(model, ["plain"], bench, swapped, ("words",), show=False)
    assert sum(r["correct"] for r in rows if r["kind"] in ("relation", "depth")) < 10 # of 12


@pytest.mark.parametrize("wrong, says", [(dict(models=[]), "'models' is empty"), (dict(prompts=("few_shot_split",)), "'examples' is missing"), (dict(seen=("smell",)), "'smell'"), (dict(prompts=()), "'prompts' is empty"),
    (dict(price=[1.]), "expected two"), (dict(money=2.), "needs 'price'"), (dict(questions=0), "'questions' is 0")])
def test_wrong_parameters(wrong, says):
    with pytest.raises(ValueError, match=says): StudyParameters(**dict(models=["rehearsal"], prompts=("plain",)) | wrong)
