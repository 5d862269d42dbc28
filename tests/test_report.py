"The report is one whole file that tells what was run; the demonstration fails loudly; the explorer lives without a display."
import base64, io, os, re, subprocess, sys

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from cooper.core import Curves, RunRecord, resolve
from cooper.measure.benchmarks import benchmark, compare, evaluate, perception, save_tables, summarise
from cooper.model.modalities import png_bytes
from cooper.perceive.data import read_amg
from cooper.present.explorer import TourParameters
from cooper.present.report import (RECIPE, RULES, Asked, Step, accuracy_figure, best_and_worst, build_report, demo, depth_calibration, depth_cases,
                                   difference_figure, executed, fitted, gallery, glance, linked, page, part, picks, place, segmentation_cases, telling, trace_cases, trace_figure)
from house import NOTEBOOKS, RUN, cells
from pretend import Cooper

PNG = new_output("display_data", {"image/png": base64.b64encode(png_bytes(Image.new("RGB", (8, 8), "red"))).decode()})
KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}


def notebook(folder, name, *code, title="A title", start="2026-01-01T00:00:00", **papermill):
    nb = new_notebook(metadata=KERNEL | {"papermill": dict(start_time=start, duration=61., parameters=dict(steps=3)) | papermill},
                      cells=[new_markdown_cell(f"# {title}\n\n> A promise of {name}."), *code])
    nbformat.write(nb, folder / f"{name}.ipynb")


def text(html, name="said"): return new_code_cell("print(1)", outputs=[new_output("display_data", {"text/html": html})])


@pytest.fixture(scope="module")
def measured():
    bench = benchmark(count=10)
    truth = {q.data_id: q.answer for q in bench.questions}
    half = lambda question, seed: truth[seed[-1]] if sum(map(ord, seed[-1])) % 2 else "a sofa"
    cooper = Cooper(half)
    return cooper, bench, evaluate(cooper, bench), perception(cooper, read_amg("data/scenes/test/amg.jsonl", limit=5))


# --- figures

def is_picture(plate):
    data = plate._repr_png_()
    return data[:4] == b"\x89PNG" and len(np.unique(np.asarray(Image.open(io.BytesIO(data)).convert("L")))) > 20


def test_figures_are_pictures(measured, tmp_path):
    cooper, bench, records, drawn = measured
    named = [[r | dict(checkpoint=n) for r in records] for n in ("before", "after")]
    for plate in (accuracy_figure(summarise(records)), accuracy_figure(summarise(sum(named, []))), difference_figure(compare(*named)),
                  depth_cases(drawn.cases[:2]), segmentation_cases(drawn.cases[:2]), depth_calibration(drawn.cases)): assert is_picture(plate)
    assert depth_cases(drawn.cases[:1]).save(tmp_path / "one.png").stat().st_size < 200_000


def test_figures_touch_nothing_global(measured):
    import matplotlib.pyplot as plt
    depth_cases(measured[3].cases[:1])._repr_png_()
    assert not plt.get_fignums()


def test_traces_are_shown_with_truth_and_verdict(measured):
    cooper, bench, records, _ = measured
    chosen = telling(records, "cooperate", 4)
    assert [r["correct"] for r in chosen] == [True, False, True, False]
    shown = trace_cases(cooper, bench, chosen)
    html = page(shown).data
    assert html.count(">true depth<") == 4 and html.count(", AbsRel") == 8 and html.count("✓") == 2 and html.count("✗") == 2
    assert "A map helps." in html and "http" not in html
    assert is_picture(trace_figure(shown[0]))


def test_words_of_a_model_are_not_markup(measured):
    cooper, bench, records, _ = measured
    evil = Cooper(lambda question, seed: "<script>alert(1)</script>")
    assert "<script>" not in page(trace_cases(evil, bench, records[-1:])).data


def test_best_and_worst_are_in_order(measured):
    quality = [c.depth_quality["absrel"] for c in best_and_worst(measured[3].cases)]
    assert quality == sorted(quality) and len(quality) == 4


# --- one page

def test_report_is_one_page_that_fetches_nothing(tmp_path):
    notebook(tmp_path, "two", text("<b>second</b>"), start="2026-01-02")
    bar = new_code_cell("x = 1", outputs=[new_output("stream", name="stderr", text="99% of a bar")])
    notebook(tmp_path, "one", bar, new_code_cell("y", outputs=[PNG]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"started": "2026", "commit": "abcdef0123456789", "versions": {"torch": "9.9"}, ' \
                                           '"machine": {"cores": 2}}')
    whole = build_report(tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:|//)|@import|url\(http""", whole)
    assert whole.index("A promise of one.") < whole.index("A promise of two.") # in the order of their runs
    assert "99% of a bar" not in whole and "torch 9.9" in whole and "abcdef012345" in whole and "steps = 3" in whole
    assert whole.count("data:image/png;base64") == 2 # on the front page, and in its notebook
    assert '<details class="code">' in whole and "prefers-color-scheme:dark" in whole
    for anchor in re.findall(r"href='#([^']+)'", whole): assert f"id='{anchor}'" in whole, anchor


def test_front_page_takes_what_is_tagged(tmp_path):
    tagged = new_code_cell("secret_code()", outputs=[new_output("display_data", {"text/html": "<i>lifted</i>"})], metadata={"tags": ["front"]})
    notebook(tmp_path, "one", tagged, text("<i>not lifted</i>"), new_code_cell("y", outputs=[PNG]))
    whole = build_report(tmp_path).read_text(encoding="utf-8")
    front = whole[:whole.index("<section class='notebook'")]
    assert "<i>lifted</i>" in front and "<i>not lifted</i>" not in front and "image/png" not in front and "secret_code" not in front


def test_of_a_notebook_that_ran_twice_the_front_shows_the_last(tmp_path):
    notebook(tmp_path, "between", new_code_cell("", outputs=[PNG]), title="Another", start="2026-01-02")
    for name, start in (("before", "2026-01-01"), ("after", "2026-01-03")):
        shown = new_output("display_data", {"text/html": f"<i>{name}</i>"})
        notebook(tmp_path, name, new_code_cell("", outputs=[shown], metadata={"tags": ["front"]}), start=start)
    whole = build_report(tmp_path).read_text(encoding="utf-8")
    front = whole[:whole.index("<section class='notebook'")]
    assert "<i>after</i>" in front and "<i>before</i>" not in front and "<i>before</i>" in whole
    assert front.index("id='front-between'") < front.index("id='front-after'") # where it ran, not where it first ran


def test_widgets_need_a_kernel_and_stay_out(tmp_path):
    bar = new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "questions: 10%|"})
    first = new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "b"}, "text/html": "<p>first state</p>"})
    notebook(tmp_path, "one", new_code_cell("", outputs=[bar, first]))
    whole = build_report(tmp_path).read_text(encoding="utf-8")
    assert "questions: 10%" not in whole and "first state" in whole and "widget-view" not in whole


def test_a_curve_that_was_shown_while_it_grew_is_shown_once(tmp_path):
    done = new_output("execute_result", PNG.data)
    other = new_output("display_data", {"image/png": base64.b64encode(png_bytes(Image.new("RGB", (8, 8), "blue"))).decode()})
    notebook(tmp_path, "one", new_code_cell("fit()", outputs=[PNG, done]), new_code_cell("curves", outputs=[done, other], metadata={"tags": ["front"]}))
    whole = build_report(tmp_path).read_text(encoding="utf-8")
    front, rest = whole.split("<section class='notebook'")
    assert front.count("data:image/png") == 2 and rest.count("data:image/png") == 2 and rest.index("fit") < rest.index("data:image/png")


def test_cards_of_traces_show_a_map_once_and_no_box(tmp_path, measured):
    bench = measured[1]
    trace = Cooper().ask(bench.picture(bench.questions[0]), "How many?")
    card = trace._repr_html_()
    assert card.count("<img") == 3 and "\\boxed{" in card # picture, drawing and what is read from it; its own words
    notebook(tmp_path, "one", text(card + "<p>It wrote \\boxed{3}.</p>"))
    whole = build_report(tmp_path).read_text(encoding="utf-8")
    assert whole.count("data:image/png") == 2 and whole.count("boxed") == 1 and re.search(rf"pre-wrap.>{trace.answer}</div>", whole)


def test_glance_reads_the_newest_results(tmp_path, measured):
    assert glance(tmp_path) == ""
    save_tables(tmp_path / "eval", answers=summarise(measured[2]), drawings=measured[3].table)
    tiles = glance(tmp_path)
    assert tiles.count("class='tile'") == 6 and "AbsRel" in tiles and "mIoU" in tiles
    (tmp_path / "eval/results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json: not a file of results"): glance(tmp_path)


def test_bad_folders_are_named_and_nothing_is_half_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebooks"): build_report(tmp_path)
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    with pytest.raises(ValueError, match="torn.ipynb: not a notebook"): build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    done = subprocess.run([sys.executable, "-m", "cooper.present.report", "build", "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "torn.ipynb" in done.stderr and "Traceback" not in done.stderr


def test_a_notebook_that_is_not_finished_is_not_called_done(tmp_path):
    for name, end in (("whole", "2026-01-01T00:00:01"), ("half", None)):
        nbformat.write(new_notebook(metadata=KERNEL | dict(papermill=dict(parameters={}, exception=None, duration=1. if end else None, end_time=end)),
                                    cells=[new_markdown_cell(f"# {name}")]), tmp_path / f"{name}.ipynb")
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert {e.name: e.running for e in executed(tmp_path)} == dict(half=True, whole=False)
    assert page.count("not finished</b>") == 1 and "half is not finished." in page and len(re.findall(r"<small>[^<]*, done</small>", page)) == 1


# --- a gallery by rule, a part for each run, a page that fits

def test_few_answers_are_no_rate(measured):
    few = accuracy_figure(summarise(measured[2][:4]))
    labels = few.figure.legends[0].get_texts()
    assert any("fewer than 10" in t.get_text() for t in labels) and any("Wilson" in t.get_text() for t in labels)
    assert "95 % interval" in few.alt and any("/" in t.get_text() for t in few.figure.axes[0].texts)
    assert few._repr_mimebundle_()[1]["image/png"]["alt"] == few.alt


def rows_of(*answers): return [dict(data_id=i, mode=m, correct=c, calls=n, prediction=p, checkpoint="c", stamp=f"{i}{m}", reply="<b>") for i, m, c, n, p in answers]

ANSWERS = rows_of(("a", "reason", False, 0, "2"), ("a", "cooperate", True, 1, "3"), ("b", "reason", True, 0, "4"), ("b", "cooperate", False, 1, "5"),
                  ("c", "reason", True, 0, "6"), ("c", "cooperate", True, 1, "6"), ("d", "reason", False, 0, "7"), ("d", "cooperate", False, 1, "7"))

def test_cases_are_chosen_by_rule_whatever_the_order():
    expected = dict(zip(RULES, "cdaab"))
    for rows in (ANSWERS, ANSWERS[::-1], ANSWERS[3:] + ANSWERS[:3]): assert {p.rule: p.row["data_id"] for p in picks(rows)} == expected
    assert [p.row["mode"] for p in picks(ANSWERS)][3:] == ["cooperate"]*2, "the one that drew is shown"
    assert [p.rule for p in picks(ANSWERS[:1])] == ["best", "worst"] and not picks([]) and not picks([dict(ANSWERS[0], score=None)]), "not judged is not wrong"


def test_a_gallery_tells_its_rules_and_where_the_records_are(tmp_path):
    import json
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(dict(stamp=r["stamp"], reply="<i>")) + "\n" for r in ANSWERS))
    asked = Asked("Where <is> it?", [Image.new("RGB", (8, 8))], "left")
    html = linked(gallery(ANSWERS[:6], lambda r: asked, tmp_path / "answers.jsonl")._repr_html_(), tmp_path)
    assert all(rule in html.lower() for rule in RULES) and "Where &lt;is&gt; it?" in html and "<b>" not in html.replace("<b>Where", "") and "<i>" not in html
    assert "<a href='answers.jsonl'>answers.jsonl, line 6</a>" in html and "&quot;stamp&quot;: &quot;areason&quot;" in html
    assert "No question fits: perceiving helped, perceiving hurt." in gallery(ANSWERS[4:6], lambda r: None)._repr_html_().replace("disagreement, ", "")
    assert linked(place(tmp_path / "x" / "a&b.json"), tmp_path) == "<a href='x/a&amp;b.json'>a&amp;b.json</a>"
    assert "href='x/a" in linked(place(tmp_path / "x" / "a.json").replace("'", '"'), tmp_path), "as nbconvert writes it"


def test_records_are_cut_at_newlines_alone_and_broken_ones_are_passed_by(tmp_path):
    from cooper.core import append_jsonl
    append_jsonl(tmp_path / "answers.jsonl", dict(stamp="other", reply="a\u2028b\x85c"))
    with open(tmp_path / "answers.jsonl", "ab") as f: f.write(b'[1]\n{"stamp": [1]}\n{"stamp":\n\xff\xfe\n')
    append_jsonl(tmp_path / "answers.jsonl", *(dict(stamp=r["stamp"], reply="a\u2028b") for r in ANSWERS))
    with open(tmp_path / "answers.jsonl", "ab") as f: f.write(b'{"stamp": "unfini')
    shown = gallery(ANSWERS[:2], lambda r: None, tmp_path / "answers.jsonl")
    assert "answers.jsonl, line 6</code>" in shown._repr_html_() and "answers.jsonl, line 7</code>" in shown._repr_html_() and repr(shown).startswith("Gallery(best: a, ")


def test_each_rule_looks_at_its_own_ties_and_says_so():
    rows, looked = rows_of(*((f"{i:03}", "cooperate", i < 60, 1, "1") for i in range(120))), []
    far = lambda r: looked.append(r["data_id"]) or abs(int(r["data_id"]) - 59.5)
    best, worst = picks(rows, far, most=40)
    assert len(looked) == 80 and best.row["data_id"] in looked[:40] and worst.row["data_id"] in looked[40:]
    assert far(best.row) == min(abs(int(i) - 59.5) for i in looked[:40]) and far(worst.row) == max(abs(int(i) - 59.5) for i in looked[40:80])
    assert "; of 60 equal questions the drawings of 40 were compared (at most 40 are looked at, drawn by lot)" in best.why and worst._tie
    assert [p.row["data_id"] for p in picks(rows[::-1], far, most=40)] == [best.row["data_id"], worst.row["data_id"]]
    assert picks(rows, far, most=60)[0].row["data_id"] == "059" and picks(rows, far, most=60)[0]._tie == ""
    assert picks(rows)[0]._tie == "; of 60 equal questions this is the first by name (at most 40 are looked at, drawn by lot)"


def test_links_lead_to_files_of_any_name(tmp_path):
    from urllib.parse import unquote
    name = "50% #1's.json"
    href = re.search("href='([^']*)'", linked(place(tmp_path / "runs?" / name), tmp_path))[1]
    assert href == "runs%3F/50%25%20%231%27s.json" and unquote(href) == f"runs?/{name}"


def test_a_part_is_a_page_for_a_phone(tmp_path, measured):
    curves = Curves(); curves.points["loss"] = [(1, 2.), (2, 1.)]
    table = summarise(measured[2])
    with RunRecord(tmp_path, dict(steps=3, words="<x>")) as run: pass
    shown = {"Curves": curves, "Answers": [table, None], "Nothing": None, "No list": [None], "A map": measured[3].cases[0].drawn_depth, "Bare": accuracy_figure(table).figure, "Cost": dict(step=1.5), "Words": "a < b"}
    made = part(run, "A <run>", shown)
    html = made.path.read_text(encoding="utf-8")
    assert made.path == tmp_path / "report.html" and "width=device-width,initial-scale=1" in html and "A &lt;run&gt;" in html and "words = &lt;x&gt;" in html
    assert re.findall(r"<h3>([^<]+)", html) == ["Curves", "Answers", "A map", "Bare", "Cost", "Words"] and "loss 2 to 1." in html and "step: 1.5" in html and "a &lt; b" in html
    assert html.count("<table") == html.count("<div class='scroll' tabindex='0'><table") == 1, "a wide table has a box of its own"
    assert html.count("<img") == 3 and all(re.search(r"alt='[^']+'", tag) for tag in re.findall("<img[^>]{0,300}", html)) and "class='figure wide'" in html
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:|//)|@import|url\(http|<script""", html)
    with pytest.raises(ValueError, match="expected at most 0.01"): part(run, "A run", {"Words": "word " * 10_000}, most_mb=.01)


def noisy(seed, width=240): return png_bytes(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (width, width, 3), np.uint8)))

def test_a_report_of_many_pictures_fits_a_mail(tmp_path):
    show = lambda k, **o: new_code_cell("", outputs=[new_output("display_data", {"image/png": base64.b64encode(noisy(k)).decode()}, metadata={"image/png": {"alt": f"noise {k}"}})], **o)
    notebook(tmp_path, "one", *(show(k) for k in range(1, 12)), show(0, metadata={"tags": ["front"]}))
    whole = build_report(tmp_path).read_text(encoding="utf-8")
    assert whole.count("<img") == 12 and "figure above: noise 0</a>" in whole and len(re.findall("figure-1'", whole)) == 2, "the front page's figure is not stored twice"
    for most, kept in ((1., "noise 5"), (.25, "noise 0")):
        path = build_report(tmp_path, most_mb=most)
        html = path.read_text(encoding="utf-8")
        assert path.stat().st_size <= most * 1e6 and re.search(rf'<img alt="{kept}"|alt="{kept}"', html) and f"To stay below {most:g} MB" in html
    assert "picture left out: noise 11" in html and "data:image/webp" in html
    assert fitted("<h1>x</h1>", .01) == "<h1>x</h1>"


def test_every_run_notebook_ends_with_its_part():
    for name in RUN:
        *others, last = [c for c in cells(name) if c.cell_type == "code"]
        assert last.source.splitlines()[-1] and "part(" in last.source and last.metadata.get("tags") == ["front"], f"nbs/{name}.ipynb: the last cell is its part of the report, tagged front"
        assert not any("front" in c.metadata.get("tags", []) for c in others), f"nbs/{name}.ipynb: only its part is for the front page"


def test_a_run_that_was_killed_is_named(tmp_path):
    notebook(tmp_path, "one", text("x"))
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo/run.json").write_text('{"status": "running", "started": "2026-01-01"}')
    html = build_report(tmp_path).read_text(encoding="utf-8")
    assert "grpo (is still at it, or was killed, started 2026-01-01)" in html and "numbers are not final" in html


# --- the demonstration

def test_recipe_fits_its_notebooks():
    for step in RECIPE:
        assert step.notebook in NOTEBOOKS, f"RECIPE names {step.notebook}"
        given = next(c.source for c in cells(step.notebook) if "parameters" in c.metadata.get("tags", []))
        known = set(re.findall(r"^(\w+) *=", given, re.M))
        assert set(step.parameters) <= known, f"{step.name}: {set(step.parameters) - known} are not parameters of {step.notebook}"
    assert len({s.name for s in RECIPE}) == len(RECIPE) and sum(s.about for s in RECIPE) <= 12 * 60


def test_demo_stops_at_a_failing_step(tmp_path, capsys):
    nb = new_notebook(metadata=KERNEL, cells=[new_code_cell("x = 1", metadata={"tags": ["parameters"]}),
                                              new_code_cell("assert x < 3, f'x is {x}; expected less than 3'\nx")])
    nbformat.write(nb, tmp_path / "source.ipynb")
    steps = [Step(str(tmp_path / "source"), f"step{x}", 1, dict(x=x)) for x in (2, 3, 4)]
    assert demo(tmp_path / "out", recipe=steps) == 1
    said = capsys.readouterr()
    assert "step3, cell" in said.err and "x is 3; expected less than 3" in said.err and "report.html" in said.out
    assert [e.name for e in executed(tmp_path / "out")] == ["step2", "step3"] and executed(tmp_path / "out")[1].failed
    assert "step3 failed." in (tmp_path / "out/report.html").read_text(encoding="utf-8")


# --- the explorer, see test_explorer.py too

def test_explorer_imports_without_a_display():
    code = "import sys, cooper.present.explorer, cooper.present.report; assert not {'ipywidgets', 'matplotlib.pyplot'} & set(sys.modules)"
    bare = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stderr


def test_bad_tour_parameters_are_named():
    with pytest.raises(ValueError, match="picture is 999"): TourParameters(picture=999)
    with pytest.raises(ValueError, match="no such file or folder"): TourParameters(pictures="no/such/folder")
