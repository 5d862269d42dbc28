"Every data set is read from small files in its owner's layout, whole and broken; converted, killed and gone on with; and walked for faults."
import json, os, pickle, subprocess, sys

import numpy as np
import pytest
from PIL import Image

import owners
from cooper.core import read_jsonl, write_jsonl
from cooper.model.modalities import DEPTH_CODECS, DEPTH_RANGES, Depth, DepthMap
from cooper.model.processor import check_protocol, tiny_protocol
from cooper.perceive import data
from cooper.perceive.data import (ADE150, OWNERS, VKITTI_CLASSES, AmgRow, along_axis, along_camera, convert, decoded, hdf5, kitti_frame, lines_of, load_classes, main, palette_of, read_amg,
                                  read_dataset, read_mat, read_owner, resized_map, round_trip, rows_per_second, smaller, sound_depth, spread_colours, validate)

has_hdf5 = pytest.mark.skipif(not __import__("importlib.util").util.find_spec("h5py"), reason="h5py is an extra")
quiet = pytest.fixture(autouse=True)(lambda monkeypatch: monkeypatch.setenv("COOPER_QUIET", "1"))


def only(rows): row, = rows; return row


def fails(match, ask, kind=ValueError):
    with pytest.raises(kind, match=match): ask()


# --- readers

@has_hdf5
def test_hypersim_is_planar_whatever_the_lens(tmp_path):
    depth = owners.hypersim(tmp_path)
    rows = list(read_owner("hypersim", tmp_path))
    assert [r.data_id for r in rows] == ["ai_001_001_cam_00_fr0000", "ai_001_001_cam_00_fr0007", "ai_003_010_cam_00_fr0000", "ai_003_010_cam_00_fr0007"]
    for row in rows:
        metres = row.metres()
        assert metres[3, 4] == 0 and metres.dtype == np.float32
        metres[3, 4] = depth[3, 4]
        assert metres == pytest.approx(depth, rel=1e-3) # half floats
    tilted = next(read_owner("hypersim", tmp_path, "val", camera="standard")).metres()
    assert abs(tilted - depth)[tilted > 0].max() > .1, "with the standard lens it is another depth"
    assert [r.data_id[:10] for r in read_owner("hypersim", tmp_path, "val")] == ["ai_003_010"]*2


@has_hdf5
def test_hypersims_pictures_are_tone_mapped_as_their_owner_does(tmp_path):
    owners.hypersim(tmp_path, frames=(0,))
    row = next(read_owner("hypersim", tmp_path))
    light = (owners.photo(0)/100).astype(np.float16).astype(float)
    top = np.percentile(light @ [.3, .59, .11], 90)
    assert np.abs(np.asarray(row.picture(), int) - np.clip((light*.8**2.2/top)**(1/2.2), 0, 1)*255).max() <= 1.5
    for colour in tmp_path.glob("*/images/scene_cam_00_final_hdf5/*"): colour.unlink()
    row = next(read_owner("hypersim", tmp_path))
    assert row.rgb.name == "frame.0000.tonemap.jpg" and row.picture().size == (40, 24)


@has_hdf5
def test_hypersims_filtered_list(tmp_path):
    owners.hypersim(tmp_path)
    text, released = tmp_path/"filtered.txt", tmp_path/"filtered.jsonl"
    text.write_text("ai_003_010/rgb_cam_00_fr0007.png ai_003_010/depth_plane_cam_00_fr0007.png\n")
    write_jsonl(released, [dict(rgb_image="ai_003_010/rgb_cam_00_fr0007.png", depth_image="ai_003_010/depth_plane_cam_00_fr0007.png")])
    for listed in (text, released): assert only(read_owner("hypersim", tmp_path, listed=listed)).data_id == "ai_003_010_cam_00_fr0007"
    text.write_text("\nrgb.png depth.png\n")
    fails(r"filtered.txt:2: 'rgb.png' is no frame of Hypersim; expected e.g.", lambda: list(read_owner("hypersim", tmp_path, listed=text)))
    fails("no.txt: no such file", lambda: list(read_owner("hypersim", tmp_path, listed=tmp_path/"no.txt")))


@has_hdf5
def test_broken_hypersim(tmp_path):
    owners.hypersim(tmp_path)
    one = tmp_path/"ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5"
    table = r"metadata_images_split_scene_v1.csv:2: "
    row = next(read_owner("hypersim", tmp_path))
    owners.cut(one); fails(table + r".*frame.0000.depth_meters.hdf5: unreadable HDF5", row.metres)
    owners.hdf5(one, other=np.ones(owners.SIZE)); fails(table + ".*no 'dataset' in it; it has other", row.metres)
    owners.hdf5(one, dataset=np.full(owners.SIZE, np.nan)); fails(".*no pixel has a distance", row.metres)
    owners.hdf5(one, dataset=np.where(np.arange(40) == 7, np.inf, 1.)[None].repeat(24, 0)); fails(r"depth_meters.hdf5: pixel \(7, 0\) is inf m, with 24 such", row.metres)
    owners.hdf5(one, dataset=np.ones((24, 40, 3))); fails(r"depth has shape \(24, 40, 3\)", row.metres)
    owners.hdf5(one, dataset=np.ones((24, 39))); fails(r"depth is 39x24 pixels, its picture .*color.hdf5 is 40x24", lambda: decoded(row))
    one.unlink(); fails(table + ".*depth_meters.hdf5: no such file", row.metres)
    cameras = tmp_path/"metadata_camera_parameters.csv"
    lines = cameras.read_text().splitlines()
    def with_cameras(*kept): cameras.write_text("\n".join(kept) + "\n"); data.hypersim_cameras.cache_clear(); return list(read_owner("hypersim", tmp_path, "val"))[0].metres
    fails("metadata_camera_parameters.csv: no row for scene 'ai_003_010'; expected its camera, for .*frame.0000", with_cameras(*lines[:2]))
    fails("metadata_camera_parameters.csv:3: the camera of ai_003_010 is .*expected nine numbers", with_cameras(*lines[:2], lines[2].replace("0.433", "?")))
    fails("metadata_camera_parameters.csv:1: column 'M_cam_from_uv_00' is missing", with_cameras("scene_name,settings_camera_fov", "ai_003_010,1"))
    cameras.unlink(); fails("metadata_camera_parameters.csv: no such file; expected the table of the owner's repository", lambda: list(read_owner("hypersim", tmp_path)))
    fails("camera is 'mine'; expected scene or standard", lambda: list(read_owner("hypersim", tmp_path, camera="mine")))
    data.hypersim_cameras.cache_clear()


def test_without_h5py_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    fails(r"depth.hdf5: reading HDF5 needs the package h5py; install it with: pip install h5py", lambda: hdf5(tmp_path/"depth.hdf5"), ImportError)


@pytest.mark.parametrize("apart", [False, True])
def test_vkitti(tmp_path, apart):
    numbers = owners.vkitti(tmp_path)
    if apart: # archives unpacked under their own names
        for kind in ("rgb", "depth", "classSegmentation", "instanceSegmentation"):
            for source in list(tmp_path.glob(f"Scene*/fog/frames/{kind}/*/*")):
                to = tmp_path/f"vkitti_2.0.3_{kind}"/source.relative_to(tmp_path)
                to.parent.mkdir(parents=True, exist_ok=True); source.rename(to)
    rows = list(read_owner("vkitti", tmp_path))
    assert len(rows) == 8 and rows[1].data_id == "Scene01_fog_Camera_0_00001" and [r.data_id[:7] for r in read_owner("vkitti", tmp_path, "train")] == ["Scene02"]*4
    assert (rows[1].numbers() == numbers).all() and (rows[1].instances() == (numbers > 12)).all()
    assert rows[1].metres() == pytest.approx(np.where(numbers == 2, 655.35, 12.35))
    assert rows[1].names()[13] == "Car" and list(read_owner("vkitti", tmp_path, weather=("fog",), limit=3))[2].data_id == rows[2].data_id
    assert pickle.loads(pickle.dumps(rows[1])).data_id == rows[1].data_id, "rows go to workers"
    fails("no row of vkitti, split 'train', in it; expected Scene01/clone/frames", lambda: list(read_owner("vkitti", tmp_path, "train", weather=("rain",))))


def test_twenty_thousand_pictures_of_vkitti():
    frames = dict(Scene01=447, Scene02=233, Scene06=270, Scene18=339, Scene20=837)
    assert sum(frames[s] for s in data._VKITTI_SCENES["train"])*len(data._WEATHER)*2 == 20148 # the rows of the released list


def test_broken_vkitti(tmp_path):
    owners.vkitti(tmp_path, frames=1)
    row, at = next(read_owner("vkitti", tmp_path)), tmp_path/"Scene01/fog/frames"
    seg, depth = at/"classSegmentation/Camera_0/classgt_00000.png", at/"depth/Camera_0/depth_00000.png"
    spoilt = np.asarray(Image.open(seg)).copy(); spoilt[5, 9] = (1, 2, 3)
    owners.put(seg, spoilt); fails(r"classgt_00000.png: pixel \(9, 5\) is \(1, 2, 3\), far from every colour", row.numbers)
    owners.cut(seg); fails("classgt_00000.png.*unreadable picture", row.numbers)
    owners.cut(depth); fails("depth_00000.png.*unreadable picture", row.metres)
    owners.put(depth, np.zeros(owners.SIZE, np.uint8)); fails("expected one channel of 16 bits", row.metres)
    owners.put(depth, np.zeros((24, 41), np.uint16)); owners.vkitti(tmp_path/"whole", frames=1)
    seg.write_bytes((tmp_path/"whole/Scene01/fog/frames/classSegmentation/Camera_0/classgt_00000.png").read_bytes())
    fails("depth_00000.png: depth is 41x24 pixels, its picture .*rgb_00000.jpg is 40x24", lambda: decoded(row))
    owners.put(depth, np.zeros(owners.SIZE, np.uint16)); fails("depth_00000.png: no pixel has a depth", lambda: decoded(row))
    depth.unlink(); fails("depth_00000.png': no such file", row.metres)


def test_kitti_is_sparse_and_framed(tmp_path):
    raw = owners.kitti(tmp_path)
    rows = list(read_owner("kitti", tmp_path))
    assert [r.data_id for r in rows][::2] == ["2011_09_26_drive_0001_sync_image_02_0000000005", "2011_09_26_drive_0002_sync_image_02_0000000005"]
    assert (rows[0].metres() == np.where(raw, 10, 0)).all() and rows[0].picture().size == (1242, 375)
    framed = next(read_owner("kitti", tmp_path, "val", frame=True))
    assert (framed.metres() == kitti_frame(np.where(raw, 10, 0))).all() and framed.picture().size == (1216, 352)
    listed = tmp_path/"eigen_test_files_with_gt.txt"
    photo, depth = "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000005.png", "2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000005.png"
    listed.write_text(f"{photo} None 721.5377\n{photo} {depth} 721.5377\n")
    assert only(read_owner("kitti", tmp_path, listed=listed)).depth == tmp_path/"val"/depth
    listed.write_text(photo + "\n"); fails("eigen_test_files_with_gt.txt:1: .*expected a photograph and a depth map", lambda: list(read_owner("kitti", tmp_path, listed=listed)))
    listed.write_text(f"{photo} none/at/all/image_02/5.png\n"); fails(r"gt.txt:1: 'depth_image' is .*5.png': no such file", only(read_owner("kitti", tmp_path, listed=listed)).metres)


def test_kittis_selection(tmp_path):
    at, n = tmp_path/"depth_selection/val_selection_cropped", "2011_09_26_drive_0002_sync_{}_0000000005_image_02.png"
    owners.put(at/"groundtruth_depth"/n.format("groundtruth_depth"), np.full((352, 1216), 512, np.uint16))
    owners.put(at/"image"/n.format("image"), owners.photo(0, (352, 1216)))
    row = only(read_owner("kitti", tmp_path, "selection"))
    assert (row.metres() == 2).all() and row.picture().size == (1216, 352) and row.data_id == "2011_09_26_drive_0002_sync_0000000005_image_02"


@has_hdf5
def test_nyu(tmp_path):
    images, measured, filled, labels = owners.nyu(tmp_path)
    rows = list(read_owner("nyu", tmp_path, "test"))
    assert [r.data_id for r in rows] == ["nyu_0003", "nyu_0005"] and len(list(read_owner("nyu", tmp_path))) == 5
    assert (np.asarray(rows[0].picture()) == images[2]).all() and (rows[0].metres() == measured[2]).all() and (rows[0].numbers() == labels[2]).all()
    assert (next(read_owner("nyu", tmp_path, "test", depth="depths")).metres() == filled[2]).all() and (measured[2] == 0).any()
    assert rows[0].names() == {0: "unlabelled", 1: "book", 2: "bottle", 3: "cabinet"}


@has_hdf5
def test_broken_nyu(tmp_path):
    import h5py
    owners.nyu(tmp_path)
    row, path = list(read_owner("nyu", tmp_path))[1], tmp_path/"nyu_depth_v2_labeled.mat"
    with h5py.File(path, "r+") as f: f["rawDepths"][1, 7, 3] = np.nan; f["labels"][1, 0, 0] = 99
    fails(r"picture 2: .*labeled.mat: rawDepths\[1\]: pixel \(7, 3\) is nan m", row.metres)
    fails(r"labels\[1\] has class 99; expected 0 to 3", row.numbers)
    with h5py.File(path, "r+") as f: f["rawDepths"][1] = 0
    fails(r"rawDepths\[1\]: no pixel has a depth", row.metres)
    fails("depth is 'raw'; expected rawDepths", lambda: list(read_owner("nyu", tmp_path, depth="raw")))
    owners.cut(tmp_path/"splits.mat"); fails("splits.mat: broken off or damaged", lambda: list(read_owner("nyu", tmp_path, "train")))
    (tmp_path/"splits.mat").write_bytes(b"no"); fails("splits.mat: expected MATLAB's format 5", lambda: list(read_owner("nyu", tmp_path, "train")))
    owners.mat5(tmp_path/"splits.mat", trainNdxs=[6]); fails("splits.mat: picture 6; expected 1 to 5", lambda: list(read_owner("nyu", tmp_path, "train")))
    fails("no 'testNdxs' in it; it has trainNdxs", lambda: list(read_owner("nyu", tmp_path, "test")))
    owners.cut(path, .3); fails("labeled.mat: unreadable HDF5", lambda: list(read_owner("nyu", tmp_path)))
    path.unlink(); fails("labeled.mat: no such file; expected HDF5", lambda: list(read_owner("nyu", tmp_path)))


@pytest.mark.parametrize("compressed", [True, False])
def test_matlabs_older_files(tmp_path, compressed):
    path = owners.mat5(tmp_path/"splits.mat", compressed, trainNdxs=[1, 4, 7], n=[2.5], testNdxs=range(654))
    found = read_mat(path)
    assert {k: v.tolist() for k, v in found.items()} == dict(trainNdxs=[1, 4, 7], n=[2.5], testNdxs=list(range(654)))


def test_ade20k(tmp_path):
    number, thing = owners.ade20k(tmp_path)
    owners.ade20k(tmp_path, "validation", "ADE_val_00000001")
    row = only(read_owner("ade20k", tmp_path, "train"))
    assert (row.numbers() == number).all() and (row.instances() == thing).all() and thing.max() == 4, "two chairs are two objects of one class"
    assert row.names() == {0: "none", 1: "wall", 2978: "wall clock", 471: "chair"} and row.colours()["none"] == (0, 0, 0)
    assert [r.data_id for r in read_owner("ade20k", tmp_path)] == ["ADE_train_00000001", "ADE_val_00000001"]


def test_broken_ade20k(tmp_path):
    owners.ade20k(tmp_path)
    row, at = only(read_owner("ade20k", tmp_path)), tmp_path/"images/ADE/training/home_or_hotel/kitchen"
    listing = at/"ADE_train_00000001.json"
    text = listing.read_text()
    listing.write_text(text.replace("2978", "2977")); fails(r"_seg.png: pixel \(10, 0\) has class 2978; expected one of those that its .json lists: 0, 1, 471, 2977", row.numbers)
    listing.write_text(text.replace('"name_ndx": 471', '"name_ndx": "x"')); fails("ADE_train_00000001.json: object 2 is .*expected 'name' and 'name_ndx'", row.numbers)
    listing.write_text(text[:50]); fails("ADE_train_00000001.json: expected an object 'annotation'", row.numbers)
    listing.unlink(); fails("ADE_train_00000001.json: no such file", row.numbers)
    owners.put(at/"ADE_train_00000001_seg.png", np.zeros(owners.SIZE, np.uint8)); fails("_seg.png: has shape .*expected three channels", row.instances)
    owners.cut(at/"ADE_train_00000001_seg.png", .5); fails("_seg.png.*unreadable picture", row.instances)


def test_ades_150_classes(tmp_path):
    numbers = owners.ade150(tmp_path)
    row = only(read_owner("ade20k-150", tmp_path, "validation"))
    assert (row.numbers() == numbers).all() and row.names()[150] == "flag" and len(ADE150) == 151
    bad = numbers.astype(np.uint8); bad[2, 3] = 200
    owners.put(row.seg, bad); fails(r"ADE_val_00000001.png: pixel \(3, 2\) has class 200; expected 0 to 150", row.numbers)
    owners.put(row.seg, owners.photo(0)); fails("ADE_val_00000001.png: pixels are 'RGB'; expected one channel of numbers", row.numbers)
    palette = Image.fromarray(numbers.astype(np.uint8), "P"); palette.putpalette(list(range(256))*3); palette.save(row.seg)
    assert (row.numbers() == numbers).all(), "an indexed picture is its numbers, not its colours"


def test_wrong_names_say_which_there_are(tmp_path):
    fails("data set 'scannet' is unknown; expected one of hypersim, vkitti, kitti", lambda: next(read_owner("scannet", tmp_path)))
    fails("split is 'dev'; kitti has train, val, selection", lambda: next(read_owner("kitti", tmp_path, "dev")))
    fails("kitti has no option 'camera'; it has listed, raw", lambda: next(read_owner("kitti", tmp_path, camera="scene")))
    for name in OWNERS:
        if name not in ("hypersim", "nyu"): fails(f"no row of {name} in it; expected ", lambda: list(read_owner(name, tmp_path)))


# --- depth, colours, sizes

def test_two_ways_from_rays_to_depth_agree():
    rays = np.random.default_rng(0).uniform(1, 9, (48, 64))
    for fov in (40, 60, 90):
        half = np.tan(np.radians(fov)/2)
        assert along_camera(rays, np.diag([half, half*48/64, -1])) == pytest.approx(along_axis(rays, 32/half))


def test_colours_are_apart_and_stay():
    for n in (2, 8, 41, 151, 895): assert len(set(spread_colours(n))) == n and spread_colours(n)[0] == (0, 0, 0)
    assert spread_colours(8)[1] == (255, 255, 255) and spread_colours(151)[1:3] == ((255, 255, 255), (0, 102, 255))
    with pytest.raises(ValueError, match="n is 5000; expected 1 to 4096"): spread_colours(5000)


def test_maps_are_never_blended(tmp_path):
    rng = np.random.default_rng(0)
    values = np.where(rng.random((37, 53)) < .3, 0, rng.uniform(1, 80, (37, 53)))
    for size in ((53, 37), (20, 11), (100, 90)):
        out = resized_map(values, size)
        assert out.shape == size[::-1] and set(np.unique(out)) <= set(np.unique(values))
    assert resized_map(values, (53, 37)) is not values and (resized_map(values, (53, 37)) == values).all()
    assert smaller(None, (40, 24)) == (40, 24) and smaller(80, (40, 24)) == (40, 24) and smaller(20, (40, 24)) == (20, 12)


def test_a_row_has_its_units_and_its_frame(tmp_path):
    owners.put(tmp_path/"d.png", np.full((375, 1242), 2560, np.uint16)); owners.put(tmp_path/"a.jpg", owners.photo(0, (375, 1242)))
    released = dict(rgb_image="a.jpg", depth_image="d.png")
    write_jsonl(tmp_path/"train.jsonl", [released, released | dict(units_per_metre=512)])
    first, second = read_dataset("vkitti", tmp_path/"train.jsonl")
    assert (first.metres() == np.float32(25.6)).all() and (second.metres() == 5).all()
    assert first.metres().shape == (352, 1216) and first.picture().size == (1216, 352), "as in the released training"
    assert read_dataset("kitti", tmp_path/"train.jsonl", frame=False)[0].metres().shape == (375, 1242) and read_dataset("hypersim", tmp_path/"train.jsonl")[0].metres()[0, 0] == np.float32(2.56)
    fails("train.jsonl:1: field 'seg_image' is missing", lambda: read_dataset("ade20k", tmp_path/"train.jsonl"))
    write_jsonl(tmp_path/"train.jsonl", [released | dict(units_per_metre=0)])
    fails("train.jsonl:1: 'units_per_metre' is 0; expected a number above 0", lambda: read_dataset("nyu", tmp_path/"train.jsonl"))


# --- one format

def snapshot(folder): return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name, units", [("vkitti", 100), ("kitti", 256), ("ade20k", None), ("ade20k-150", None), pytest.param("hypersim", 1000, marks=has_hdf5), pytest.param("nyu", 1000, marks=has_hdf5)])
def test_what_is_converted_is_what_was_read(tmp_path, name, units):
    make = {"ade20k-150": "ade150"}.get(name, name)
    getattr(owners, make)(tmp_path/"there")
    out = convert(name, tmp_path/"there", tmp_path/"out")
    source, rows = list(read_owner(name, tmp_path/"there")), read_amg(out/"amg.jsonl", need=())
    assert [r.data_id for r in rows] == [r.data_id for r in source] and validate(out) == [] and validate(tmp_path/"there", name) == []
    for a, b in zip(source, rows):
        assert (np.asarray(a.picture()) == np.asarray(b.picture())).all()
        assert ("metres" in a.read) == (b.depth is not None) and ("numbers" in a.read) == (b.seg is not None)
        if b.depth: assert (data.load_depth_png(b.depth) == b.metres()).all() and b.units_per_metre == units and np.abs(b.metres() - a.metres()).max() <= .5/units + 1e-6 and ((b.metres() > 0) == (a.metres() > 0)).all()
        if b.seg:
            named = np.array(list(palette_of(out)))[b.classes(palette_of(out))]
            assert (named == np.vectorize(a.names().get)(a.numbers())).all()
        if "instances" in a.read: assert (np.asarray(Image.open(out/"instance"/f"{b.data_id}.png")) == a.instances()).all()


def test_conversion_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    owners.vkitti(tmp_path/"there", frames=3)
    whole = convert("vkitti", tmp_path/"there", tmp_path/"whole", "train")
    script = "import os, sys\nfrom cooper.perceive import data\nsave, n = data._save, iter(range(99))\ndef stop(*a):\n    if next(n) == 9: os._exit(7)\n    save(*a)\ndata._save = stop\ndata.main(sys.argv[1:])"
    arguments = ["convert", "vkitti", str(tmp_path/"there"), str(tmp_path/"out"), "--split", "train"]
    assert subprocess.run([sys.executable, "-c", script, *arguments]).returncode == 7
    before = {k: v for k, v in snapshot(tmp_path/"out").items() if k.endswith((".png", ".jpg"))}
    assert before and main(arguments) == 0
    after = snapshot(tmp_path/"out")
    assert {k: after[k] for k in before} == before, "what was there is not made again"
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in snapshot(whole).items()}
    monkeypatch.setattr(data, "decoded", lambda row: 1/0)
    assert main(arguments) == 0, "nothing is left to do"
    fails("dataset.json: made with other settings: split was 'train' and is 'val'", lambda: convert("vkitti", tmp_path/"there", tmp_path/"out", "val"))


def test_skipping_is_counted_and_told(tmp_path):
    owners.vkitti(tmp_path/"there", ("Scene02",))
    owners.cut(tmp_path/"there/Scene02/fog/frames/depth/Camera_1/depth_00000.png")
    fails("depth_00000.png.*unreadable picture", lambda: convert("vkitti", tmp_path/"there", tmp_path/"out"))
    with pytest.warns(UserWarning, match="kept 3 rows, skipped 1; the first: .*depth_00000.png"): out = convert("vkitti", tmp_path/"there", tmp_path/"out", on_bad="skip")
    assert [r["data_id"] for r in read_jsonl(out/"skipped.jsonl")] == ["Scene02_fog_Camera_1_00000"] and json.loads((out/"dataset.json").read_text())["skipped"] == 1
    assert [r.data_idx for r in read_amg(out/"amg.jsonl")] == [0, 1, 2] and validate(out) == []
    fails("on_bad is 'no'; expected raise or skip", lambda: convert("vkitti", tmp_path/"there", tmp_path/"out", on_bad="no"))


def test_smaller_framed_and_coloured_by_object(tmp_path):
    owners.kitti(tmp_path/"kitti", ("train",))
    row = read_amg(convert("kitti", tmp_path/"kitti", tmp_path/"small", frame=True, longest=304)/"amg.jsonl", need=())[0]
    assert row.metres().shape == (88, 304) and set(np.unique(row.metres())) == {0, 10} and row.picture().size == (304, 88)
    assert read_dataset("kitti", tmp_path/"small/amg.jsonl")[0].metres().shape == (88, 304), "it is cut already"
    owners.ade20k(tmp_path/"ade")
    out = convert("ade20k", tmp_path/"ade", tmp_path/"objects", segments="instance")
    assert len(np.unique(np.asarray(Image.open(out/"seg/ADE_train_00000001.png")).reshape(-1, 3), axis=0)) == 5 and palette_of(out) == {}
    fails("kitti has no instances", lambda: convert("kitti", tmp_path/"kitti", tmp_path/"no", segments="instance"))


def test_datasets_reads_what_was_converted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    owners.vkitti(tmp_path/"there", ("Scene02",))
    out = convert("vkitti", tmp_path/"there", tmp_path/"out")
    stream = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", streaming=True, cache_dir=str(tmp_path/"cache"))
    row = next(iter(stream))
    assert row["image"].size == (40, 24) and row["data_id"] == "Scene02_fog_Camera_0_00000" and row["units_per_metre"] == 100
    assert (np.asarray(row["depth"]) == np.asarray(Image.open(out/"depth/Scene02_fog_Camera_0_00000.png"))).all()


# --- faults

def test_validate_tells_all_of_them(tmp_path, capsys):
    owners.vkitti(tmp_path/"there", ("Scene02",), frames=3)
    out = convert("vkitti", tmp_path/"there", tmp_path/"out")
    rows = read_jsonl(out/"amg.jsonl")
    owners.put(out/"tall.png", np.ones((25, 40), np.uint16)); owners.put(out/"empty.png", np.zeros(owners.SIZE, np.uint16)); owners.put(out/"odd.png", np.full((*owners.SIZE, 3), 7, np.uint8))
    owners.cut(out/rows[4]["rgb_image"], .3)
    changed = [rows[0] | dict(depth_image="tall.png", seg_image="odd.png"), rows[1] | dict(data_id=rows[0]["data_id"], data_idx="1"), rows[2] | dict(depth_image="empty.png"), rows[3] | dict(units_per_metre=-1), rows[4],
               {k: v for k, v in rows[5].items() if not k.endswith("_image")}]
    (out/"amg.jsonl").write_text("\n".join([*map(json.dumps, changed), "[1]", '{"rgb']) + "\n")
    found = [f.split("amg.jsonl:")[1] for f in validate(out)]
    expected = ["1: .*odd.png: pixel .0, 0. is .7, 7, 7., far", "1: .*tall.png: depth is 40x25 pixels, its picture", "2: 'data_idx' is '1'", "2: 'data_id' is .*as in line 1", "3: .*empty.png: no pixel has a depth",
                "4: 'units_per_metre' is -1", "5: 'rgb_image' is .*unreadable picture", "6: field 'rgb_image' is missing", "6: no field 'depth_image' or 'seg_image'", "7: is a list; expected an object", "8: not JSON"]
    import re
    assert len(found) == len(expected) and all(re.match(e, f) for e, f in zip(expected, sorted(found, key=lambda f: f[0]))), found
    assert main(["validate", str(out)]) == 1 and len(capsys.readouterr().out.splitlines()) == 11
    assert main(["validate", str(tmp_path/"nowhere.jsonl")]) == 1 and "no such file" in capsys.readouterr().err
    (out/"amg.jsonl").write_text(""); assert validate(out) == [f"{out/'amg.jsonl'}: no row in it"]


def test_validate_walks_an_owners_folder(tmp_path, capsys):
    owners.vkitti(tmp_path, ("Scene01",))
    owners.cut(tmp_path/"Scene01/fog/frames/depth/Camera_0/depth_00001.png"); owners.cut(tmp_path/"Scene01/fog/frames/rgb/Camera_1/rgb_00000.jpg", .3)
    faults = validate(tmp_path, "vkitti")
    assert len(faults) == 2 and "depth_00001.png" in faults[0] and "rgb_00000.jpg" in faults[1]
    assert main(["validate", str(tmp_path), "--name", "vkitti", "--limit", "1"]) == 0
    assert main(["convert", "vkitti", str(tmp_path), str(tmp_path/"out"), "--depth", "depths"]) == 1 and "vkitti has no option 'depth'" in capsys.readouterr().err


def test_lines_are_read_one_by_one(tmp_path):
    (tmp_path/"a.jsonl").write_text('{"a": 1}\n\n3\n{"b"\n')
    assert [(n, row, bool(fault)) for n, row, fault in lines_of(tmp_path/"a.jsonl")] == [(1, {"a": 1}, False), (3, None, True), (4, None, True)]


def test_long_palettes_are_looked_up(tmp_path):
    palette = dict(zip(map(str, range(4096)), spread_colours(4096)))
    numbers = np.random.default_rng(0).integers(0, 4096, (64, 64))
    owners.put(tmp_path/"s.png", np.array(list(palette.values()), np.uint8)[numbers])
    assert (load_classes(tmp_path/"s.png", palette) == numbers).all()
    owners.put(tmp_path/"s.png", owners.photo(0, (64, 64))); fails("far from every colour", lambda: load_classes(tmp_path/"s.png", {"a": (0, 0, 0)}))


# --- codes

@pytest.mark.parametrize("codec", list(DEPTH_CODECS))
def test_codes_come_back(codec):
    near, far = .25, 80.
    code = np.linspace(0, 1, 999)
    c = DEPTH_CODECS[codec]
    assert c.encode(c.decode(code, near, far), near, far) == pytest.approx(code) and (np.diff(c.decode(code, near, far)) > 0).all()
    read = DepthMap.from_dict(json.loads(json.dumps(DepthMap([[1., 90.]], near, far, codec=codec).to_dict())))
    assert read.codec == codec and read.code[0, 1] == 1


def test_what_was_drawn_before_is_read_as_before():
    rng = np.random.default_rng(0)
    pixels, old = rng.uniform(-1.1, 1.1, (3, 9, 9)).astype(np.float32), dict(near=0., far=12.)
    expected = np.clip(pixels*np.float32(.5) + np.float32(.5), 0, 1).mean(0)*12.
    assert (Depth(old).to_map(pixels).values == expected.astype(np.float32)).all() and Depth(old).codec.name == "linear"
    assert "codec" not in Depth(old).of(expected).to_dict() and DepthMap.from_dict({k: v for k, v in Depth(old).of(expected).to_dict().items()}).codec == "linear"
    assert DEPTH_RANGES["hypersim"] == dict(near=1e-5, far=65.) and DEPTH_RANGES["vkitti"] == DEPTH_RANGES["kitti"] == dict(near=1e-5, far=80.) and DEPTH_RANGES["nyu"] == dict(near=1e-3, far=10.)


def test_a_protocol_may_name_a_code():
    protocol = tiny_protocol(.25, 80, {"none": (0, 0, 0)})
    protocol["modalities"]["depth"]["codec"] = "log"
    assert check_protocol(protocol)["modalities"]["depth"]["codec"] == "log"


def test_a_log_code_errs_alike_at_every_distance():
    rng = np.random.default_rng(0)
    errors = {name: [round_trip(rng.uniform(low, 2*low, (40, 40)), options) for low in (1, 5, 30)] for name, options in (("log", DEPTH_RANGES["log"]), ("linear", DEPTH_RANGES["kitti"]))}
    assert max(errors["log"]) < 1.1*min(errors["log"]) and errors["linear"][0] > 20*errors["linear"][2] and errors["log"][0] < errors["linear"][0]/8
    holes = np.where(rng.random((40, 40)) < .5, 0, 3.)
    assert round_trip(holes, DEPTH_RANGES["log"]) < .012 and round_trip(np.where(holes > 0, rng.uniform(2, 4, holes.shape), 0), dict(codec="affine")) < .01


def test_speed_counts_rows(tmp_path):
    owners.vkitti(tmp_path)
    found = rows_per_second(read_owner("vkitti", tmp_path), 60)
    assert found["rows"] == 8 and found["rows_per_second"] == pytest.approx(8/found["seconds"])
    assert rows_per_second([AmgRow("a", None)]*5, 60, lambda row: None)["rows"] == 5
