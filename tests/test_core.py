"What would spoil the ground floor's story: kills, races, odd values."
import dataclasses, json, math, os, signal, subprocess, sys, time
from pathlib import Path
from typing import Literal, Optional

import numpy as np
import pytest

from cooper.core import (Curves, NotBuilt, RunRecord, append_jsonl, checked, decode_picture, encode_picture, file_hash, git_commit, generator, parsed, progress, read_jsonl,
                         resolve, root, seed_for, whole_lines, write_jsonl, write_whole)


@dataclasses.dataclass
class Run:
    out: str
    steps: int = 10
    lr: float = 1e-4
    modes: list[str] = dataclasses.field(default_factory=list)
    sizes: tuple[int, ...] = (1, 2)
    interval: tuple[float, float] = (0.4, 1.0)
    resume: Optional[bool] = None
    device: Literal["cpu", "cuda"] = "cpu"
    folder: Path = Path("data")


def test_checked_takes_what_a_command_line_can_say():
    run = checked(Run, dict(out="x", steps=3, lr=1, modes="a, b", sizes=[3], interval=[0, 1], resume=True, device="cuda", folder="elsewhere"))
    assert run == Run("x", 3, 1.0, ["a", "b"], (3,), (0.0, 1.0), True, "cuda", Path("elsewhere"))
    assert type(run.lr) is float and type(run.interval[0]) is float


@pytest.mark.parametrize("given, words", [
    (dict(steps="3"), "'steps' is '3'; expected int"), (dict(steps=True), "'steps' is True; expected int"), (dict(steps=2.5), "'steps' is 2.5"),
    (dict(steps=None), "'steps' is None"), (dict(lr="fast"), "'lr' is 'fast'; expected float"), (dict(modes=3), "'modes' is 3; expected list[str]"),
    (dict(sizes="1,2"), "'sizes' is '1,2'"), (dict(interval=[1]), "'interval' is [1]"), (dict(resume="yes"), "'resume' is 'yes'"),
    (dict(device="tpu"), "'device' is 'tpu'; expected one of cpu, cuda"), (dict(stepz=1), "'stepz' is not a parameter of Run"), (dict(out=3), "'out' is 3"),
])
def test_checked_refuses(given, words):
    with pytest.raises(ValueError) as e: checked(Run, {"out": "x"} | given)
    assert words in str(e.value) and "steps (int)" in str(e.value)


def test_checked_lists_all_faults_at_once():
    with pytest.raises(ValueError, match="(?s)'a' is not.*'steps' is 'x'.*'out' is missing"): checked(Run, dict(a=1, steps="x"))


def test_checked_in_a_notebook_sees_only_parameters():
    from cooper.model import modalities # a module whose constants a star import would bring along
    constants = {k: v for k, v in vars(modalities).items() if k.isupper()}
    assert checked(Run, dict(out="x", In=[1], Out={}, _=3, _i="", os=os, print=print, Path=Path, **constants)) == Run("x")
    with pytest.raises(ValueError, match="'STEPS' is not a parameter"): checked(Run, dict(out="x", STEPS=3))


def test_write_whole_puts_nothing_under_the_name_on_error(tmp_path):
    for make in (lambda p: p.write_text("half"), lambda p: p.mkdir()):
        with pytest.raises(RuntimeError), write_whole(tmp_path/"x.json") as aside:
            make(aside)
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []


def test_write_whole_wants_something_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.json: nothing was written"):
        with write_whole(tmp_path/"x.json"): pass


def test_write_whole_keeps_the_suffix_and_makes_parents(tmp_path):
    with write_whole(tmp_path/"a"/"b.npy") as aside: np.save(aside, np.arange(3))
    assert np.load(tmp_path/"a"/"b.npy").tolist() == [0, 1, 2]


def test_write_whole_replaces_a_folder(tmp_path):
    for text in ("old", "new"):
        with write_whole(tmp_path/"folder") as aside:
            aside.mkdir()
            (aside/text).write_text(text)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["folder", "folder/new"]


def test_write_whole_leaves_a_living_writer_alone(tmp_path):
    with write_whole(tmp_path/"x") as first:
        first.write_text("first")
        with write_whole(tmp_path/"x") as second: second.write_text("second")
        assert first.exists() and (tmp_path/"x").read_text() == "second"
    assert (tmp_path/"x").read_text() == "first"


SLOW = """
import sys, time
from cooper.core import write_whole
with write_whole(sys.argv[1]) as aside:
    aside.mkdir()
    for i in range(10_000):
        (aside/f"{i}.bin").write_bytes(bytes(10_000))
        print(i, flush=True)
"""


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_writer_leaves_no_half_folder(tmp_path, sig):
    writer = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path/"checkpoint-5")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(3): writer.stdout.readline()
    writer.send_signal(sig)
    writer.stdout.close()
    writer.wait()
    assert not (tmp_path/"checkpoint-5").exists()
    with write_whole(tmp_path/"checkpoint-5") as aside: aside.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"], "the next writer sweeps up"


def test_jsonl_round_trip(tmp_path):
    rows = [dict(a=1, b="é\u2028\n", c=[1.5, None], d={"e": True})]
    assert read_jsonl(write_jsonl(tmp_path/"r.jsonl", rows)) == rows
    assert read_jsonl(write_jsonl(tmp_path/"n.jsonl", [dict(x=np.float32(.5), y=np.arange(2), z=Path("a/b"))])) == [dict(x=.5, y=[0, 1], z="a/b")]
    assert read_jsonl(write_jsonl(tmp_path/"none.jsonl", [])) == []


@pytest.mark.parametrize("text, words", [
    ('{"a": 1}\n{"a": \n', ":2: not JSON"), ('{"a": 1}\n\n[1]\n', ":3: is a list"), ('{"a": 1}\n{"a": 2', ":2: not JSON"), ("\x00", ":1: not JSON"), ('{"b": 1}\n', ":1: field 'a' is missing"),
])
def test_a_bad_row_has_a_place(tmp_path, text, words):
    def check(row):
        if "a" not in row: raise ValueError("field 'a' is missing")
    (tmp_path/"r.jsonl").write_text(text)
    with pytest.raises(ValueError) as e: read_jsonl(tmp_path/"r.jsonl", check)
    assert f"{tmp_path/'r.jsonl'}{words}" in str(e.value)


def test_bytes_that_are_not_utf8_have_a_place(tmp_path):
    (tmp_path/"r.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl:2: not JSON"): read_jsonl(tmp_path/"r.jsonl")


def test_skipping_reads_the_same_lines_and_reports_the_others(tmp_path):
    (tmp_path/"r.jsonl").write_text('{"a": "one\u2028line\x85"}\n\n{"b": 1}\n[1]\n{"a": 2}\n{"a": 3}\n', encoding="utf-8")
    def check(row):
        if "a" not in row: raise ValueError("field 'a' is missing")
    bad = ["from another file"]
    with pytest.warns(UserWarning, match="kept 2 rows, skipped 2; the first: .*:3: field 'a' is missing"):
        rows = read_jsonl(tmp_path/"r.jsonl", check, limit=2, on_bad="skip", bad=bad)
    assert rows == [{"a": "one\u2028line\x85"}, {"a": 2}]
    assert bad == ["from another file", f"{tmp_path}/r.jsonl:3: field 'a' is missing", f"{tmp_path}/r.jsonl:4: is a list; expected an object with named fields"]
    with pytest.raises(FileNotFoundError, match="absent"): read_jsonl(tmp_path/"absent.jsonl", on_bad="skip")


def test_a_bad_row_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"r\.jsonl:2: "): write_jsonl(tmp_path/"r.jsonl", [dict(a=1), dict(a=object())])
    assert list(tmp_path.iterdir()) == []


def test_pictures_as_text():
    from PIL import Image
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    text = encode_picture(picture)
    for value in (picture, text, "data:image/png;base64," + text): assert decode_picture(value).tobytes() == picture.tobytes()
    for value, words in (("ZZZ", "is not base64"), ("é", "is not base64"), (text[:400], "no readable picture"), ("", "no readable picture")):
        with pytest.raises(ValueError, match=words): decode_picture(value)


def test_seeds_are_the_same_everywhere():
    assert seed_for(0, "scene", 3) == 6321026602210533534 # written down once: a change would alter every rendered scene
    assert len({seed_for("rollout", i, k) for i in range(100) for k in range(8)}) == 800
    assert generator(1).initial_seed() == seed_for(1) < 2**63
    for bad in (0.5, None, True, (1,)):
        with pytest.raises(TypeError, match="expected int or str"): seed_for(bad)


def test_the_global_generator_is_left_alone():
    import torch
    before = torch.get_rng_state()
    torch.randn(2, generator=generator("x"))
    assert torch.equal(before, torch.get_rng_state())


def test_root_from_anywhere(tmp_path, monkeypatch):
    here = root()
    for folder in ("nbs", "tests"):
        monkeypatch.chdir(here/folder)
        assert root() == here and resolve("data") == here/"data"
    (tmp_path/"settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    monkeypatch.chdir(tmp_path)
    assert root() == here, "another project's settings.ini is not ours"


def test_not_built_says_what_and_instead():
    assert str(NotBuilt("FSDP training", "use one process")) == "FSDP training is not part of this release; use one process"
    assert issubclass(NotBuilt, RuntimeError)


def test_progress_can_be_silent(capsys, monkeypatch):
    monkeypatch.setenv("COOPER_QUIET", "1")
    assert list(progress(range(3), "x")) == [0, 1, 2] and capsys.readouterr() == ("", "")
    monkeypatch.setenv("COOPER_QUIET", "0")
    assert list(progress(range(3), "counting")) == [0, 1, 2] and "counting" in capsys.readouterr().err


def test_curves_keep_and_show(tmp_path):
    import torch
    curves = Curves("t", units={"loss": "nats"}, every=15)
    for i in range(3): curves.add(i, loss=torch.tensor(1.0/(i + 1)), skipped=None, **{"val/loss": np.float32(2)})
    curves.add(3, loss=math.inf)
    again = Curves.load(curves.save(tmp_path/"c.json"))
    assert "NaN" not in (tmp_path/"c.json").read_text() and math.isnan(again.last("loss"))
    assert again.every == 15, "a figure that takes a second to draw is not drawn every two after a resume"
    old = json.loads((tmp_path/"c.json").read_text())
    (tmp_path/"old.json").write_text(json.dumps({k: v for k, v in old.items() if k != "every"}))
    assert Curves.load(tmp_path/"old.json").points.keys() == again.points.keys(), "files of earlier versions are read"
    assert again.points["val/loss"] == [(0, 2.0), (1, 2.0), (2, 2.0)] and "skipped" not in again.points
    ax, = (a for a in again.figure().axes if a.get_xlabel())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss [nats]") and len(ax.get_legend().get_texts()) == 2
    assert Curves().figure() is not None, "an empty figure is a figure"


@pytest.mark.parametrize("text", ["", "[]", '{"title": "t"}', '{"title": "t", "units": {}, "points": {"a": [1]}}', '{"title": "t", "units": {}, "points": []}'])
def test_a_bad_curves_file_is_named(tmp_path, text):
    (tmp_path/"c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json: not a file of curves"): Curves.load(tmp_path/"c.json")


def test_hashes_tell_files_and_folders_apart(tmp_path):
    (tmp_path/"a").mkdir()
    (tmp_path/"a"/"x").write_text("1")
    (tmp_path/"a"/"y").write_text("2")
    first = file_hash(tmp_path/"a")
    (tmp_path/"a"/".hidden").write_text("3")
    assert file_hash(tmp_path/"a") == first
    (tmp_path/"a"/"x").write_text("2")
    assert file_hash(tmp_path/"a") != first
    with pytest.raises(FileNotFoundError, match="absent"): file_hash(tmp_path/"absent")


def test_record_of_a_run(tmp_path):
    (tmp_path/"rows.jsonl").write_text("{}\n")
    record = RunRecord(tmp_path/"out", Run("x"))
    assert json.loads(record.path.read_text())["status"] == "running", "a killed run is seen as one"
    record.data(tmp_path/"rows.jsonl")
    record.finish()
    kept = json.loads(record.path.read_text())
    assert kept["status"] == "finished" and kept["params"]["steps"] == 10 and kept["data"] == {"rows.jsonl": file_hash(tmp_path/"rows.jsonl")}
    assert kept["versions"]["numpy"] == np.__version__ and "finished" in record._repr_html_()
    with pytest.raises(KeyError), RunRecord(tmp_path/"out", dict(seed=3)): raise KeyError("lost")
    kept = json.loads(record.path.read_text())
    assert (kept["status"], kept["error"]) == ("failed", "KeyError: 'lost'") and [e["status"] for e in kept["earlier"]] == ["finished"] and kept["seeds"] == {"seed": 3}


def test_a_notebook_whose_cell_fails_has_failed(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    cells = [f"from cooper.core import *\nlost, done = RunRecord({str(tmp_path/'lost')!r}), RunRecord({str(tmp_path/'done')!r}).finish()",
             "raise ValueError('row 3 is bad\\nand more')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    with pytest.raises(CellExecutionError): NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    kept, done = (json.loads((tmp_path/name/"run.json").read_text()) for name in ("lost", "done"))
    assert (kept["status"], kept["error"], done["status"]) == ("failed", "ValueError: row 3 is bad", "finished")


def test_a_record_that_failed_may_still_finish(tmp_path):
    record = RunRecord(tmp_path).fail(KeyboardInterrupt())
    assert (record.values["status"], record.values["error"]) == ("failed", "KeyboardInterrupt")
    assert record.finish().values["status"] == "finished" and "error" not in json.loads(record.path.read_text())


def test_the_commit_is_known_or_unknown(tmp_path, monkeypatch):
    assert git_commit() == "unknown" or len(git_commit().split("+")[0]) == 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown", "no git on this machine"


def test_help_of_an_option_is_the_comment_behind_its_field(tmp_path, monkeypatch, capsys):
    (tmp_path/"options_of_a_test.py").write_text('from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Base:\n    steps: int = 3 # how many\n    name: str = "a # b" # 100 % of it\n'
        '    bare: int = 0\n    def method(self,\n        steps, # not this\n    ): pass\n\n@dataclass\nclass Mine(Base):\n    steps: int = 4 # how many now\n')
    monkeypatch.syspath_prepend(tmp_path)
    from options_of_a_test import Mine
    with pytest.raises(SystemExit): parsed(Mine, ["--help"])
    said = capsys.readouterr().out
    assert "how many now (default: 4)" in said and "100 % of it (default: a # b)" in said and "not this" not in said
    assert parsed(Mine, ["--steps", "7"]).steps == 7 and parsed(Mine, []).name == "a # b"


def test_a_file_that_others_write_to_keeps_whole_lines(tmp_path):
    path = tmp_path/"deep"/"rows.jsonl"
    append_jsonl(path, dict(a=1), dict(a=2))
    with open(path, "ab") as f: f.write(b'{"a": "' + b"x"*200_000)
    with open(path, "rb") as f: assert whole_lines(f) == len('{"a": 1}\n{"a": 2}\n')
    append_jsonl(path, dict(a=3))
    assert [r["a"] for r in read_jsonl(path)] == [1, 2, 3]


def test_the_same_numbers_are_one_curve():
    curves = Curves()
    curves.points = {"loss": [(1, .5), (2, float("nan"))], "mse": [(1, .5), (2, float("nan"))], "val/loss": [(1, .7)]}
    fig = curves.figure()
    shown = [ax for ax in fig.axes if ax.axison]
    assert [ax.get_ylabel() for ax in shown] == ["loss = mse"] and len(shown[0].lines) == 2
    assert all(float(t).is_integer() for t in fig.axes[0].get_xticks())
