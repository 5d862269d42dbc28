"The report is one whole file that tells what was run; the demonstration fails loudly; the explorer lives without a display."
import base64, io, os, re, subprocess, sys

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from cooper.core import resolve
from cooper.measure.benchmarks import benchmark, compare, evaluate, perception, save_tables, summarise
from cooper.model.modalities import png_bytes
from cooper.perceive.data import read_amg
from cooper.present.explorer import Explorer, TourParameters
from cooper.present.report import (RECIPE, Step, accuracy_figure, best_and_worst, build_report, demo, depth_calibration, depth_cases,
                                   difference_figure, executed, glance, page, segmentation_cases, telling, trace_cases, trace_figure)
from house import NOTEBOOKS, cells
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
    assert page.count("not finished</b>") == 1 and "half is not finished." in page and page.count("<td>done</td>") == 1


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


# --- the explorer

def test_explorer_asks_steps_and_survives(tmp_path):
    good, bad = resolve("data/scenes/test/rgb/000000.png"), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    x = Explorer(Cooper(lambda q, s: "3"), [good, bad])
    assert "Ask a question" in x._repr_html_() and x.step_slider.disabled
    x.ask_button.click()
    assert "Write a question first" in x._repr_html_()
    x.question_box.value = "How many <b>?"
    x.ask_button.click()
    assert x.trace.answer == "3" and x.step_slider.value == x.step_slider.max == 3 and "&lt;b&gt;" in x._repr_html_()
    x.step_slider.value = 1
    assert "A map helps." in x._repr_html_() and "drew depth" not in x._repr_html_()
    x.picture_menu.value = 1
    assert "bad.png" in x._repr_html_() and x.trace is None
    x.ask_button.click()
    assert x.trace is None and not x.ask_button.disabled


def test_an_error_while_asking_is_a_message():
    def fails(q, s): raise ValueError("out of paper")
    x = Explorer(Cooper(fails), "data/scenes/test", question="Why?")
    assert "ValueError: out of paper" in x._repr_html_() and not x.ask_button.disabled


def test_the_first_state_is_there_without_a_kernel(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((a, k)))
    x = Explorer(Cooper(lambda q, s: "3"), "data/scenes/test", question="How many objects are there?")
    x._ipython_display_()
    assert any("How many objects" in getattr(a[0], "data", "") and "data:image/png" in a[0].data for a, k in shown if hasattr(a[0], "data"))


def test_explorer_imports_without_a_display():
    code = "import sys, cooper.present.explorer, cooper.present.report; assert not {'ipywidgets', 'matplotlib.pyplot'} & set(sys.modules)"
    bare = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stderr


def test_bad_tour_parameters_are_named():
    with pytest.raises(ValueError, match="picture is 999"): TourParameters(picture=999)
    with pytest.raises(ValueError, match="no such file or folder"): TourParameters(pictures="no/such/folder")
