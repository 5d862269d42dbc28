"Published prompts word for word, graphs that no notebook has shown, and the same question in every condition."
import json, re

import pytest

from cooper.core import NotBuilt
from cooper.perceive.scenes import load_facts
from cooper.reason.data import KINDS
from cooper.reason.hosted import Endpoint, Hosted, Rehearsal
from cooper.reason.prompting import (ABSENT, SEEN, VARIANTS, Item, Job, answer_items, answer_jobs, blocks, messages, parse_flow, parse_graph, published_graph, refusal, scene_shots, variant)

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
    "a string of JSON": (json.dumps(json.dumps(OBJECTS)), "repaired", "jar"), "Markdown's escapes": ('{"scene\\_graph": {"objects": ["cup", "jar"]}}', "repaired", "jar"), "tilde fence": (f"~~~json\n{NESTED}\n~~~", "json", "jar"),
    "missing comma": ('{"objects": [{"name": "cup"}\n {"name": "jar"}]}', "repaired", "jar"), "full-width signs": ("{“objects”：［“cup”，“jar”］}", "repaired", "jar"), "HTML": ("{&quot;objects&quot;: [&quot;cup&quot;, &quot;jar&quot;]}", "repaired", "jar"),
    "a line's end in a string": ('{"objects": [{"name": "red\ncup"}, {"name": "jar"}]}', "repaired", "jar"), "words without quotes": ("{objects: [{name: cup}, {name: glass jar}]}", "repaired", "glass jar"),
    "percent and fractions": ('{"objects": [{"name": "cup", "x": 20%}, {"name": "jar", "x": 1/2, "y": -3.5, "z": true}]}', "repaired", '"1/2", "y": -3.5, "z": true'), "no numbers": ('{"objects": [{"name": "cup", "d": NaN}, {"name": "jar", "d": Infinity}]}', "json", "jar"),
    "objects and relations apart": ('Objects:\n```json\n[{"name": "cup"}, {"name": "lid"}]\n```\nRelations:\n```json\n[{"subject": "cup", "predicate": "near", "object": "jar"}]\n```', "repaired", '"lid"}, {"subject": "cup"'),
    "two halves": ('```json\n{"objects": ["cup", "lid"]}\n```\n```json\n{"relationships": [["cup", "near", "jar"]]}\n```', "repaired", '"lid"], "relationships": [["cup", "near", "jar"]]'),
    "a variable of Python": ('```python\nscene_graph = {\n "objects": ["cup", "jar"], # things\n}\n```', "repaired", "jar"), "a bracket missing inside": ('{"objects": ["cup", "jar", "relations": []}', "cut", "jar"), "one too many": ('{"objects": ["cup", "jar"]}}', "json", "jar"),
    "a form of it first": ('I use {"objects": [...], "relationships": [...]}:\n```json\n{"objects": ["cup", "jar"]}\n```', "json", "jar"),
    "an excuse": ('{"error": "I cannot see the image"}', "none", ""), "only an answer": ('```json\n{"Answer": "A", "confidence": 0.9}\n```', "none", ""), "nulls": ('{"objects": null, "relationships": null}', "empty", ""), "YAML": ("```yaml\nobjects:\n  - name: cup\n```", "none", ""),
    "no graph": ("I cannot see an image, sorry.", "none", ""), "nothing": ("", "none", ""), "braces only": ("{x} and {y}", "none", ""),
    "empty": ("```json\n{}\n```", "empty", ""), "empty lists": ('{"objects": [], "relationships": []}', "empty", ""), "empty names": ('{"objects": [{"name": ""}]}', "empty", ""),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_unseen_graphs(case):
    text, how, inside = GRAPHS[case]
    graph = parse_graph(text)
    assert graph.how == how and graph.ok == (how in ("json", "repaired", "cut"))
    assert inside in str(graph) and "dog" not in str(graph) and "answer" not in str(graph)
    json.loads(str(graph), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) # what goes on is JSON


# several pieces of JSON in a reply, and what a careful reader takes from it: (reply, how, value; None where only the outcome matters)

CUP, JAR, LID = {"name": "cup", "depth_m": 2.1}, {"name": "jar", "depth_m": 3.4}, {"name": "lid", "depth_m": 1.2}
J = json.dumps
WHOLE, MORE, OTHER = {"objects": [CUP, JAR], "relations": [["cup", "left of", "jar"]]}, {"objects": [CUP, JAR, LID], "relations": []}, {"objects": [LID]}
TIE = {"subject": "cup", "predicate": "left of", "object": "jar"}
NEW = {"name": "jar", "depth_m": 2.9} # what is said of the jar the second time
SEVERAL = {
    "one object a line": (f"{J(CUP)}\n{J(JAR)}\n{J(LID)}", "repaired", [CUP, JAR, LID]),
    "one object a line, commas": (f"{J(CUP)},\n{J(JAR)},\n{J(LID)},", "repaired", [CUP, JAR, LID]),
    "one object a line, prose around": (f"Here is the scene graph:\n\n{J(CUP)}\n{J(JAR)}\n\nI hope this helps!", "repaired", [CUP, JAR]),
    "bullets": (f"The objects:\n- {J(CUP)}\n- {J(JAR)}", "repaired", [CUP, JAR]),
    "numbered with titles": (f"1. **Cup**: {J(CUP)}\n2. **Jar**: {J(JAR)}\n3. **Lid**: {J(LID)}", "repaired", [CUP, JAR, LID]),
    "a fence each": (f"```json\n{J(CUP)}\n```\n\n```json\n{J(JAR)}\n```", "repaired", [CUP, JAR]),
    "a fence each, titles": (f"### Object 1\n```json\n{J(CUP)}\n```\n### Object 2\n```json\n{J(JAR)}\n```", "repaired", [CUP, JAR]),
    "a paragraph each": (f"Let me look at the picture from left to right. The first thing that one notices, standing quite near to the camera on the table, is a cup: {J(CUP)}. Much farther off, beside the door and partly hidden, one can also make out a large glass jar: {J(JAR)}.", "repaired", [CUP, JAR]),
    "finally": (f"First there is {J(CUP)}. Finally, the jar: {J(JAR)}", "repaired", [CUP, JAR]),
    "two of a kind in a list": ('{"object": "chair", "position": "left"}\n{"object": "chair", "position": "right"}', "repaired", [{"object": "chair", "position": "left"}, {"object": "chair", "position": "right"}]),
    "two of a kind, numbered": ('{"id": 1, "name": "chair"}\nand, some way off and nearly out of sight behind the long table with the flowers on it, one more of them: {"id": 2, "name": "chair"}', "repaired", [{"id": 1, "name": "chair"}, {"id": 2, "name": "chair"}]),
    "looks without names": ('{"color": "red", "shape": "cube", "position": [0.1, 0.5]}\n{"color": "blue", "shape": "sphere"}', "repaired", [{"color": "red", "shape": "cube", "position": [.1, .5]}, {"color": "blue", "shape": "sphere"}]),
    "objects and relations a line": (f"{J(CUP)}\n{J(JAR)}\n{J(TIE)}", "repaired", [CUP, JAR, TIE]),
    "triples a line": ('["cup", "left of", "jar"]\n["jar", "behind", "lid"]', "repaired", [["cup", "left of", "jar"], ["jar", "behind", "lid"]]),
    "two lists": (f"Objects:\n{J([CUP, JAR])}\nRelations:\n{J([TIE])}", "repaired", [CUP, JAR, TIE]),
    "two lists of objects": (f"On the left: {J([CUP])}\nOn the right: {J([JAR])}", "repaired", [CUP, JAR]),
    "halves without a fence": (f'{{"objects": {J([CUP, JAR])}}}\n{{"relations": {J([TIE])}}}', "repaired", {"objects": [CUP, JAR], "relations": [TIE]}),
    "a graph, then relations": (f'{{"objects": {J([CUP, JAR])}}}\nRelations:\n{J(TIE)}', "repaired", {"objects": [CUP, JAR], "relations": [TIE]}),
    "no outer braces": (f'"objects": {J([CUP, JAR])},\n"relations": {J([TIE])}', "repaired", {"objects": [CUP, JAR], "relations": [TIE]}),
    "a table in pieces": ('{"cup": "left"}\n{"jar": "right"}', "repaired", {"cup": "left", "jar": "right"}),
    "the last item cut": (f'{J(CUP)}\n{{"name": "jar", "depth_m": 3.4, "near": ["li', "cut", None),
    # repeated
    "a graph told twice": (f"{J(WHOLE)}\n\nSo the scene graph is:\n{J(WHOLE)}", "json", WHOLE),
    "a draft and a better one": (f"{J(WHOLE)}\nWait, there is a lid as well.\n{J(MORE)}", "json", MORE),
    "the better one says less": (f"{J(MORE)}\nActually the lid belongs to the jar. Corrected:\n{J(WHOLE)}", "json", WHOLE),
    "better, and about other things": (f"{J(WHOLE)}\nNo, I was looking at the wrong picture, that was a mistake.\n{J(OTHER)}", "json", OTHER),
    "a second graph without a word": (f"{J(WHOLE)}\n\n{J(MORE)}", "json", MORE),
    "a draft in the text, the graph in a fence": (f"I think of {J(OTHER)} at first.\n```json\n{J(WHOLE)}\n```", "json", WHOLE),
    "the graph in a fence, then an item named": (f"```json\n{J(WHOLE)}\n```\nThe nearest is {J(CUP)}.", "json", WHOLE),
    "an item, then the graph": (f"The nearest is {J(CUP)}.\n\nThe graph: {J(WHOLE)}", "json", WHOLE),
    "a list and a longer list": (f"{J([CUP, JAR])}\n{J([CUP, JAR, LID])}", "json", [CUP, JAR, LID]),
    "a list told twice": (f"{J(CUP)}\n{J(JAR)}\n\n{J(CUP)}\n{J(NEW)}", "repaired", [CUP, NEW]),
    "an item corrected": (f"{J(CUP)}\n{J(JAR)}\nSorry, I mixed them up. All again:\n{J(CUP)}\n{J(NEW)}", "repaired", [CUP, NEW]),
    "a table corrected": ('{"cup": "left", "jar": "left"} - correction: {"cup": "left", "jar": "right"}', "json", {"cup": "left", "jar": "right"}),
    # an example or a form first
    "an example first": (f"A scene graph, for example {J(OTHER)}, lists objects. Here it is:\n{J(WHOLE)}", "json", WHOLE),
    "an example of an item first": (f"Each line should look like {J(LID)}.\n\nThe picture shows:\n{J([CUP, JAR])}", "json", [CUP, JAR]),
    "a form in the prompt's words": ('I will use {"objects": [{"name": "<name>", "position": "<x, y>"}]}.\n' + J(WHOLE), "json", WHOLE),
    "a schema first": ('{"type": "object", "properties": {"objects": {"type": "array"}}}\n' + J(WHOLE), "json", WHOLE),
    "only an example": (f"For example {J(WHOLE)}", "json", WHOLE),
    "in JSON format": (f"Here is the scene graph in JSON format:\n{J(CUP)}\n{J(JAR)}", "repaired", [CUP, JAR]),
    # thoughts with braces
    "thoughts with braces": (f"<think>The set {{cup, jar}}; maybe {J(OTHER)} or {{x: 1}}</think>\n{J(WHOLE)}", "json", WHOLE),
    "thinking aloud": (f"Let me see. {{cup}} is left [of the jar], so {{left: cup}}. Depths: {{2.1, 3.4}}.\n\n{J(WHOLE)}", "json", WHOLE),
    "a brace never closed": (f"I open with {{ and say: {J(WHOLE)}", "json", WHOLE),
    "a graph in the thoughts, an empty one behind": (f"<think>{J(WHOLE)}</think>{{\"objects\": []}}", "empty", {"objects": []}),
    "a graph and an answer": (f'{J(WHOLE)}\n{{"answer": "B", "explanation": "nearer"}}', "json", WHOLE),
    "an answer in a list": (f'{J(WHOLE)}\n[{{"answer": "B"}}]', "json", WHOLE),
    # where a person would shrug
    "two pictures": (f"Picture 1:\n{J(WHOLE)}\nPicture 2:\n{J(OTHER)}", "ambiguous", None),
    "two fences about different things": (f"```json\n{J(WHOLE)}\n```\n```json\n{J(OTHER)}\n```", "ambiguous", None),
    "two readings of one item": (f"The jar is behind the cup, somewhat to the right of it, and it is made of green glass as it seems: {J(JAR)}. The jar stands on the table in front of the window, with the sun upon it, and has no lid: {J(NEW)}.", "ambiguous", None),
    "lists with other members": (f"{J([CUP, JAR])}\n{J([NEW, LID])}", "ambiguous", None),
    "a graph and other things": (f"{J(WHOLE)}\n{J(LID)}", "ambiguous", None),
    # brackets in prose
    "see above": ("[see above]", "none", None), "a colour and a side": ("the cube (red) {left}", "none", None), "a reference": ("There are two cups [1], [2] and [3, 4].", "none", None),
    "a citation with names": ("It is one of [cup, jar].", "none", None), "options in brackets": ('The options are ["left", "right", "both"].', "none", None), "a set": ("{cup, jar}", "none", None),
    "a side": ("{left: right}" + " is what the question asks.", "none", None), "LaTeX": (r"\boxed{\text{left}} and $\frac{1}{2}$", "none", None), "a link": ("[cup](http://host/a) is [here].", "none", None),
    "boxes to tick": ("- [x] cup\n- [y] jar", "none", None), "code": ("```python\ndef f(x): return {x}\n```", "none", None), "a box alone": ('The box is {"x": 1, "y": 2, "w": 3, "h": 4}.', "none", None),
    "coordinates": ("The cup is at [0.2, 0.5], the jar at [[0.1, 0.2], [0.3, 0.4]].", "none", None), "coordinates in a fence": ("```json\n[0.2, 0.5]\n```", "none", None), "bare names in a fence": ("```\n[cup, jar]\n```", "none", None),
    "a graph of arrows": ("```\n[cup] -> left of -> [jar]\n```", "none", None), "Graphviz": ("digraph {cup -> jar}", "none", None), "not applicable": ('{"objects": "none", "relations": "N/A"}', "empty", None),
    "a form not filled in": ('```json\n{"objects": [{"name": "<name>"}, ...]}\n```', "empty", None), "quoted names": ('["cup", "jar"]', "json", ["cup", "jar"]), "quoted names in a fence": ('```json\n["cup", "jar"]\n```', "json", ["cup", "jar"]),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_pieces_in_a_reply(case):
    text, how, value = SEVERAL[case]
    graph = parse_graph(text)
    assert graph.how == how and (value is None or graph.value == value)
    assert graph.ok == (how in ("json", "repaired", "cut")) and (graph.how != "ambiguous" or graph.value is None)


def test_what_is_no_graph_is_not_passed_on(tmp_path):
    "Brackets in prose, and two graphs without a word which counts, reach no second call as a graph."
    for reply in ("[see above]", "the cube (red) {left}", SEVERAL["two pictures"][0]):
        seen, outcome = sent("cvbench_scene_graph", replies=(reply, "<answer>A</answer>"), folder=tmp_path/str(len(reply)))
        assert plain(seen[1])[1][1].startswith("Scene Graph: {}\n") and not outcome.graph.ok


def test_flow_in_pieces():
    assert parse_flow('{"object": "cup", "dx": 1}\n{"object": "jar", "dx": -1}') == {"cup": 1, "jar": -1}
    assert parse_flow('{"cup": 1}\nWait: {"cup": -1, "jar": 0}') == {"cup": -1, "jar": 0} and parse_flow('<think>{"cup": 0}</think>{"cup": 1}') == {"cup": 1}


def test_graphs_that_the_published_code_loses(): # nested JSON in prose, and a trailing comma in a fence
    for text in (f"The graph is {json.dumps(OBJECTS)} and that is all.", GRAPHS["trailing commas, nested"][0]): assert published_graph(text) == {} and parse_graph(text).ok
    assert published_graph(GRAPHS["prose around, no fence"][0]) == OBJECTS["relationships"][0] # a piece of it


def test_strange_replies_do_not_fail():
    for text in ("{"*3000, "["*50000, "```"*500, '{"a":'*400, "\x00{\"objects\": [1e999]}", "{" + '"k": 1, '*9000, "{a "*2000 + "}"*2000): assert parse_graph(text).how in ("json", "repaired", "cut", "empty", "none")
    for n in (300, 600, 2000, 20000): # a model that goes round in circles
        for text in ('{"objects":'*n + "1" + "}"*n, "{'objects':"*n + "1" + "}"*n, '{"objects":'*n, "["*n + '"cup"' + "]"*n): assert parse_graph(text).how == "none" and parse_flow(text) == {}


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


def test_examples_come_with_words_where_the_question_does():
    folder = "data/scenes/train"
    facts = load_facts(folder, 12)
    shots, bare = (tuple(scene_shots(facts, folder, KINDS[:2], 0, **more)) for more in (dict(words=lambda q: f"Words about {q.data_id}."), {}))
    v = VARIANTS["few_shot_conversation"]
    turns = messages(v, v.calls[0], ITEM, {}, "words", shots)
    said = ["".join(m["content"]) for m in turns if m["role"] == "user"] # no pictures among them, or this would fail
    assert len(said) == 3 and all(f"Words about {s.item.name}." in t for s, t in zip(shots, said)) and ITEM.words in said[2]
    with pytest.raises(ValueError, match="has no words to show"): messages(v, v.calls[0], ITEM, {}, "words", bare)


def test_options_are_printed_once_and_an_open_question_says_what_it_wants():
    assert blocks(Item("Which?", ("a cup", "", "a jar")))["lettered"] == "Which? (A) a cup (C) a jar"
    inline = blocks(Item("Which?\nA. cup\nB. jar", ("cup", "jar")))
    assert inline["asked"] == inline["lettered"] == inline["select"] == "Which?\nA. cup\nB. jar"
    assert [blocks(Item("?", form=f))["tell"] for f in ("yes_no", "number", "length")] == [f"Answer with {x}, between <answer> and </answer>." for x in ("yes or no", "a number", "a number and its unit")]
    assert "lettered" not in blocks(Item("How many?", form="number"))
    with pytest.raises(ValueError, match="form is 'poem'"): blocks(Item("How many?", form="poem"))


def test_the_owners_words_and_nothing_else(tmp_path):
    body, = sent("owner", Item("How far?", pictures=(PICTURE,), owner="Question: How far?\nThink.", owner_system="Say a {length}."), ("1 m",), tmp_path)[0]
    assert plain(body) == [("system", "Say a {length}.", 0), ("user", "Question: How far?\nThink.", 1)]
    body, = sent("owner", ITEM, ("A",), tmp_path)[0]
    assert plain(body) == [("user", "Which is closer?", 1)]


@pytest.mark.parametrize("name, items, seen, why", [
    ("cvbench_zero_shot", [ITEM, Item("How many?")], "picture", "prints options, and 1 of 2 questions have none"), ("sat_zero_shot", [Item("How many?")], "nothing", "prints options, and the questions have none"),
    ("plain", [ITEM, Item("How many?")], "words", "no description: 1 of 2"), ("clevr_words", [ITEM], "picture", "shows a description itself"), ("few_shot_flat", [ITEM], "picture", "there are none"),
    ("plain", [ITEM, Item("How many?")], "picture", ""), ("clevr_words", [ITEM], "words", ""), ("clevr_describe", [ITEM], "nothing", "")])
def test_what_cannot_be_asked_says_why(tmp_path, name, items, seen, why):
    with Rehearsal(lambda body: "") as server: found = refusal(talk(server, tmp_path), VARIANTS[name], items, seen)
    assert why in found if why else found == ""


def test_prompts_of_one_study_go_out_together(tmp_path):
    "One batch a stage, not one a prompt."
    jobs = [Job([ITEM], VARIANTS[n], s) for n in ("plain", "scene_graph", "clevr_describe") for s in ("picture", "nothing")]
    with Rehearsal(lambda body: '{"objects": ["cup"]} <answer>A</answer>') as server:
        found = answer_jobs(talk(server, tmp_path), jobs, dict(poll=.02), show=False)
        assert [len(o.replies) for o, in found] == [1, 1, 2, 2, 2, 2] and [len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()] == [6, 4]


def test_a_reply_that_looks_like_a_file(tmp_path):
    seen, outcome = sent("clevr_describe", replies=("cup.png", "<answer>2</answer>"), folder=tmp_path)
    assert outcome.text == "<answer>2</answer>" and plain(seen[1])[2] == ("assistant", "cup.png", 0)
