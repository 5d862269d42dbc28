"Depth and segmentation metrics against cases worked by hand, and against their own invariances."
import math
import numpy as np
import pytest
from cooper.perceive.metrics import ConfusionMatrix, average, depth_metrics, mean_depth_baseline, metric, scale_and_shift, segmentation_metrics

def test_depth_by_hand():
    "truth 1, 2, 4, 8 m; prediction 1, 3, 4, 4 m."
    m = depth_metrics([[1, 3], [4, 4]], [[1, 2], [4, 8]])
    d = [0, math.log(1.5), 0, -math.log(2)]
    assert m["absrel"] == pytest.approx((0 + 1/2 + 0 + 4/8)/4)
    assert m["sqrel"] == pytest.approx((0 + 1/2 + 0 + 16/8)/4)
    assert m["rmse"] == pytest.approx(math.sqrt((1 + 16)/4))
    assert m["log10"] == pytest.approx((math.log10(1.5) + math.log10(2))/4)
    assert m["rmse_log"] == pytest.approx(math.sqrt((d[1]**2 + d[3]**2)/4))
    assert m["silog"] == pytest.approx(100*math.sqrt((d[1]**2 + d[3]**2)/4 - ((d[1] + d[3])/4)**2))
    assert (m["delta1"], m["delta2"], m["delta3"]) == (.5, .75, .75)  # ratios 1, 1.5, 1, 2 against 1.25, 1.5625, 1.953
    assert m["n"] == 4

def test_perfect_depth():
    m = depth_metrics(np.full((3, 3), 2.5), np.full((3, 3), 2.5))
    assert all(m[k] == 0 for k in ("absrel", "sqrel", "rmse", "log10", "rmse_log", "silog")) and m["delta1"] == 1

def test_valid_mask_leaves_pixels_out():
    truth, pred, valid = np.array([[1., 0.], [2., 4.]]), np.array([[1., np.nan], [2., 5.]]), np.array([[True, False], [True, True]])
    assert depth_metrics(pred, truth, valid) == depth_metrics([1, 2, 5], [1, 2, 4])

def test_alignment_undoes_scale_and_shift():
    truth = np.random.default_rng(0).uniform(2, 10, (8, 8))
    assert depth_metrics(.3*truth + .1, truth, align="scale_shift")["absrel"] < 1e-9
    assert depth_metrics(10 - .3*truth, truth, align="scale_shift")["absrel"] < 1e-9  # least squares also flips: inverse maps need care
    constant = depth_metrics(np.ones((8, 8)), truth, align="scale_shift")
    assert constant["rmse"] == pytest.approx(truth.std())
    noisy = truth + np.random.default_rng(1).normal(0, 1, truth.shape)
    slope, intercept = np.polyfit(noisy.ravel(), truth.ravel(), 1)
    assert scale_and_shift(noisy.ravel(), truth.ravel()) == pytest.approx((slope, intercept))

def test_silog_is_blind_to_scale_only():
    truth = np.random.default_rng(0).uniform(2, 10, 100)
    pred = truth*np.random.default_rng(1).uniform(.9, 1.1, 100)
    assert depth_metrics(pred, truth)["silog"] == pytest.approx(depth_metrics(3*pred, truth)["silog"])
    assert depth_metrics(3*pred, truth)["absrel"] > 1

@pytest.mark.parametrize("pred, truth, options, message", [
    (np.ones((2, 2)), np.ones((2, 3)), {}, r"shape \(2, 2\), truth \(2, 3\)"),
    ([1, np.nan], [1, 1], {}, "pred has 1 values that are NaN"),
    ([1, np.inf], [1, 1], {}, "pred has 1 values that are NaN or infinite"),
    ([1, 1], [np.nan, 1], {}, "truth has 1 values that are NaN"),
    ([1, 1], [0, 1], {}, "truth is 0.0 m"), ([-1, 1], [1, 1], {}, "pred is -1.0 m"),
    ([1, 1], [1, 1], dict(valid=[1, 0]), "valid is int64"), ([1, 1], [1, 1], dict(valid=np.zeros(2, bool)), "no valid pixel"),
    ([1, 1], [1, 1], dict(align="median"), "align is 'median'")])
def test_bad_depth_is_refused(pred, truth, options, message):
    with pytest.raises(ValueError, match=message): depth_metrics(pred, truth, **options)

def test_average_is_over_pictures():
    a, b = depth_metrics([2.], [1.]), depth_metrics(np.ones(9), np.ones(9))
    assert average([a, b])["absrel"] == pytest.approx(.5) and average([a, b])["n"] == 10 and average([a, b])["pictures"] == 2
    with pytest.raises(ValueError, match="nothing to average"): average([])

def test_mean_depth_baseline():
    maps = np.random.default_rng(0).uniform(2, 10, (5, 4, 4))
    assert np.allclose(mean_depth_baseline(iter(maps)), maps.mean(0))
    with pytest.raises(ValueError, match=r"depth map 1 has shape \(2, 2\)"): mean_depth_baseline([maps[0], np.ones((2, 2))])
    with pytest.raises(ValueError, match="NaN"): mean_depth_baseline([np.full((2, 2), np.nan)])

def test_segmentation_by_hand():
    truth = np.array([[0, 0, 1], [1, 2, 2]])
    pred = np.array([[0, 1, 1], [1, 2, 0]])
    m = segmentation_metrics(pred, truth, ["a", "b", "c", "d"])
    assert m["iou"] == {"a": pytest.approx(1/3), "b": pytest.approx(2/3), "c": pytest.approx(1/2), "d": None}
    assert m["miou"] == pytest.approx((1/3 + 2/3 + 1/2)/3) and m["pixel_accuracy"] == pytest.approx(4/6) and m["n"] == 6

def test_class_only_predicted_counts_as_zero():
    assert segmentation_metrics([[0, 1]], [[0, 0]], "ab")["iou"] == {"a": .5, "b": 0.0}

def test_table_is_over_the_data_set():
    "One large and one small picture: IoU from all pixels, not the mean of two IoUs."
    big, small = np.zeros((10, 10), int), np.zeros((1, 2), int)
    wrong = np.ones((1, 2), int)
    m = segmentation_metrics([big, wrong], [big, small], "ab")
    assert m["iou"]["a"] == pytest.approx(100/102) and m["pixel_accuracy"] == pytest.approx(100/102)
    step = ConfusionMatrix("ab").add(big, big).add(wrong, small)
    assert step.result() == m
    assert step.counts.tolist() == [[100, 2], [0, 0]]

def test_confusion_matrix_masks_and_orders():
    m = ConfusionMatrix("ab").add([0, 1, 1], [0, 0, 1], valid=np.array([True, True, False]))
    assert m.counts.tolist() == [[1, 1], [0, 0]]  # rows are the truth

@pytest.mark.parametrize("pred, truth, message", [
    ([0, 2], [0, 1], "pred has class 2"), ([0, 1], [0, -1], "truth has class -1"), ([0., 1.], [0, 1], "pred is float64"),
    ([0, np.nan], [0, 1], "pred is float64"),
    ([0, 1], [0, 1, 1], r"pred has shape \(2,\), truth \(3,\)")])
def test_bad_segments_are_refused_and_not_counted(pred, truth, message):
    matrix = ConfusionMatrix("ab")
    with pytest.raises(ValueError, match=message): matrix.add(pred, truth)
    assert matrix.counts.sum() == 0

def test_metrics_have_the_names_that_modalities_use():
    from cooper.model.modalities import MODALITIES
    values = MODALITIES.values() if hasattr(MODALITIES, "values") else MODALITIES
    for modality in values: assert callable(metric(modality.metric))
