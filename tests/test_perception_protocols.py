"Crops, ranges, alignments and matchings against pixels counted by hand and against every other way to match."
import itertools
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import cooper, owners
from cooper.core import read_jsonl
from cooper.model.modalities import DepthMap, SegmentMap
from cooper.perceive import protocols
from cooper.perceive.data import along_axis, convert, kitti_frame
from cooper.perceive.metrics import depth_metrics
from cooper.perceive.protocols import (ALIGNMENTS, CROPS, PROTOCOLS, Crop, DepthProtocol, aligned, best_matching, colour_regions, measure_classes, measure_depth,
                                       measure_depths, measure_folder, measure_regions, open_maps, protocol_of, resized_classes)

RAMP = np.linspace(1, 9, 480*640).reshape(480, 640)


# --- crops

def published(name, height, width): # as the owners' code has them: int() of floats
    a, b, c, d = dict(eigen=(0.3324324, 0.91351351, 0.0359477, 0.96405229), garg=(0.40810811, 0.99189189, 0.03594771, 0.96405229))[name]
    return int(a*height), int(b*height), int(c*width), int(d*width)


@pytest.mark.parametrize("shape", [(352, 1216), (375, 1242), (370, 1224), (374, 1238), (376, 1241), (176, 608), (512, 1760), (192, 640)])
@pytest.mark.parametrize("name", ["eigen", "garg"])
def test_kittis_crops_at_every_resolution(name, shape):
    edges = CROPS[name].edges(shape)
    assert edges == published(name, *shape)
    mask = CROPS[name].mask(shape)
    assert mask.sum() == (edges[1] - edges[0])*(edges[3] - edges[2]) and mask[edges[0], edges[2]] and not mask[edges[0] - 1].any() and not mask[:, edges[3]].any()


@pytest.mark.parametrize("scale", [1, 2, 3, Fraction(1, 2), Fraction(1, 4), Fraction(8, 5)])
def test_nyus_crop_is_the_same_part_of_any_picture(scale):
    shape = int(480*scale), int(640*scale)
    found = CROPS["nyu"].edges(shape)
    assert found == tuple(int(n*scale) for n in (45, 471, 41, 601))
    assert abs(CROPS["nyu"].mask(shape).mean() - 426*560/480/640) < .01


def test_the_size_that_a_generator_draws_at():
    assert CROPS["nyu"].edges((512, 688)) == (48, 502, 44, 646) # 45·512/480 = 48, 471·512/480 = 502.4, 41·688/640 = 44.075, 601·688/640 = 646.075; the reference: 45, 471, 41, 601
    assert CROPS["none"].mask((3, 5)).all() and CROPS["eigen"].edges((352, 1216)) != CROPS["nyu"].edges((352, 1216))
    with pytest.raises(ValueError, match="crop eigen: nothing is left of a map of 2 x 1"): CROPS["eigen"].edges((2, 1))


def test_kittis_frame():
    for shape in ((375, 1242), (370, 1224), (352, 1216), (376, 1241)):
        whole = np.arange(shape[0]*shape[1]).reshape(shape)
        cut = kitti_frame(whole)
        assert cut.shape == (352, 1216) and (cut == whole[shape[0] - 352:, (shape[1] - 1216)//2:(shape[1] - 1216)//2 + 1216]).all()
    assert kitti_frame(np.zeros((375, 1242, 3))).shape == (352, 1216, 3)
    for bad in ((351, 1242), (375, 1215)):
        with pytest.raises(ValueError, match="expected at least 352 x 1216: cut before resizing"): kitti_frame(np.zeros(bad))


# --- depth

@pytest.mark.parametrize("name, raw, metres", [("nyu", 2500, 2.5), ("kitti", 2560, 10.), ("vkitti", 2560, 25.6), ("hypersim", 2560, 2.56)])
def test_raw_values_become_metres(name, raw, metres):
    p = PROTOCOLS[name]
    got = p.metres(np.full((375, 1242), raw, np.uint16))
    assert got.shape == ((352, 1216) if p.frame else (375, 1242)) and (got == metres).all()
    with pytest.raises(ValueError, match=f"{name}: raw depth is float64; expected whole numbers"): p.metres(np.ones((375, 1242)))


@pytest.mark.parametrize("name, far", [("nyu", 10), ("kitti", 80), ("kitti-garg", 80), ("vkitti", 80)])
def test_only_what_was_measured_in_range_counts(name, far):
    p, shape = PROTOCOLS[name], (352, 1216)
    top, bottom, left, right = CROPS[p.crop].edges(shape)
    truth = np.full(shape, far/2.)
    truth[top, left], truth[top, left + 1], truth[top, left + 2], truth[top, left + 3] = 0, far, np.nan, np.inf
    whole = (bottom - top)*(right - left)
    assert p.valid(truth).sum() == whole - 4
    assert measure_depth(np.full(shape, far/2.), truth, name)["n"] == whole - 4
    pred = truth.copy(); pred[~p.valid(truth)] = np.nan # what is drawn where nothing counts does not matter
    assert measure_depth(pred, truth, name)["absrel"] == 0.


def test_depth_by_hand():
    p = DepthProtocol("four", 1, 0., 10.)
    m = measure_depth([[1., 2.], [3., 5.]], [[1., 2.], [4., 4.]], p)
    d = np.log([1, 1, 3/4, 5/4])
    expected = dict(absrel=1/8, sqrel=1/8, rmse=.5**.5, log10=abs(d).mean()/np.log(10), rmse_log=(d**2).mean()**.5, silog=100*d.std(), delta1=.5, delta2=1., delta3=1., i_rmse=((1/144 + 1/400)/4)**.5, n=4)
    assert m == pytest.approx(expected) # 4/3 and 5/4 are not below 1.25
    far = measure_depth([[1., 99.]], [[1., 9.]], p)
    assert far["absrel"] == pytest.approx((0 + 1/9)/2) # clipped to the range


def test_alignment_by_hand():
    truth = RAMP
    assert measure_depth(truth/3 + 7, truth, "nyu", "scale_shift")["absrel"] < 1e-6 < .1 < measure_depth(truth/3 + 7, truth, "nyu")["absrel"]
    assert measure_depth(truth*.25, truth, "nyu", "median")["absrel"] < 1e-6
    assert measure_depth(5/truth + 2, truth, "nyu", "disparity")["absrel"] < 1e-4 < .05 < measure_depth(5/truth + 2, truth, "nyu", "scale_shift")["absrel"]
    # least squares: of 0, 1, 2 to 1, 2, 6: slope 5/2, level 1/2; so 0.5, 3, 5.5
    assert aligned(np.array([0., 1, 2]), np.array([1., 2, 6]), "scale_shift") == pytest.approx([.5, 3., 5.5])
    flat = measure_depth(np.ones_like(truth), truth, "nyu", "scale_shift") # one grey: the mean depth of what counts
    used = PROTOCOLS["nyu"].valid(truth)
    assert flat["rmse"] == pytest.approx(truth[used].std(), rel=1e-6)
    assert measure_depth(-truth, truth, "nyu", "scale_shift")["absrel"] < 1e-6 # near and far exchanged is a scale too: the published fit allows it
    with pytest.raises(ValueError, match="expected one of None, median, scale_shift, disparity"): measure_depth(truth, truth, "nyu", "affine")
    with pytest.raises(ValueError, match="the median of the drawing is"): measure_depth(-truth, truth, "nyu", "median")
    assert len(ALIGNMENTS) == 4


def test_only_counted_pixels_are_fitted():
    truth, pred = RAMP.copy(), RAMP*2 + 1
    truth[:45] = 1000.; pred[:45] = -7; pred[300:, 601:] = 50 # outside the crop, or out of range
    assert measure_depth(pred, truth, "nyu", "scale_shift")["absrel"] < 1e-6


def test_alignment_as_the_other_metric_has_it():
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 8, (40, 50)); pred = truth*.3 + rng.normal(0, .05, truth.shape)
    ours, theirs = measure_depth(pred, truth, DepthProtocol("open", 1, 0., 100.), "scale_shift"), depth_metrics(pred, truth, align="scale_shift")
    assert {k: ours[k] for k in theirs} == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("shape", [(120, 160), (240, 320), (512, 688), (960, 1280)])
def test_a_drawing_of_another_size_is_brought_to_the_truth(shape):
    y, x = (np.arange(n) + .5 for n in shape)
    pred = 2 + 3*(y[:, None]/shape[0]) + 2*(x[None]/shape[1])
    y, x = np.arange(480) + .5, np.arange(640) + .5
    m = measure_depth(pred, 2 + 3*(y[:, None]/480) + 2*(x[None]/640), "nyu")
    assert m["absrel"] < 2e-3 and m["n"] == 426*560 # the truth keeps its pixels


def test_bad_maps_are_named():
    with pytest.raises(ValueError, match="depth protocol 'nyuv2' is unknown; expected one of nyu, kitti"): measure_depth(RAMP, RAMP, "nyuv2")
    with pytest.raises(ValueError, match="no pixel of this map lies between 0.001 and 10 m"): measure_depth(RAMP, RAMP*1000, "nyu")
    with pytest.raises(ValueError, match="the drawing has 1 values that are NaN"): bad = RAMP.copy(); bad[200, 200] = np.nan; measure_depth(bad, RAMP, "nyu")
    with pytest.raises(ValueError, match="second: nyu: no pixel"): measure_depths(dict(first=(RAMP, RAMP), second=(RAMP, RAMP*0)), "nyu")
    with pytest.raises(ValueError, match="depth protocol 'sunrgbd' is unknown"): open_maps("sunrgbd", ".")
    with pytest.raises(ValueError, match="a: comes twice"): measure_depths([("a", (RAMP, RAMP))]*2, "nyu")
    with pytest.raises(ValueError, match="a: comes twice"): measure_classes([("a", (np.ones((2, 2), int),)*2)]*2)


def test_a_frame_that_was_not_cut_is_refused():
    for shape in ((375, 1242), (1216, 352), (352, 1242)):
        truth = np.full(shape, 9.)
        with pytest.raises(ValueError, match=f"kitti: the truth is {shape[0]} x {shape[1]}; expected the frame of 352 x 1216"): measure_depth(truth, truth, "kitti")
    for shape in ((352, 1216), (176, 608), (300, 1036)): assert measure_depth(np.full(shape, 9.), np.full(shape, 9.), "vkitti")["absrel"] == 0. # 300·1216/352 = 1036.4
    with pytest.raises(ValueError, match=r"nyu: the truth has shape \(480, 640, 1\)"): measure_depth(RAMP, RAMP[..., None], "nyu")


def test_rays_are_no_depths():
    depth, fx, fy, cx, cy = np.full((6, 8), 5.), 4., 5., 3., 2.
    rays = depth*np.sqrt(1 + ((np.arange(8) - cx)/fx)**2 + ((np.arange(6)[:, None] - cy)/fy)**2)
    assert along_axis(rays, (fx, fy), (cx, cy)) == pytest.approx(depth) and rays.max() > 1.5*depth.max() and along_axis(rays[2:3, 3:4], fx) == pytest.approx(rays[2:3, 3:4])
    for name in ("nyu", "kitti-garg"):
        with pytest.raises(ValueError, match="the truth is measured along the ray; expected along the axis: convert it with along_axis"): measure_depth(RAMP, RAMP, name, distance="ray")
    with pytest.raises(ValueError, match="second: nyu: the truth is measured along the ray|first: nyu"): measure_depths(dict(first=(RAMP, RAMP)), "nyu", distance="ray")
    with pytest.raises(ValueError, match="distance is 'z'; expected axis or ray"): measure_depth(RAMP, RAMP, "nyu", distance="z")
    with pytest.raises(ValueError, match="focal is 0; expected above 0"): along_axis(RAMP, 0)
    assert "along the optical axis" in measure_depths(dict(a=(RAMP, RAMP)), "nyu")["note"]


def test_a_set_is_the_mean_over_pictures_not_over_pixels():
    half = RAMP.copy(); half[:300] = 0 # fewer pixels, the same weight
    got = measure_depths(dict(a=(RAMP, RAMP), b=(half*.8 + (half == 0), half)), "nyu")
    assert got["mean"]["absrel"] == pytest.approx(.1) and got["mean"]["pictures"] == 2 and got["rows"]["b"]["n"] == (471 - 300)*560
    assert "2 pictures, the published numbers have 654" in got["note"] and "not aligned" in got["note"] and protocol_of("nyu") is PROTOCOLS["nyu"]


def test_every_protocol_names_a_crop_and_its_source():
    for p in PROTOCOLS.values(): assert p.crop in CROPS and p.source and 0 < p.near < p.far
    assert Crop("half", Fraction(0), Fraction(1, 2), Fraction(0), Fraction(1)).mask((4, 2)).sum() == 4


# --- segments

def test_classes_by_hand():
    truth, drawn = np.array([[1, 1, 2, 0], [1, 1, 2, 0]]), np.array([[1, 1, 1, 2], [1, 2, 2, 0]])
    m = measure_classes(dict(a=(drawn, truth)), 3)
    assert m["iou"] == {1: pytest.approx(3/5), 2: pytest.approx(1/3), 3: None} and m["miou"] == pytest.approx((3/5 + 1/3)/2)
    assert m["pixel_accuracy"] == pytest.approx(4/6) and m["mean_accuracy"] == pytest.approx((3/4 + 1/2)/2) and m["n"] == 6


def test_classes_are_counted_over_the_set_not_picture_by_picture():
    one, two = np.ones((2, 2), int), np.full((2, 2), 2)
    mixed = measure_classes(dict(a=(one, one), b=(one, two)), 2)
    assert mixed["iou"] == {1: .5, 2: 0.} and mixed["pictures"] == 2 # the mean of the pictures' own would be another number
    nothing = measure_classes(dict(a=(np.zeros((2, 2), int), one)), 2)
    assert nothing["miou"] == 0. and nothing["iou"][2] is None # drawn as nothing: wrong, and no class more
    with pytest.raises(ValueError, match="no pixel has a class"): measure_classes(dict(a=(one, one*0)), 2)
    with pytest.raises(ValueError, match="b: truth has class 3; expected 0 to 2"): measure_classes(dict(a=(one, one), b=(one, one*3)), 2)
    with pytest.raises(ValueError, match="a: pred has shape"): measure_classes(dict(a=(one[:1], one)), 2)
    assert len(measure_classes(dict(a=(one, one)))["iou"]) == 150


def test_the_matching_is_the_best_there_is():
    rng = np.random.default_rng(0)
    for _ in range(150):
        rows, columns = map(int, rng.integers(1, 6, 2))
        worth = np.round(rng.random((rows, columns)), int(rng.integers(1, 9)))
        got = best_matching(worth)
        assert len(got) == min(rows, columns) == len({r for r, _ in got}) == len({c for _, c in got})
        low = worth if rows <= columns else worth.T
        best = max(sum(low[r, c] for r, c in enumerate(order)) for order in itertools.permutations(range(low.shape[1]), low.shape[0]))
        assert sum(worth[r, c] for r, c in got) == pytest.approx(best)
    assert best_matching(np.zeros((3, 0))) == []


def test_regions_by_hand():
    truth = np.array([[1, 1, 1, 2, 2, 3]]*2)
    right = measure_regions(np.array([[9, 9, 9, 4, 4, 7]]*2), truth)
    assert (right["matched"], right["best"], right["covering"], right["regions"], right["drawn"]) == (1., 1., 1., 3, 3)
    flat = measure_regions(np.ones_like(truth), truth)
    assert [flat[k] for k in ("matched", "best", "covering")] == pytest.approx([1/6, 1/3, (3*3/6 + 2*2/6 + 1/6)/6])
    split = measure_regions(np.array([[1, 1, 2, 3, 3, 4]]*2), truth) # region 1 in two parts
    assert [split[k] for k in ("matched", "best", "covering")] == pytest.approx([(2/3 + 2)/3, (2/3 + 2)/3, (3*2/3 + 3)/6])
    nobody = truth.copy(); nobody[:, 5] = 0 # nobody knows what is there
    assert measure_regions(np.array([[9, 9, 9, 4, 4, 4]]*2), nobody)["matched"] == 1.
    assert measure_regions(np.zeros_like(truth), truth) == dict(matched=0., best=0., covering=0., regions=3, drawn=0)
    with pytest.raises(ValueError, match="no pixel belongs to a true region"): measure_regions(truth, truth*0)
    with pytest.raises(ValueError, match="expected the same: resize the drawing"): measure_regions(truth[:1], truth)
    with pytest.raises(ValueError, match="expected whole numbers"): measure_regions(truth/2, truth)


def test_numbers_of_regions_mean_nothing():
    rng = np.random.default_rng(1)
    drawn, truth = rng.integers(1, 6, (20, 20)), rng.integers(1, 5, (20, 20))
    names = np.array([0, 40, 7, 1000, 2, 9])
    assert measure_regions(names[drawn], truth) == measure_regions(drawn, truth)


def test_colours_become_regions_whatever_jpeg_did_to_them():
    truth = np.ones((64, 64), int); truth[:, 32:] = 2; truth[40:, 10:50] = 3
    colours = np.array([[0, 0, 0], [200, 30, 30], [30, 30, 200], [40, 180, 60]], np.uint8)
    picture = Image.fromarray(colours[truth])
    noisy = np.clip(np.asarray(picture, int) + np.random.default_rng(0).normal(0, 4, (64, 64, 3)), 0, 255).astype(np.uint8)
    blurred = np.asarray(picture.resize((32, 32), Image.BICUBIC).resize((64, 64), Image.BICUBIC))
    assert measure_regions(colour_regions(picture), truth)["matched"] == 1.
    assert measure_regions(colour_regions(noisy, 64), truth)["matched"] > .99 and measure_regions(colour_regions(blurred, least=.05), truth)["matched"] > .9
    with pytest.raises(ValueError, match="expected an RGB picture"): colour_regions(truth)


# --- folders

def perfect(name, folder, **options): # a model that knows the truth, and draws it at half the size and in other units
    truth = {np.asarray(p.picture).tobytes(): p.truth for p in open_maps(name, folder, **options)}
    def draw(pictures):
        known = [truth[np.asarray(p).tobytes()] for p in pictures]
        return [DepthMap(np.where(t > 0, t, 1), 0, 999) for t in known] if name != "ade20k" else known
    return draw


@pytest.mark.parametrize("name, count", [("kitti", 4), ("kitti-garg", 4), ("vkitti", 4)])
def test_folders_of_streets(tmp_path, name, count):
    data = name.split("-")[0]
    owners.kitti(tmp_path) if data == "kitti" else owners.vkitti(tmp_path, size=(370, 1224))
    pairs = list(open_maps(name, tmp_path))
    assert len(pairs) == count and all(p.picture.size[::-1] == p.truth.shape == ((352, 1216) if PROTOCOLS[name].frame else (375, 1242)) for p in pairs)
    if data == "vkitti": assert pairs[0].name.startswith("Scene01_"), "Scene01 is for measuring"
    found = measure_folder(lambda pictures: [np.full((88, 304), 12.) for _ in pictures], name, tmp_path, batch_size=3)
    assert found["mean"]["pictures"] == count and found["mean"]["absrel"] == pytest.approx(.2 if data == "kitti" else 1 - 12/12.34, abs=.005)


def test_a_converted_folder_is_measured_like_the_owners(tmp_path):
    owners.kitti(tmp_path/"there", ("val",))
    ours = {frame: convert("kitti", tmp_path/"there", tmp_path/f"out{frame}", frame=frame) for frame in (False, True)}
    for out in ours.values():
        for a, b in zip(open_maps("kitti", tmp_path/"there"), open_maps("kitti", out), strict=True): assert a.name == b.name and (np.asarray(a.picture) == np.asarray(b.picture)).all() and (a.truth == b.truth).all()
    with pytest.raises(ValueError, match="'split' was chosen when the folder was converted"): list(open_maps("kitti", ours[True], split="val"))


def test_folders_of_rooms_and_of_ade20k(tmp_path):
    pytest.importorskip("h5py")
    _, measured, filled, _ = owners.nyu(tmp_path/"nyu", size=(120, 160))
    pairs = list(open_maps("nyu", tmp_path/"nyu"))
    assert [p.name for p in pairs] == ["nyu_0003", "nyu_0005"] and (pairs[0].truth == measured[2]).all()
    assert (next(open_maps("nyu", tmp_path/"nyu", depth="depths")).truth == filled[2]).all()
    calls, know = [], perfect("nyu", tmp_path/"nyu")
    both = measure_folder(lambda pictures: calls.append(len(pictures)) or know(pictures), "nyu", tmp_path/"nyu", (None, "scale_shift"), batch_size=1)
    assert list(both) == [None, "scale_shift"] and calls == [1, 1] and "aligned: scale_shift" in both["scale_shift"]["note"], "drawn once, measured twice"
    found = both[None]
    assert found["mean"]["absrel"] < 1e-6 and found["rows"]["nyu_0003"]["n"] == (PROTOCOLS["nyu"].valid(measured[2])).sum() < PROTOCOLS["nyu"].valid(filled[2]).sum()
    owners.hypersim(tmp_path/"hypersim")
    with pytest.raises(ValueError, match="no row of hypersim, split 'test'"): list(open_maps("hypersim", tmp_path/"hypersim"))
    assert measure_folder(perfect("hypersim", tmp_path/"hypersim", split="val", limit=1), "hypersim", tmp_path/"hypersim", split="val", limit=1)["mean"]["absrel"] < 1e-6
    owners.ade150(tmp_path/"ade")
    for folder in (tmp_path/"ade", convert("ade20k-150", tmp_path/"ade", tmp_path/"converted")):
        found = measure_folder(perfect("ade20k", folder), "ade20k", folder)
        assert found["miou"] == 1. and found["pictures"] == 1
    assert measure_folder(lambda pictures: [np.full((12, 20), 7)], "ade20k", tmp_path/"ade")["iou"][7] < .05
    assert measure_folder(lambda pictures: [SegmentMap(np.full((12, 20), 1), {"nothing": (0, 0, 0), "wall": (9, 9, 9)})], "ade20k", tmp_path/"ade")["iou"][1] > 0
    flat = measure_folder(lambda pictures: [Image.new("RGB", (20, 12), "red")], "ade20k", tmp_path/"ade")
    assert flat["rows"]["ADE_val_00000001"]["drawn"] == 1 and "without their names" in flat["note"], "pictures are measured by their regions"
    assert resized_classes(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2]]*2


def test_a_model_that_draws_too_little_is_an_error(tmp_path):
    owners.vkitti(tmp_path, size=(370, 1224))
    with pytest.raises(ValueError, match="zip"): measure_folder(lambda pictures: [RAMP], "vkitti", tmp_path)


@pytest.mark.parametrize("unit, lines", [("m", 2), ("relative", 1)])
def test_a_checkpoint_is_measured_from_a_shell(tmp_path, monkeypatch, capsys, unit, lines):
    owners.vkitti(tmp_path/"there", ("Scene01",), size=(370, 1224))
    class Checkpoint:
        processor = type("P", (), dict(protocol=dict(modalities=dict(depth=dict(near=0., far=80., unit=unit)))))
        def perceive(self, pictures, name): return [DepthMap(np.full((44, 152), 12.34), 0, 80, unit) for _ in pictures]
    monkeypatch.setattr(cooper, "load", lambda where: Checkpoint(), raising=False)
    assert protocols.main(["vkitti", str(tmp_path/"there"), "--checkpoint", "mine", "--out", str(tmp_path/"found.json"), "--limit", "2"]) == 0
    printed, found = capsys.readouterr().out.splitlines(), read_jsonl(tmp_path/"found.json")[0]
    assert len(printed) == lines == len(found) and "aligned: scale_shift" in printed[-1] and "2 pictures" in printed[-1]
    assert found["scale_shift"]["mean"]["absrel"] < 1e-3 and ("None" in found) == (unit == "m"), "what has no unit is not taken at its word"
    assert protocols.main(["vkitti", str(tmp_path/"nowhere")]) == 1 and "no such folder" in capsys.readouterr().err
