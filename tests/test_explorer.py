"The explorer without a browser: its controls are turned as a person would, and what its widgets would show is read. `browser_explorer.py` does the same in JupyterLab."
import base64, io, json, re, threading, time
from datetime import datetime

import numpy as np
import pytest
from PIL import Image

import cooper
from cooper.core import append_jsonl, resolve
from cooper.cooperate.grpo import _write_rollouts, rollout_row
from cooper.model.modalities import DepthMap, SegmentMap
from cooper.present.explorer import ALL, FILM, LOOK, Browser, Explorer, Running, map_html, readable, steps_html

ROOM, CUBES = "data/scenes/test/rgb/000003.png", "How many cubes are there?"


@pytest.fixture(scope="module")
def co(): return cooper.load(resolve("data/tiny-cooper"))


@pytest.fixture(scope="module")
def trace(co): return co.ask(resolve(ROOM), CUBES)


def shown(x): # what stands in the columns of the page
    return "".join(p.value for c in x.columns for p in c.parts)


def png(picture, kind="PNG", **more):
    file = io.BytesIO(); picture.save(file, kind, **more)
    return file.getvalue()


def given(name, data): return dict(name=name, type="image/png", size=len(data), content=memoryview(data), last_modified=datetime(2026, 1, 1))


def test_words_stream_and_the_map_grows(co, trace, monkeypatch):
    monkeypatch.setattr("cooper.present.explorer.PAUSE", 0) # every word: a short answer may be over before the next look
    x = Explorer(co, [ROOM])
    assert "Ask a question" in x._repr_html_() and x.step_slider.disabled
    x.ask_button.click()
    assert "Write a question first" in x._repr_html_() and x.job is None
    x.places = [] # a new column, to be watched from the beginning
    x.question_box.value, seen = CUBES, []
    start = x._start
    def watched(job):
        start(job)
        for i in (1, 2): x.columns[0].parts[i].observe(lambda c, i=i: seen.append((i, c["new"], threading.current_thread().name)), "value")
    x._start = watched
    x.ask_button.click() # does not wait: the answer cannot be there
    assert x.job is not None and not x.stop_button.disabled and x.trace is None
    assert x.wait(60)
    words = [v for i, v, _ in seen if i == 2 and "▌" in v]
    assert len(words) > 1 and any("To count" in w for w in words) and "<think>" not in "".join(words) and "&lt;think" not in "".join(words)
    steps = co.processor.protocol["sampler"]["num_timesteps"] - 1
    drawing = [int(k) for i, v, _ in seen for k in re.findall(rf"draws segmentation: step (\d) of {steps}", v)]
    assert drawing == sorted(drawing) and drawing[0] == 1 and drawing[-1] == steps
    first_map = next(n for n, (i, v, _) in enumerate(seen) if i == 1 and "drew segmentation" in v)
    assert any(i == 2 and "▌" in v for i, v, _ in seen[first_map:]), "it writes on after the map is there"
    assert {n for *_, n in seen} == {"cooper explorer"}, "all of it came from the thread"
    assert x.trace.answer == trace.answer and [s.text for s in x.trace.steps] == [s.text for s in trace.steps]
    assert x.stop_button.disabled and x.step_slider.value == x.step_slider.max == 3 and "first word" in shown(x)
    x.step_slider.value = 1
    assert "I segment the objects" in shown(x) and "drew segmentation" not in shown(x) and "first word" not in shown(x)


def test_stop_acts_and_the_next_question_is_answered(co):
    x = Explorer(co, [ROOM])
    x.question_box.value, x.steps_slider.value, x.guidance_slider.value = CUBES, 50, 5.
    x.mode_menu.value = "perceive"
    x.on_ask()
    end = time.monotonic() + 30
    while not x.runs[0].drawing and time.monotonic() < end: time.sleep(.005)
    job = x.job
    x.stop_button.click()
    assert x.wait(20) and job.requests[0].ended == "cancelled" and not job.thread.is_alive()
    assert "stopped" in shown(x) and "draws depth: step" in shown(x) and x.trace.drawn == [] # what was seen of it stays
    x.mode_menu.value = "direct" # asks again: a control has moved
    assert x.wait(60) and x.trace.answer is not None and x.trace.mode == "direct"


def test_who_asks_again_gives_up_what_was_under_way(co):
    x = Explorer(co, [ROOM])
    x.question_box.value, x.steps_slider.value = CUBES, 50
    x.on_ask()
    first = x.job
    x.question_box.value, x.mode_menu.value = "How many spheres are there?", "direct"
    assert x.job is not first
    assert x.wait(60) and first.stopped
    first.thread.join(20)
    assert x.trace.question == "How many spheres are there?" and x.trace.mode == "direct" and len(x.columns) == 1 and x.stop_button.disabled
    x.question_box.value, x.mode_menu.value = CUBES, "reason"
    x.picture_menu.value, job = 0, x.job # the same picture: nothing happens
    x.files.append(resolve("data/scenes/test/rgb/000000.png")); x._menu(1); x.on_picture() # another one: the question is given up
    job.thread.join(20)
    assert x.runs == [] and x.job is None and "Ask a question" in x._repr_html_() and x.step_slider.max == 0


def test_four_modes_are_what_each_is_alone(co, trace):
    x = Explorer(co, [ROOM], question=CUBES, mode=ALL)
    assert [r.mode for r in x.runs] == ["direct", "reason", "perceive", "cooperate"] and x.step_slider.max == 5
    for run in x.runs[:3:2] + x.runs[3:]:
        alone = trace if run.mode == "cooperate" else co.ask(resolve(ROOM), CUBES, run.mode)
        assert [s.ids for s in run.trace.steps] == [s.ids for s in alone.steps]
        for a, b in zip(run.trace.steps, alone.steps):
            if a.picture: assert np.abs(np.asarray(a.picture, int) - np.asarray(b.picture, int)).max() <= 3
    for at, maps in ((5, 3), (2, 2)):
        x.step_slider.value = at
        assert shown(x).count("data-map=") == maps and x._repr_html_().count("data-map=") == maps


def test_sliders_reach_the_engine(co, monkeypatch):
    x, made = Explorer(co, [ROOM], question="Why?", mode="direct", max_new_tokens=4), []
    monkeypatch.setattr(co, "engine", lambda engine=co.engine, **options: made.append(options) or engine(**options), raising=False)
    assert (x.steps_slider.value, x.guidance_slider.value, x.seed_slider.value) == (co.processor.protocol["sampler"]["num_timesteps"] - 1, 1, 0)
    x.steps_slider.value = 7; assert x.wait(60)
    x.guidance_slider.value = 2.5; x.wait(60)
    x.sight_slider.value = 1.5; x.wait(60)
    x.temperature_slider.value = .5; x.wait(60)
    seeds, ask = [], x._ask
    x._ask = lambda job: (seeds.append(job.seed), ask(job))
    x.seed_slider.value = 3; x.wait(60)
    x.again_box.value = False
    x.seed_slider.value = 4
    assert x.job is None and seeds == [3] and len(made) == 5
    s = made[-1]["sampler"]
    assert (s.num_timesteps, s.cfg_text, s.cfg_img, made[-1]["temperature"], made[-1]["max_new_tokens"]) == (8, 2.5, 1.5, .5, 4)


def test_pictures_from_the_browser_and_from_paths(co, tmp_path):
    x = Explorer(co, [ROOM])
    turned = Image.Exif(); turned[0x0112] = 6
    grey = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    x.upload.value = (given("phone.jpg", png(Image.new("RGB", (60, 40), (200, 0, 0)), "JPEG", exif=turned)),)
    assert x.picture.size == (40, 60) and x.name == "phone.jpg" and x.upload.value == () and len(x.files) == 2
    x.upload.value = (given("deep.png", png(Image.fromarray(grey))), given("cut.png", png(Image.new("RGB", (99, 99), (5, 6, 7)))[:150]), given("<b>.png", b"hello"))
    assert x.name == "deep.png" and len(x.files) == 3 and abs(np.asarray(x.picture).mean() - 127.5) < 1
    assert "cut.png: cannot be read" in x.note_html.value and "&lt;b&gt;.png: cannot be read" in x.note_html.value and "object at" not in x.note_html.value
    x.upload.value = (given("long.png", png(Image.new("L", (3 * LOOK, 30)))),)
    assert x.picture.size == (LOOK, 10) and f"{3 * LOOK} × 30, looked at as {LOOK} × 10" in x.picture_html.value
    x.question_box.value, x.mode_menu.value = "What is it?", "direct"
    x.on_ask(wait=True)
    assert x.runs[0].trace is not None or x.runs[0].message
    x.picture_menu.value = 1
    assert x.name == "phone.jpg" and x.runs == []
    Image.new("RGB", (9, 9)).save(tmp_path/"a.png")
    (tmp_path/"b.png").write_bytes(b"nothing")
    x.path_box.value = str(tmp_path)
    x.path_box._handle_custom_msg({"event": "submit"}, [])
    assert x.name == "a.png" and len(x.files) == 6 and x.path_box.value == ""
    x.picture_menu.value = 5
    assert x.picture is None and "b.png" in x._repr_html_()
    x.ask_button.click()
    assert x.job is None
    x.path_box.value = str(tmp_path/"none")
    x.on_path()
    assert "no such file or folder" in x.note_html.value


def test_an_error_while_asking_is_a_message(co):
    x = Explorer(co, [ROOM], question=CUBES, mode=ALL, context=8)
    assert "NoRoom: " in x._repr_html_() and x.job is None and x.stop_button.disabled
    with pytest.raises(ValueError, match="mode is 'both'"): Explorer(co, mode="both")


def test_what_the_browser_reads_is_the_map(trace):
    metres = np.random.default_rng(0).uniform(2.5, 11.5, (48, 64)).astype(np.float32)
    r = readable(DepthMap(metres, 2.5, 11.5))
    back = r["low"] + (r["high"] - r["low"]) * np.frombuffer(base64.b64decode(r["v"]), "<u2").reshape(r["h"], r["w"]) / 65535
    assert np.abs(back - metres).max() < 1e-3 and r["unit"] == "m"
    labels = np.arange(300 * 400).reshape(300, 400) % 3
    r = readable(SegmentMap(labels, dict(floor=(0, 0, 0), cube=(1, 1, 1), ball=(2, 2, 2))))
    assert (r["w"], r["h"], r["W"], r["H"], r["every"]) == (134, 100, 400, 300, 3) and r["names"] == ["floor", "cube", "ball"]
    assert (np.frombuffer(base64.b64decode(r["v"]), np.uint8).reshape(100, 134) == labels[::3, ::3]).all()
    flat = readable(DepthMap(np.full((4, 4), 3.), 2.5, 11.5))
    assert flat["low"] == flat["high"] == 3
    page = map_html(trace.steps[1].picture, "it's <i>", trace.steps[1].map)
    carried = json.loads(re.search(r"data-map='([^']*)'", page)[1].replace("&quot;", '"'))
    assert carried == readable(trace.steps[1].map) and "it&#x27;s &lt;i&gt;" in page


def test_films_stay_short(co):
    class Told:
        def __init__(self, k, n=200): self.request, self.kind, self.k, self.n, self.preview = self, "step", k, n, lambda: Image.new("RGB", (8, 8), (k, 0, 0)); self.steps, self.wants = [], "depth"
    run = Running("perceive")
    for k in range(1, 201): run.told(Told(k))
    assert 1 <= len(run.films[0]) <= FILM and run.drawing[:3] == ("depth", 200, 200) and run.films[0][0].getpixel((0, 0)) == (1, 0, 0)


def test_without_a_front_end_the_first_state_stands_there(co, monkeypatch):
    sent = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: sent.append((a[0], k)))
    x = Explorer(co, [ROOM], question=CUBES)
    x._ipython_display_()
    (live, raw), (still, _) = sent
    assert raw == {"raw": True} and "application/vnd.jupyter.widget-view+json" in live and "need a live kernel" in live["text/html"]
    assert CUBES in still.data and "data:image/png" in still.data and "drew segmentation" in still.data
    mark = re.search(r"class='(cooper-still-\w+)'", still.data)[1] # what a front end with widgets hides
    import ipywidgets
    assert any(f".{mark}{{display:none}}" in w.value for w in ipywidgets.widgets.widget._instances.values() if isinstance(w, ipywidgets.HTML))


def test_kept_traces_are_browsed(co, trace, tmp_path):
    with pytest.raises(ValueError, match="no traces here"): Browser(tmp_path)
    (tmp_path/"run.json").write_text('{"status": "finished"}')
    (tmp_path/"one.json").write_text(json.dumps(trace.to_dict() | dict(sequence=[])))
    (tmp_path/"more.jsonl").write_text("\n".join(json.dumps(trace.to_dict() | dict(question=q, sequence=[])) for q in ("Where?", "When <b>?")))
    b = Browser(tmp_path)
    assert len(b.kept) == 3 and not b.rollouts and b.order_menu.layout.display == "none" and [k.label.split(" · ")[0] for k in b.kept] == ["more:1", "more:2", "one"]
    b.search_box.value = "when <b>"
    assert b.message == "1 trace" and b.question == "When <b>?" and "When &lt;b&gt;?" in b._repr_html_()
    b.step_slider.value = 1
    assert "drew segmentation" not in shown(b) and "I segment" in shown(b)
    (tmp_path/"more.jsonl").unlink() # while it is looked at
    b.on_choose()
    assert "FileNotFoundError" in shown(b)
    b.search_box.value = "nobody asked this"
    assert b.runs == [] and b.message == "0 traces" and b.list.value is None
    (tmp_path/"bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.json:1: not JSON"): Browser(tmp_path/"bad.json")
    assert "bad.json:1: not JSON" in Browser(tmp_path).note_html.value


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(trace, tmp_path):
    row = trace.to_dict() | dict(sequence=[])
    append_jsonl(tmp_path/"a.jsonl", row | dict(question="one\u2028line"))
    with open(tmp_path/"a.jsonl", "a") as f: f.write('{"mode": \n' + json.dumps(row)[:99]) # broken; and never ended
    (tmp_path/"b.json").write_bytes(b"\x89PNG\xff")
    (tmp_path/"c.json").write_text("[" * 100_000)
    wrong = [dict(steps=3), dict(steps=["x"]), dict(mode=[1]), dict(question=None), dict(steps=[dict(kind="write", text=None)]), dict(steps=[dict(kind="<b>")])]
    append_jsonl(tmp_path/"d.jsonl", *(row | w for w in wrong))
    b = Browser(tmp_path)
    assert b.question == "one\u2028line" and b.message == "1 trace" and len(b.bad) == 9
    for said in ("a.jsonl:2: not JSON", "b.json:1: not JSON", "c.json:1: not JSON", "d.jsonl:1: &#x27;steps&#x27; is 3; expected a list", "d.jsonl:2: step 1 is x", "d.jsonl:3: &#x27;mode&#x27; is [1]",
                 "d.jsonl:4: &#x27;question&#x27; is None; expected words", "d.jsonl:5: step 1 is", "d.jsonl:6", "9 left out"):
        assert said in b.note_html.value and said in b._repr_html_(), said
    with pytest.raises(ValueError, match=r"d.jsonl:1: 'steps' is 3; expected a list.* \(and 5 more like it\)"): Browser(tmp_path/"d.jsonl")
    with pytest.raises(ValueError, match="a.jsonl:2: not JSON"): Browser(tmp_path/"a.jsonl")
    (tmp_path/"a.jsonl").write_text("\n")
    b.on_choose()
    assert "a.jsonl:1: is there no more" in shown(b)


def test_broken_rollouts_are_named_and_unjudged_ones_stand_last(trace, tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    row = dict(data_id="cubes", question=CUBES, answer="2", flag="positive", kind="count", picture="000003.png")
    rows = [rollout_row(trace, row, step=1, group=0, seed="[0, 4, 0]", reward=None, advantage=a) for a in (float("nan"), -1., 1., None)]
    at = tmp_path/"rollouts"
    _write_rollouts(at/"step-000001.parquet", rows)
    whole = (at/"step-000001.parquet").read_bytes()
    (at/"step-000002.parquet").write_bytes(whole[:len(whole)//2])
    pq.write_table(pa.table(dict(other=[1])), at/"step-000003.parquet")
    pq.write_table(pa.table(dict.fromkeys(rows[0].keys() - {"pictures", "drawn"}, ["x"])), at/"step-odd.parquet")
    b = Browser(tmp_path)
    assert [re.search("advantage (.*?)</span>", r.facts)[1] for r in b.runs] == ["+1.00", "-1.00", "not judged", "not judged"] and not any(r.message for r in b.runs)
    assert [re.search(r"step-[^:]*", m)[0] for m in b.bad] == [f"step-{k}.parquet" for k in ("000002", "000003", "odd")] and "step-odd.parquet:1: &#x27;step&#x27; is &#x27;x&#x27;" in b.note_html.value
    (at/"step-000001.parquet").write_bytes(whole[:99])
    with pytest.raises(ValueError, match=r"step-000001.parquet: cannot be read .*\(and 3 more like it\)"): Browser(tmp_path)


def test_any_error_of_opening_a_picture_is_the_message(co, tmp_path, monkeypatch):
    (tmp_path/"odd.png").write_bytes(b"odd")
    x = Explorer(co, [ROOM, tmp_path/"odd.png"])
    def broken(file): raise AttributeError("'NoneType' object has no attribute 'x'")
    monkeypatch.setattr(Image, "open", broken) # as its plugin SPIDER does
    x.picture_menu.value = 1
    assert x.picture is None and "odd.png: cannot be read as a picture" in x._repr_html_() and "no attribute" in x.note_html.value
    x.upload.value = (given("up.png", b"odd"),)
    assert "up.png: cannot be read as a picture" in x.note_html.value


def test_rollouts_are_browsed_with_what_they_earned(co, trace, tmp_path):
    def rollout(step, group, advantage, reward):
        row = dict(data_id="cubes", question=CUBES, answer="2", flag="positive", kind="count", picture="000003.png")
        return rollout_row(trace, row, step=step, group=group, seed="[0, 4, 0]", reward=reward, advantage=advantage)
    for step in (0, 4): _write_rollouts(tmp_path/"rollouts"/f"step-{step:06d}.parquet", [rollout(step, g, a, r) for g, a, r in ((0, -1., 0.), (0, 1., 1.5), (1, 0., None))])
    b = Browser(tmp_path, co.processor.protocol)
    assert b.training_slider.value == 4 and b.message == "3 traces" and b.group_box.value
    assert ["advantage +1.00" in r.facts for r in b.runs] == [True, False] and isinstance(b.runs[0].steps[1].map, SegmentMap)
    same = (np.asarray(b.runs[0].steps[1].map.labels) == trace.steps[1].map.labels).mean()
    assert same > .99, "a drawing that was kept as a picture is the same map again"
    b.training_slider.value, b.order_menu.value, b.group_box.value = "all", "highest reward", False
    assert b.message == "6 traces" and "advantage +1.00" in b.runs[0].facts
    b.list.value = b.list.options[-1][1] # nobody judged it: it stands last
    assert "reward not judged" in b.runs[0].facts
    plain = Browser(tmp_path/"rollouts") # without a protocol there are pictures, and no numbers
    assert plain.runs[0].steps[1].map is None and "data-map" not in plain._repr_html_()
