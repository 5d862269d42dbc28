"Rendered scenes: exact geometry, determinism, held-out splits, killed runs, shipped data."
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from cooper.core import file_hash, resolve, write_jsonl
from cooper.perceive.data import load_classes, load_depth_png, read_amg
from cooper.perceive.scenes import (CLASSES, COLOURS, FAR, HELD_OUT, NEAR, SHAPES, SPLITS, Camera, Scene, Solid, load_facts, load_rendered, render,
                                    render_split, sample_scene, scene_facts, write_card)

ROOM = dict(half_width=4., back=2., height=6., wall_colour=[.7]*3, floor_colour=[.45]*3,
            lamp_position=[0, -3], lamp_half_width=1.2, lamp_power=30., lamp_tint=[1, 1, 1])

def rays(camera, size):
    "Directions through pixel middles with unit length along the optical axis, so that the ray's parameter is the depth."
    c = (np.arange(size) + .5)/size - .5
    u, v = np.meshgrid(c, c)
    return np.stack([u/camera.focal, v/camera.focal, np.ones_like(u)], -1) @ camera.axes

def analytic_depth(scene, size):
    "Depth of a room with balls, by intersecting rays with planes and spheres."
    o, d = np.array(scene.camera.position), rays(scene.camera, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = scene.room["half_width"]
        planes = [(0 - o[2])/d[..., 2], (scene.room["back"] - o[1])/d[..., 1], (wide - o[0])/d[..., 0], (-wide - o[0])/d[..., 0]]
        hits = [np.where(t > 0, t, np.inf) for t in planes]
        for s in scene.solids:
            a, to = (d**2).sum(-1), o - np.array([s.x, s.y, s.radius_m])
            b, c = d @ to, to @ to - s.radius_m**2
            t = (-b - np.sqrt(b*b - a*c))/a
            hits.append(np.where(t > 0, t, np.inf))
    return np.min(hits, 0)

def test_depth_is_the_analytic_depth():
    balls = Solid("ball", "red", "large", "rubber", .8, -.6, -.4), Solid("ball", "blue", "small", "metal", .45, .9, -1.8)
    scene = Scene(0, "test", Camera((1., -5.5, 2.4), (.1, .2, .5), 46.), ROOM, balls)
    rendered = render(scene, 96, 1)
    expected = analytic_depth(scene, 96)
    close = abs(rendered.depth - expected) < 1e-3
    assert close.mean() > 0.999, f"{(~close).sum()} of {close.size} pixels differ by over a millimetre"  # a silhouette pixel may fall on either side
    assert set(np.unique(rendered.instances)) == {0, 1, 2}

def test_instances_and_classes_agree():
    for seed, split in ((3, "train"), (5, "ood_camera")):
        scene = sample_scene(seed, split)
        r = render(scene, 64, 1)
        names = list(CLASSES)
        for i, s in enumerate(scene.solids, 1):
            assert set(r.classes[r.instances == i]) == {names.index(s.shape)}
        assert set(r.classes[r.instances == 0]) <= {names.index("background"), names.index("floor")}

def test_same_bytes_with_any_number_of_threads():
    import drjit
    scene, before = sample_scene(11, "train"), drjit.thread_count()
    try:
        drjit.set_thread_count(1); one = render(scene, 64)
        drjit.set_thread_count(2); two = render(scene, 64)
    finally: drjit.set_thread_count(before)
    for a, b in ((one.rgb, two.rgb), (one.depth, two.depth), (one.instances, two.instances)): assert np.array_equal(np.array(a), np.array(b))

@pytest.mark.parametrize("split", SPLITS)
def test_scenes_keep_their_promises(split):
    for seed in range(100, 106):
        scene = sample_scene(seed, split)
        assert scene == sample_scene(seed, split)
        assert 1 <= len(scene.solids) <= 6
        for i, a in enumerate(scene.solids):
            for b in scene.solids[:i]: assert np.hypot(a.x - b.x, a.y - b.y) > a.footprint + b.footprint
        pairs = {(s.shape, s.colour) for s in scene.solids}
        assert bool(pairs & HELD_OUT) == (split == "ood_pairs")
        sideways = abs(np.degrees(np.arctan2(scene.camera.position[0], -scene.camera.position[1])))
        assert (sideways > 24) == (split == "ood_camera") and (scene.camera.position[2] > 3.5) == (split == "ood_camera")
        r = render(scene, 128, 1)
        assert NEAR <= r.depth.min() and r.depth.max() <= FAR
        assert all(o["visible_pixels"] >= 55 for o in scene_facts(r, "x-000000", "rgb/000000.png")["objects"])

def test_every_shape_and_colour_is_left_in_training():
    allowed = {(s, c) for s in SHAPES for c in COLOURS} - HELD_OUT
    assert {s for s, _ in allowed} == set(SHAPES) and {c for _, c in allowed} == set(COLOURS)

def test_two_workers_give_the_bytes_of_one(tmp_path):
    render_split(tmp_path/"a", "val", 3, size=32, workers=1)
    render_split(tmp_path/"b", "val", 3, size=32, workers=2)
    assert file_hash(tmp_path/"a") == file_hash(tmp_path/"b")

def test_killed_run_goes_on(tmp_path):
    "Killed by signal 9 while it renders: no torn file, its workers gone; run again, the folder is the one of an undisturbed run."
    script = tmp_path/"go.py"
    script.write_text("from cooper.perceive.scenes import render_split\n"
                      f"if __name__ == '__main__': render_split({str(tmp_path/'a')!r}, 'val', 12, size=32)\n")
    run = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 120
    while len(list(tmp_path.glob("a/rgb/0*.png"))) < 2 and time.time() < deadline and run.poll() is None: time.sleep(.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.time() + 20
    def alive():
        return [p for p in Path("/proc").glob("[0-9]*/stat") if _session(p) == run.pid] if Path("/proc/self/stat").exists() else []
    while alive() and time.time() < deadline: time.sleep(.1)
    assert not alive(), "workers outlived their parent"
    for p in tmp_path.glob("a/*/0*.png"): Image.open(p).load()
    render_split(tmp_path/"a", "val", 12, size=32, workers=1)
    render_split(tmp_path/"b", "val", 12, size=32, workers=1)
    assert file_hash(tmp_path/"a") == file_hash(tmp_path/"b")

def _session(stat): # of a process that is no zombie
    try: fields = stat.read_text().rsplit(")", 1)[1].split()
    except OSError: return None
    return None if fields[0] == "Z" else int(fields[3])

def test_other_scenes_in_the_folder_are_an_error(tmp_path):
    render_split(tmp_path/"val", "val", 1, size=32, workers=1)
    with pytest.raises(ValueError, match=r"rgb/000000.png: is scene 0 at 32×32 pixels; expected 1000000 at 32×32"):
        render_split(tmp_path/"val", "val", 1, seed=1, size=32, workers=1)
    (tmp_path/"val/rgb/000000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"rgb/000000.png: not a scene's picture"):
        render_split(tmp_path/"val", "val", 1, size=32, workers=1)

def test_stored_is_what_was_rendered(tmp_path):
    facts = render_split(tmp_path/"test", "test", 1, size=64, workers=1)
    stored, fresh = load_rendered(tmp_path/"test", facts[0]), render(sample_scene(facts[0]["seed"], "test"), 64)
    for kind in ("rgb", "classes", "instances"): assert np.array_equal(np.array(getattr(stored, kind)), np.array(getattr(fresh, kind)))
    assert abs(stored.depth - fresh.depth).max() <= 0.00051
    assert facts == load_facts(tmp_path/"test")
    row = read_amg(tmp_path/"test/amg.jsonl")[0]
    assert np.array_equal(load_depth_png(row.depth), stored.depth) and np.array_equal(load_classes(row.seg, CLASSES), stored.classes)
    assert "| test | 1 |" in write_card(tmp_path).read_text(encoding="utf-8")

def test_facts_are_true():
    "The facts of the shipped scenes against their stored pictures."
    folder = resolve("data/scenes/train")
    for row in load_facts(folder, limit=12):
        r, c = load_rendered(folder, row), row["camera"]
        camera = Camera(tuple(c["position"]), tuple(c["target"]), c["fov_degrees"])
        for o in row["objects"]:
            seen = r.instances == o["id"]
            assert seen.sum() == o["visible_pixels"] and abs(np.median(r.depth[seen]) - o["depth_m"]) < 2e-3
            u, v, z = camera.project(o["position_m"])
            assert abs(z - o["depth_m"]) < 1.2*o["radius_m"] + .05 and abs(u - o["pixel"][0]) < .12 and abs(v - o["pixel"][1]) < .12

@pytest.mark.parametrize("change, message", [
    (lambda r: r.pop("objects"), "field 'objects' is missing"),
    (lambda r: r["objects"][0].pop("depth_m"), r"field 'objects\[0\].depth_m' is missing"),
    (lambda r: r.update(seed="7"), "'seed' is '7'; expected int")])
def test_bad_facts_name_their_place(tmp_path, change, message):
    good = load_facts("data/scenes/test", limit=2)
    change(good[1])
    write_jsonl(tmp_path/"scenes.jsonl", good)
    with pytest.raises(ValueError, match="scenes.jsonl:2: " + message): load_facts(tmp_path)

def test_datasets_reads_the_shipped_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    both = datasets.load_dataset("imagefolder", data_dir=str(resolve("data/scenes")), cache_dir=str(tmp_path))
    assert {k: v.num_rows for k, v in both.items()} == {"train": 48, "test": 24}
    row = both["test"][0]
    assert row["image"].size == (128, 128) and np.array(row["depth"]).max() > 2500
    assert row["objects"] == load_facts("data/scenes/test", limit=1)[0]["objects"]

def test_bad_amg_rows_name_file_line_and_field(tmp_path):
    for n in "ads": Image.new("RGB", (4, 4)).save(tmp_path/f"{n}.png")
    good = dict(data_id="a", rgb_image="a.png", depth_image="d.png", seg_image="s.png", data_idx=0)
    for change, message in ((dict(seg_image=None), "field 'seg_image' is missing"), (dict(data_idx="0"), "'data_idx' is '0'"),
                            (dict(depth_image="no.png"), "'depth_image' is .*no such file")):
        write_jsonl(tmp_path/"list.jsonl", [good, good | change])
        with pytest.raises(ValueError, match="list.jsonl:2: " + message): read_amg(tmp_path/"list.jsonl")
    (tmp_path/"s.png").write_bytes((tmp_path/"s.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="list.jsonl:1: 'seg_image' is .*unreadable picture"): read_amg(tmp_path/"list.jsonl")
    assert len(read_amg(tmp_path/"list.jsonl", pictures=False, need=(), limit=1)) == 1
