"""VLMEvalKit and lmms-eval ask a checkpoint. Where they are not at hand, what stands in for them has their contracts (tests/stand_ins); with
`COOPER_VLMEVALKIT=CLONE`, and where lmms-eval is installed, the same tests run on the real ones."""
import ast, csv, importlib.util, json, logging, os, re, subprocess, sys, tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import cooper
from cooper.measure import harnesses as H
from cooper.measure.benchmarks import benchmark
from cooper.measure.protocols import open_exam, scene_exam
from cooper.measure.records import CooperAnswers, Plain, collect, read_records, read_trace, score

from harness_child import child
from house import ROOT

REAL_VLM, REAL_LMMS = os.environ.get("COOPER_VLMEVALKIT", ""), importlib.util.find_spec("lmms_eval") is not None
CLONE = Path(REAL_VLM or ROOT/"tests/stand_ins/vlmevalkit")
LMMS = [] if REAL_LMMS else [str(ROOT/"tests/stand_ins/lmms")]
TINY, SOON = str(ROOT/"data/tiny-cooper"), 600 # seconds; importing the real packages alone takes some


def environment(**more): return {k: v for k, v in os.environ.items() if k not in ("LMUData", "PRED_FORMAT", "OPENAI_API_KEY")} | dict(HF_HUB_OFFLINE="1") | more


def run(*args, cwd, paths=(), code=None, **more):
    with tempfile.TemporaryDirectory() as aside: return child(list(map(str, args)), code, cwd, list(paths), environment(**more), Path(aside)/"said", SOON)


def launch(*args, cwd, **more): return run("vlmevalkit", "--clone", CLONE, "--checkpoint", TINY, "--thought", "draft", *args, cwd=cwd, **more)


def tsv(path):
    with open(path, newline="", encoding="utf-8") as f: return list(csv.DictReader(f, delimiter="\t"))


@pytest.fixture(scope="module")
def co(): return cooper.load(TINY)


@pytest.fixture(scope="module")
def exam(): return scene_exam(benchmark("scenes", count=4, kinds=("relation", "depth", "distance", "size")))


@pytest.fixture(scope="module")
def data(tmp_path_factory, exam):
    folder = tmp_path_factory.mktemp("LMUData")
    H.vlmeval_questions(exam, folder, "Rooms")
    return folder


def expected(co, folder, exam, mode): # what the checkpoint says to the prompts of VLMEvalKit, asked here
    from cooper.measure.protocols import mcq_prompt
    words = {i.id: mcq_prompt(i.question, i.options) for i in exam.items}
    return {i.id: co.ask(Image.open(i.pictures[0].path), words[i.id], mode, thought="draft").answer or "" for i in exam.items}


# -- VLMEvalKit ----------------------------------------------------------------------------------------------------------------------------------

def test_nothing_is_imported_before_it_is_needed(tmp_path):
    heavy = "torch", "transformers", "vlmeval", "lmms_eval", "datasets"
    code = f"import sys, cooper.measure.harnesses as h; h.lmms_tasks(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=SOON)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_in_its_own_process(tmp_path, co, exam, data):
    done = launch("--model", "cooper-reason", "--data", "Rooms", "--judge", "exact_matching", "--work-dir", "out", cwd=tmp_path, LMUData=str(data))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = tsv(tmp_path/"out/cooper-reason/cooper-reason_Rooms.tsv")
    assert {r["index"]: r["prediction"] for r in rows} == {k: v or H.UNANSWERED for k, v in expected(co, tmp_path, exam, "reason").items()}
    assert len(rows) == 4 and "\\boxed" not in "".join(r["prediction"] for r in rows)
    for r in rows: # the trace is beside the answer
        kept = ast.literal_eval(r["extra_records"])
        trace = read_trace(dict(trace=kept["trace"]))
        assert kept["mode"] == "reason" and (trace.answer or H.UNANSWERED) == r["prediction"] and Path(kept["trace"]).is_relative_to(tmp_path)
    assert (tmp_path/"out/cooper-reason/cooper-reason_Rooms_acc.csv").exists()


def test_over_http(tmp_path, co, exam, data):
    from cooper.present.serve import model_modes, serving
    assert model_modes("cooper") == H.NAMED # one set of names, for server and harnesses
    with serving(co, root=str(data), thought="draft") as url:
        done = subprocess.run([sys.executable, "run.py", "--base-url", url, "--model", "cooper-reason", "cooper-direct", "--local-media", "--data", "Rooms", "--judge", "exact_matching", "--retry", "1",
                               "--work-dir", tmp_path/"out"], cwd=CLONE, env=environment(LMUData=str(data), PRED_FORMAT="tsv"), capture_output=True, text=True, timeout=SOON)
    assert done.returncode == 0, done.stderr[-3000:]
    for mode in ("reason", "direct"):
        rows = tsv(tmp_path/f"out/cooper-{mode}/cooper-{mode}_Rooms.tsv")
        assert {r["index"]: r["prediction"].strip() for r in rows} == {k: v or H.FAILED for k, v in expected(co, tmp_path, exam, mode).items()}


def test_answers_that_failed_are_asked_for_again(tmp_path, exam, data):
    "And beside those that did not fail they are words, not dicts."
    folder = tmp_path/"LMUData"; folder.mkdir()
    shots = [folder/f"{n}.png" for n in range(2)]
    for s, i in zip(shots, exam.items): s.write_bytes(i.pictures[0].path.read_bytes())
    shots[1].write_bytes(b"no picture" * 20)
    rows = [dict(index=n, image_path=str(s), question=i.question, A=i.options[0], B=i.options[1], answer=i.answer, category="x") for n, (s, i) in enumerate(zip(shots, exam.items))]
    H._table(folder/"Two.tsv", list(rows[0]), rows)
    args = "--model", "cooper-direct", "--data", "Two", "--judge", "exact_matching", "--work-dir", "out"
    first = launch(*args, cwd=tmp_path, LMUData=str(folder))
    old = tsv(tmp_path/"out/cooper-direct/cooper-direct_Two.tsv")
    assert first.returncode == 0 and [H.FAILED in r["prediction"] for r in old] == [False, True] and "cannot be read" in old[1]["prediction"], first.stderr[-2000:]
    shots[1].write_bytes(exam.items[1].pictures[0].path.read_bytes())
    second = launch(*args, "--reuse", cwd=tmp_path, LMUData=str(folder))
    new = tsv(tmp_path/"out/cooper-direct/cooper-direct_Two.tsv")
    assert second.returncode == 0 and new[0]["prediction"] == old[0]["prediction"], second.stderr[-2000:]
    assert H.FAILED not in new[1]["prediction"] and "{" not in new[1]["prediction"]
    assert "extra_records" in old[0] and "extra_records" not in new[0], "one was reused as words, so the other is words, too"


def test_a_run_that_failed_says_so(tmp_path, data):
    "VLMEvalKit logs an error, goes on, and ends well."
    done = launch("--model", "cooper", "--data", "Rooms", "--judge", "exact_matching", "--work-dir", "out", "--dtype", "float7", cwd=tmp_path, LMUData=str(data))
    assert done.returncode == 1 and "cooper_vlmevalkit: FAILED cooper on Rooms" in done.stderr, done.stderr[-2000:]


def test_config_file(tmp_path, data):
    (tmp_path/"c.json").write_text(json.dumps(dict(model=dict(mine={"class": "CooperVLM", "mode": "direct"}), data=dict(Rooms={"class": "CustomMCQDataset", "dataset": "Rooms"}))))
    done = launch("--config", "c.json", "--judge", "exact_matching", "--work-dir", "out", cwd=tmp_path, LMUData=str(data))
    assert done.returncode == 0 and len(tsv(tmp_path/"out/mine/mine_Rooms.tsv")) == 4, done.stderr[-2000:]


def test_no_key_reaches_a_file_or_the_screen(tmp_path, data):
    key = "sk-very-secret-0123456789"
    done = launch("--model", "cooper-direct", "--data", "Rooms", "--judge", "gpt-4o-mini", "--judge-base-url", "http://127.0.0.1:9/v1", "--judge-retry", "1", "--work-dir", "out",
                  cwd=tmp_path, LMUData=str(data), OPENAI_API_KEY=key)
    assert done.returncode == 0 and len(tsv(tmp_path/"out/cooper-direct/cooper-direct_Rooms.tsv")) == 4, done.stderr[-2000:]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any("API Key: ***" in p.read_text(errors="replace") for p in files), "the judge's wrapper logs its key; this test should see where it stood"
    assert key not in done.stdout + done.stderr and not [p for p in files if key.encode() in p.read_bytes()]


@pytest.mark.parametrize("args, words", [
    (["--judge-key", "sk-1"], "OPENAI_API_KEY"), (["--key=sk-1"], "LMDEPLOY_API_KEY"), (["--judge-args", '{"api_key": "sk-1"}'], "OPENAI_API_KEY"),
    (["--base-url", "http://127.0.0.1:1/v1"], "run.py itself"), (["--api-mode"], "run.py itself")])
def test_refused(capsys, args, words):
    assert H.vlmevalkit(["--clone", str(CLONE), *args]) == 1
    told = capsys.readouterr().err
    assert words in told and args[0].partition("=")[0] in told and "sk-1" not in told


def test_a_wrong_clone_and_format_are_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("COOPER_VLMEVALKIT", raising=False)
    assert H.vlmevalkit([]) == 1 and "COOPER_VLMEVALKIT" in capsys.readouterr().err
    monkeypatch.setenv("PRED_FORMAT", "json")
    assert H.vlmevalkit(["--clone", str(CLONE)]) == 1 and "PRED_FORMAT" in capsys.readouterr().err


def test_importing_it_changes_nothing(tmp_path):
    code = f"""
import random, ssl
import numpy as np, torch
from PIL import Image
from cooper.measure import harnesses
random.seed(5); np.random.seed(5); torch.manual_seed(5)
expected = random.random(), np.random.rand(), torch.rand(1).item()
random.seed(5); np.random.seed(5); torch.manual_seed(5)
run = harnesses._imported(harnesses._clone({str(CLONE)!r}))
names = harnesses.register_vlmevalkit("mine", checkpoint="nowhere")
assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
assert torch.is_grad_enabled() and ssl._create_default_https_context is not ssl._create_unverified_context and Image.MAX_IMAGE_PIXELS < 1e8
assert callable(run.main) and run.supported_VLM is __import__("vlmeval.config").config.supported_VLM
from vlmeval.config import supported_VLM
assert names == ["mine", "mine-direct", "mine-reason", "mine-perceive", "mine-cooperate"] and set(names) <= set(supported_VLM)
print("fine")"""
    done = run(cwd=tmp_path, code=code)
    assert done.stdout.strip().endswith("fine"), done.stderr[-3000:]


def test_a_secret_in_an_exception_or_a_broken_message(monkeypatch, caplog):
    monkeypatch.setenv("MY_TOKEN", "tok-123456"); monkeypatch.setenv("SHORT_KEY", "a")
    talk = logging.getLogger("x")
    with H.discreet(), caplog.at_level("INFO"):
        talk.info("%s and %s", "tok-123456", "a")
        talk.info("%d", "tok-123456") # cannot be formatted
        try: raise ValueError("tok-123456")
        except ValueError: talk.exception("it said")
    assert "*** and a" in caplog.text and "tok-123456" not in caplog.text and "ValueError: ***" in caplog.text
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_scored_by_vlmevalkit(tmp_path, exam, data):
    "The same answers, its score and ours."
    said = {i.prompt: i.options[ord(i.answer) - 65] if n < 3 else i.options[1 - (ord(i.answer) - 65)] for n, i in enumerate(exam.items)}
    records = collect(exam, Plain("three of four", lambda pictures, prompt, system: f"<think>{' or '.join(exam.items[0].options)}?</think> {said[prompt]}"), tmp_path/"r.jsonl")
    file = H.vlmeval_answers(exam, records, tmp_path, "Rooms")
    assert file.name == "three of four-direct_Rooms.tsv"
    told, = H.vlmeval_score(CLONE, file, "Rooms", data)
    ours = score(exam, records).measures[0].estimate().value
    assert float(told["Overall"]) == pytest.approx(ours) == .75


def test_words_that_pandas_takes_for_nothing(tmp_path, exam):
    import pandas
    items = tuple(replace(i, options=("None", "NA"), answer="A") for i in exam.items)
    odd = replace(exam, items=items)
    records = collect(odd, Plain("n", lambda *a: "None"), tmp_path/"r.jsonl")
    read = pandas.read_csv(H.vlmeval_answers(odd, records, tmp_path, "Odd"), sep="\t")
    assert [x.strip() for x in read["A"]] == ["None"]*4 and [x.strip() for x in read["prediction"]] == ["None"]*4


def test_exported_tables_are_read_back(data, exam):
    found = open_exam("mcq", data/"Rooms.tsv")
    assert [(i.id, i.options, i.answer, i.question) for i in found.items] == [(i.id, i.options, i.answer, i.question) for i in exam.items]
    assert [i.pictures[0].hash for i in found.items] == [i.pictures[0].hash for i in exam.items]


def test_what_cannot_be_exported(tmp_path, exam):
    numbers = scene_exam(benchmark("scenes", count=8))
    with pytest.raises(ValueError, match="as many options each"): H.vlmeval_questions(numbers, tmp_path, "N")
    with pytest.raises(ValueError, match="expected multiple choice"): H.vlmeval_questions(replace(exam, items=(replace(exam.items[0], rule="yes_no", options=()),)), tmp_path, "N")
    rows = collect(exam, Plain("a", lambda *a: "A"), tmp_path/"r.jsonl")
    with pytest.raises(ValueError, match="2 answerers"): H.vlmeval_answers(exam, rows + [r | dict(model="b") for r in rows], tmp_path, "N")
    with pytest.raises(ValueError, match="is none of"): H.vlmeval_answers(exam, [rows[0] | dict(id="elsewhere")], tmp_path, "N")
    assert not list(tmp_path.glob("*_N.tsv")) and not (tmp_path/"N.tsv").exists()


# -- lmms-eval -----------------------------------------------------------------------------------------------------------------------------------

DRIVER = """
import json, os, sys
from lmms_eval import evaluator
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
from cooper.measure import harnesses, records
for m in harnesses.lmms_models(): MODEL_REGISTRY_V2.register_manifest(m, overwrite=True)
model, tasks, where, limit, kill = sys.argv[1:]
ask, batches = records.CooperAnswers.ask, []
def counted(self, items, seeds):
    if len(batches) == int(kill): os._exit(9)
    batches.append(len(items))
    return ask(self, items, seeds)
records.CooperAnswers.ask = counted
told = evaluator.simple_evaluate(model=model, model_args=f"pretrained={harnesses.resolve('data/tiny-cooper')},record=answers.jsonl,traces=traces,thought=draft".replace("answers", os.path.abspath("answers"))
    .replace("traces=traces", "traces=" + os.path.abspath("traces")), tasks=tasks.split(","), task_manager=TaskManager(include_path=where, include_defaults=False), batch_size=2, limit=int(limit), bootstrap_iters=0)
print("TOLD", json.dumps(dict(batches=batches, results=told["results"], samples={t: [dict(said=s["resps"], target=s["target"], score=s.get("score"), doc_id=s["doc_id"]) for s in ss] for t, ss in told["samples"].items()}), default=str))
"""


def evaluate(folder, model, tasks, where=None, limit=4, kill=99, **more):
    done = run(model, tasks, where or H.lmms_tasks(), limit, kill, cwd=folder, paths=LMMS, code=DRIVER, HF_HOME=str(folder/"hf"), HF_DATASETS_CACHE=str(folder/"hf/datasets"), **more)
    told = re.search(r"^TOLD (.*)$", done.stdout, re.M)
    return done, told and json.loads(told[1])


def first(value): return first(value[0]) if isinstance(value, list) else value


def test_lmms_eval_asks_it(tmp_path, co):
    done, told = evaluate(tmp_path, "cooper-reason", "cooper_scenes", COOPER_SCENES_COUNT="10")
    assert told, done.stderr[-3000:]
    exam = scene_exam(benchmark("scenes", count=10))
    exam = replace(exam, items=exam.items[:4])
    answers = CooperAnswers(co, "reason", "tiny-cooper", tmp_path/"traces", thought="draft")
    answers.ask = None # all is on record, and in the form that our own evaluation keeps
    rows = collect(exam, answers, tmp_path/"answers.jsonl")
    ours = score(exam, rows)
    samples = sorted(told["samples"]["cooper_scenes"], key=lambda s: s["doc_id"])
    assert [float(s["score"]) for s in samples] == [r["scores"]["score"] for r in ours.rows] and [s["target"] for s in samples] == [i.said for i in exam.items]
    assert float(told["results"]["cooper_scenes"]["score,none"]) == pytest.approx(ours.measures[0].estimate().value)
    assert [first(s["said"]) for s in samples] == [read_trace(r).answer or "" for r in rows]
    assert {"answered,none", "macro,none"} <= set(told["results"]["cooper_scenes"])


def test_a_killed_run_loses_nothing(tmp_path):
    killed, told = evaluate(tmp_path, "cooper-direct", "cooper_scenes", limit=6, kill=2, COOPER_SCENES_COUNT="10")
    kept = read_records(tmp_path/"answers.jsonl")
    assert killed.returncode == 9 and told is None and len(kept) == 4, killed.stderr[-2000:]
    done, told = evaluate(tmp_path, "cooper-direct", "cooper_scenes", limit=6, COOPER_SCENES_COUNT="10")
    assert told and told["batches"] == [2] and read_records(tmp_path/"answers.jsonl")[:4] == kept, done.stderr[-2000:]
    assert len(told["samples"]["cooper_scenes"]) == 6


def test_a_task_of_somebody_else(tmp_path, exam):
    "Until and max_new_tokens are about the answer: the thought has blank lines and is longer."
    for n, i in enumerate(exam.items): (tmp_path/f"{n}.png").write_bytes(i.pictures[0].path.read_bytes())
    (tmp_path/"rows.jsonl").write_text("".join(json.dumps(dict(shot=str(tmp_path/f"{n}.png"), words=i.question, truth=i.said)) + "\n" for n, i in enumerate(exam.items)))
    (tmp_path/"mine.yaml").write_text("""
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.shots
doc_to_text: !function utils.words
doc_to_target: truth
process_results: !function utils.points
generation_kwargs: {max_new_tokens: 1}
metric_list:
  - {metric: score, aggregation: mean, higher_is_better: true}
""")
    (tmp_path/"utils.py").write_text("from PIL import Image\ndef shots(doc): return [Image.open(doc['shot'])]\ndef words(doc): return doc['words']\ndef points(doc, results): return dict(score=float(results[0] == doc['truth']))\n")
    done, told = evaluate(tmp_path, "cooper", "mine", where=tmp_path)
    assert told, done.stderr[-3000:]
    kept = read_records(tmp_path/"answers.jsonl")
    assert len(kept) == 4 and all(r["exam"] == "mine" and r["mode"] == "cooperate" and r["tokens"] > 1 for r in kept) and [r["id"] for r in kept] == [f"test/{n}" for n in range(4)]
    answers = {s["doc_id"]: first(s["said"]) for s in told["samples"]["mine"]}
    assert answers == {n: read_trace(r).answer or "" for n, r in enumerate(kept)}


def test_a_task_without_its_file_says_so_at_once(tmp_path):
    done, told = evaluate(tmp_path, "cooper", "cooper_vsr", COOPER_VSR="")
    assert told is None and done.returncode == 1 and "cooper_vsr: COOPER_VSR is not set" in done.stderr and "RetryError" not in done.stderr, done.stderr[-2000:]


def test_every_name_has_its_class(monkeypatch):
    if not REAL_LMMS: monkeypatch.syspath_prepend(LMMS[0])
    from lmms_eval.models.registry_v2 import ModelRegistryV2
    registry = ModelRegistryV2()
    for m in H.lmms_models(): registry.register_manifest(m)
    found = {name: registry.get_model_class(name) for name in H.NAMED}
    assert len(set(found.values())) == 5 and all(c.is_simple is False for c in found.values())
    with pytest.raises(AttributeError): H.LmmsNothing
    with pytest.raises(ValueError, match="mode is 'paint'"): found["cooper"](TINY, mode="paint")


def test_the_package_says_where_lmms_eval_finds_it():
    from configparser import ConfigParser
    config = ConfigParser(delimiters=["="]); config.read(ROOT/"settings.ini")
    name, _, where = config["DEFAULT"]["lmms_eval_models"].partition("=")
    module, _, function = where.partition(":")
    assert name == "cooper" and getattr(importlib.import_module(module), function) is H.lmms_models
    told = subprocess.run([sys.executable, "setup.py", "-q", "--name"], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.strip() == "cooper" and "lmms_tasks/*" in (ROOT/"setup.py").read_text() and "lmms_eval.models" in (ROOT/"setup.py").read_text()
    import yaml
    for file in H.lmms_tasks().glob("*.yaml"): # the functions that it names are there
        for path in re.findall(r"!function ([\w.]+)", file.read_text() + (file.parent/"_cooper").read_text()): assert callable(getattr(H, path.rpartition(".")[2])), path
        exam = json.loads((file.parent/re.search(r"test: (\S+?)}", file.read_text())[1]).read_text())["exam"]
        assert file.stem == "cooper_" + exam.replace("-", "_")


@pytest.fixture
def owners(tmp_path, monkeypatch):
    "A row of each owner's file."
    import pyarrow, pyarrow.parquet
    Image.new("RGB", (32, 32), "red").save(tmp_path/"a.png")
    shot = dict(bytes=(tmp_path/"a.png").read_bytes(), path="a.png")
    def parquet(name, **row): pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path/name)
    (tmp_path/"vsr.jsonl").write_text(json.dumps(dict(image="a.png", caption="The cat is left of the dog.", label=1, relation="left of")) + "\n")
    (tmp_path/"Height.tsv").write_text("index\tquestion\tanswer\ttype\tinput_type\tdata_source\timage_path\n0\tWhich is higher? A. x B. y\tA\tMCQ\timage\tSpatialBench\ta.png\n")
    parquet("q.parquet", question="How wide is it?", answer_value=2.0, answer_unit="m", question_type="width", image=shot)
    parquet("clevr.parquet", image=shot, problem="How many cubes?", solution="<answer> 3 </answer>")
    for name, file in {"VSR": "vsr.jsonl", "SIBENCH": "Height.tsv", "Q_SPATIAL": "q.parquet", "CLEVR_COGENT": "clevr.parquet", "SUPERCLEVR": "clevr.parquet"}.items():
        monkeypatch.setenv(f"COOPER_{name}", str(tmp_path/file))


@pytest.mark.parametrize("name, right, wrong, more", [
    ("vsr", "Yes.", "No.", {}), ("sibench", "A", "The answer is B.", {}), ("clevr-cogent", "There are three.", "4", {}), ("superclevr", "3", "", {}),
    ("q-spatial", r"\scalar{110} \distance_unit{cm}", "30 m", {"delta_1.5": 0})])
def test_tasks_read_their_owners_files(owners, name, right, wrong, more):
    from datasets import Dataset
    row, = H.doc_rows(Dataset.from_list([dict(exam=name)]))
    assert H.doc_scores(row, [right]) | more == H.doc_scores(row, [right]) and H.doc_scores(row, [right])["score"] == 1 and H.doc_scores(row, [wrong])["score"] == 0
    shown = H.doc_pictures(row)
    assert shown[0].size == (32, 32) and len(shown) == 1
    messages, item = H.doc_messages(row), H.doc_item(row)
    assert [m["role"] for m in messages] == (["system", "user"] if name == "q-spatial" else ["user"]) and messages[-1]["content"][-1]["text"] == item.prompt
    assert H.doc_words(row) == "\n".join(filter(None, [item.system, item.prompt]))
    declared = re.findall(r"metric: ([\w.]+)", (H.lmms_tasks()/f"cooper_{name.replace('-', '_')}.yaml").read_text())
    assert set(declared) <= set(H.doc_scores(row, [right]))


def test_messages_that_are_no_question_with_pictures():
    from cooper.core import NotBuilt
    with pytest.raises(NotBuilt, match="video"): H.read_messages(lambda: [dict(role="user", content=[dict(type="video", url="x.mp4")])], "t")
    with pytest.raises(NotBuilt, match="num_fewshot 0"): H.read_messages(lambda: [dict(role="user", content="a"), dict(role="assistant", content="b")], "t")
    words, shots = H.read_messages(lambda: [dict(role="system", content="Be brief."), dict(role="user", content=[dict(type="image", url=Image.new("L", (3, 2))), dict(type="text", text="What?")])], "t")
    assert words == "Be brief.\nWhat?" and shots[0].open().mode == "RGB" and shots[0].open().size == (3, 2)


def test_repeats_and_padding(tmp_path, co, exam):
    "A question that is asked three times gets three answers on record; a copy that lmms-eval pads a rank with gets a known one."
    from types import SimpleNamespace
    make = lambda doc: [dict(role="user", content=[dict(type="image", url=exam.items[0].pictures[0].open()), dict(type="text", text="How many cubes are there?")])]
    request = lambda repeats: SimpleNamespace(args=("", make, {}, 0, "t", "test"), repeats=repeats)
    docs = dict(t=dict(test=[{}]))
    asked = []
    class Seen(CooperAnswers):
        def ask(self, items, seeds): asked.extend(seeds); return super().ask(items, seeds)
    ask = lambda heat: Seen(co, "direct", "x", thought="draft")
    assert len(H.answer_requests([request(3)]*3, docs, ask, tmp_path/"r.jsonl")) == 3 and len({s[-1] for s in asked}) == 3
    del asked[:]
    assert len(H.answer_requests([request(1)]*2, docs, ask, tmp_path/"r.jsonl")) == 2 and not asked
