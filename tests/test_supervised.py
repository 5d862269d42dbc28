"""The supervised trainer: killed runs go on as if they had not been, half-written checkpoints are never seen."""
import copy, dataclasses, functools, types

import pytest, torch
from PIL import Image
from cooper.core import checked, resolve
from cooper.model.processor import tiny_protocol, train_tokenizer
from cooper.perceive.data import read_amg
from cooper.perceive.scenes import CLASSES, FAR, NEAR
from cooper.perceive.supervised import (AmgExamples, AmgParameters, InterleavedExamples, Mixture, SftParameters, SupervisedConfig,
    SupervisedTrainer, amg_rows, by_mode, LatentCache, fresh_cooper, measure_latents, newest_whole)
from cooper.reason.data import sft_rows
from grpo_house import miniature, room
from house import cells


@functools.cache
def made():
    "A model of a few thousand weights, its processor and a mixture of both kinds of examples."
    protocol = tiny_protocol(NEAR, FAR, CLASSES)
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=400)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, patch_size=8, image_size=64)
    model, processor = fresh_cooper(train_tokenizer(["a red cube"] * 2, 300), protocol, text_config=text, vision_config=vision)
    maps = amg_rows(read_amg("data/scenes/train/amg.jsonl", limit=4), processor)
    rows = list(sft_rows("data/scenes/train", scenes=2, protocol=protocol, encode=lambda p: p))
    latents = LatentCache(model, processor)
    examples = Mixture([AmgExamples(maps, processor, latents, copies=1), by_mode(InterleavedExamples(rows, processor, latents), {"cooperate": 1, "direct": 1})], [1, 1])
    return model, examples


def small():
    "A fresh copy of the model, and the examples."
    model, examples = made()
    return copy.deepcopy(model), examples


def trainer(out, parts=None, steps=6, stop_after=0, save_steps=2, **options):
    "Logging every 4 steps and saving every 2 or 3: most checkpoints stand between two points of the curve."
    model, examples = parts or small()
    defaults = dict(per_device_train_batch_size=3, learning_rate=1e-2, logging_steps=4, use_cpu=True, disable_tqdm=True, seed=3)
    args = SupervisedConfig(output_dir=str(out), max_steps=steps, stop_after=stop_after, save_steps=save_steps, **defaults | options)
    return SupervisedTrainer(model, args, examples)


def train(out, **options):
    made = trainer(out, **options)
    made.fit()
    return made


class Killed(Exception): pass


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("straight"))


def losses(trainer): return {k: trainer.curves.points[k] for k in ("loss", "ce", "mse")}


def test_the_loss_of_the_curve_is_the_mean_over_its_interval_and_falls(straight, tmp_path):
    each = [v for _, v in train(tmp_path, logging_steps=1).curves.points["loss"]]
    assert losses(straight)["loss"] == [(4, sum(each[:4]) / 4)]
    assert each[-1] < each[0]


def test_killed_between_checkpoints_goes_on_bit_for_bit(straight, tmp_path, monkeypatch):
    step, count = SupervisedTrainer.training_step, []
    def dying(self, *a, **k):
        count.append(1)
        if len(count) == 6: raise Killed # in the sixth step: steps 5 and 6 are lost, the checkpoint of step 4 is there
        return step(self, *a, **k)
    monkeypatch.setattr(SupervisedTrainer, "training_step", dying)
    with pytest.raises(Killed): train(tmp_path)
    monkeypatch.undo()
    assert newest_whole(tmp_path).name == "checkpoint-4"
    again = train(tmp_path)
    assert same(again.model, straight.model)
    assert losses(again) == losses(straight)


def test_killed_while_saving_leaves_no_checkpoint(straight, tmp_path, monkeypatch):
    def dying(self, output_dir): raise Killed # the weights are written, the optimizer is not
    monkeypatch.setattr(SupervisedTrainer, "_save_optimizer_and_scheduler", dying)
    with pytest.raises(Killed): train(tmp_path)
    monkeypatch.undo()
    assert newest_whole(tmp_path) is None and not list(tmp_path.glob("checkpoint-*"))
    assert same(train(tmp_path).model, straight.model)


def test_stopped_early_and_started_again(straight, tmp_path):
    part = train(tmp_path, stop_after=3)
    assert newest_whole(tmp_path).name == "checkpoint-3" and part.state.global_step == 3
    assert same(train(tmp_path, stop_after=3).model, part.model) # nothing is trained twice
    again = train(tmp_path)
    assert same(again.model, straight.model) and losses(again) == losses(straight)
    assert same(train(tmp_path).model, straight.model) # finished: nothing is left to do


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    "Two steps of six, and what they were made with."
    folder, parts = tmp_path_factory.mktemp("stopped"), small()
    kept = copy.deepcopy(parts[0].state_dict())
    train(folder, parts=parts, stop_after=2)
    parts[0].load_state_dict(kept)
    return folder, parts


@pytest.mark.parametrize("field, options", [("learning_rate was 0.01 and is 0.5", dict(learning_rate=.5)), ("seed was 3 and is 4", dict(seed=4)),
    ("max_steps was 6 and is 8", dict(steps=8)), ("per_device_train_batch_size was 3 and is 1", dict(per_device_train_batch_size=1)),
    ("ema_decay was 0.995 and is 0.9", dict(ema_decay=.9)), ("warmup_steps was 0", dict(warmup_steps=3))])
def test_another_run_does_not_go_on_in_a_used_folder(stopped, field, options):
    folder, parts = stopped
    words = f"{folder} holds a run with other settings: {field}.*another folder, or remove {folder}"
    with pytest.raises(ValueError, match=words): train(folder, parts=parts, **options)


def test_another_start_does_not_go_on_not_even_with_another_autoencoder(stopped):
    folder, (model, examples) = stopped
    for part in (model.vae, model.language_model):
        other = copy.deepcopy(model)
        next((other.vae if part is model.vae else other.language_model).parameters()).data.add_(1e-6)
        with pytest.raises(ValueError, match="settings: fingerprint of the start was '[0-9a-f]{16}' and is '[0-9a-f]{16}'"): train(folder, parts=(other, examples))


def test_other_data_do_not_go_on(stopped):
    folder, (model, examples) = stopped
    amg, sft = examples.parts
    one = copy.copy(amg); one.rows = [*amg.rows[:-1], amg.rows[-1] | dict(depth=amg.rows[0]["depth"])]
    twice = copy.copy(amg); twice.copies = 2
    for other in (Mixture([amg, sft], [1, 2]), Mixture([one, sft], [1, 1]), Mixture([twice, sft], [1, 1])):
        with pytest.raises(ValueError, match="settings: fingerprint of the data was"): train(folder, parts=(model, other))


def test_what_does_not_decide_a_run_may_differ(stopped):
    folder, parts = stopped
    for options in (dict(stop_after=4), dict(save_steps=3), dict(logging_steps=1)):
        assert trainer(folder, parts, **options).last_checkpoint() == folder / "checkpoint-2"
    constant = trainer(folder / "elsewhere", parts, lr_scheduler_type="constant").settings
    assert "max_steps" not in constant and constant["fingerprint of the start"] == trainer(folder, parts).settings["fingerprint of the start"]


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="checkpoint-2: no settings.json in it says which run it is of.*remove"): train(tmp_path)


def test_only_whole_checkpoints_are_kept(tmp_path):
    train(tmp_path, save_steps=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-5", "checkpoint-6"]


def test_both_losses_are_logged(straight): assert {"ce", "mse"} <= set(straight.curves.points)


def test_an_example_is_a_function_of_its_generator():
    _, examples = small()
    def facts(seed): return [getattr(s, "ids", None) or (s.view, s.latents is None) for s in examples.build(0, torch.Generator().manual_seed(seed)).segments]
    assert facts(1) == facts(1)
    assert len({str(facts(seed)) for seed in range(8)}) > 1


def test_no_examples_is_an_error(tmp_path):
    model, _ = small()
    with pytest.raises(ValueError, match="no examples"):
        SupervisedTrainer(model, SupervisedConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True), Mixture([], []))
    with pytest.raises(ValueError, match="max_steps is -1; expected a positive number"):
        SupervisedTrainer(model, SupervisedConfig(output_dir=str(tmp_path), use_cpu=True), Mixture([], []))


def test_released_rows_are_learned_from(tmp_path):
    "No row of the released schema says its mode; weights for the other modes are dropped, and that is said."
    from cooper.reason.data import read_sft, write_sft
    rows = [{"interleaved_reason": r["interleaved_reason"]} for r in sft_rows("data/scenes/train", scenes=1, per_scene=1, modes=("cooperate",))]
    _, processor = miniature()
    examples = InterleavedExamples(read_sft(write_sft(tmp_path / "sft.jsonl", rows)), processor)
    with pytest.warns(UserWarning, match="no rows of mode direct, whose weights are dropped; there are cooperate"):
        mixed = by_mode(examples, {"cooperate": .45, "direct": .2, "reason": 0})
    assert len(mixed.build(0, torch.Generator().manual_seed(0)).pictures) > 1
    with pytest.raises(ValueError, match="no rows of mode direct; there are cooperate"): by_mode(examples, {"direct": 1})


def test_pictures_are_encoded_where_the_autoencoder_is():
    "A trainer moves the autoencoder alone; `meta` stands for its GPU."
    model, processor = miniature()
    seen, away = [], torch.device("meta")
    model.vae.to(away)
    def encode(pixels):
        seen.append(pixels.device)
        return torch.arange(len(pixels) * 16.).view(-1, 4, 2, 2)
    model.encode_pictures = encode
    model.vae.encode = lambda pixels: types.SimpleNamespace(latent_dist=types.SimpleNamespace(mean=encode(pixels)))
    LatentCache(model, processor).fill([room(0)])
    measure_latents(model, torch.zeros(2, 3, 32, 32))
    assert seen == [away, away]


def test_a_picture_is_encoded_once_whoever_asks():
    model, processor = miniature()
    counted, encode = [], model.encode_pictures
    model.encode_pictures = lambda pixels: counted.append(len(pixels)) or encode(pixels)
    latents = LatentCache(model, processor).fill([room(0), room(1), room(0)])
    latents.fill([room(1).copy(), room(2)])
    assert sum(counted) == 3
    alone = encode(processor.picture(room(1), ("clean",))[0].pixels[None])[0]
    torch.testing.assert_close(latents.segment(room(1), "noised").latents, alone, atol=1e-5, rtol=1e-5)


def test_a_protocol_with_depth_only_trains_depth_only():
    model, processor = miniature()
    protocol = processor.protocol | {"modalities": {"depth": processor.protocol["modalities"]["depth"]}}
    processor = type(processor)(processor.tokenizer, protocol, processor.clean, processor.vision)
    rows = amg_rows(read_amg("data/scenes/train/amg.jsonl", limit=1), processor)
    sequence = AmgExamples(rows, processor, LatentCache(model, processor), copies=1).build(0, torch.Generator().manual_seed(0))
    assert list(rows[0]) == ["rgb", "depth"] and [s.view for s in sequence.pictures].count("noised") == 1


@pytest.mark.parametrize("kind, folder, size", [("depth", "depth", (70, 40)), ("seg", "seg", (64, 128)), ("seg", "seg", (256, 256))])
def test_a_map_of_another_size_than_its_picture_is_refused(tmp_path, kind, folder, size):
    processor = made()[1].parts[0].processor
    row, = read_amg("data/scenes/train/amg.jsonl", limit=1)
    other = tmp_path / f"{kind}.png"
    Image.open(getattr(row, kind)).resize(size, Image.Resampling.NEAREST).save(other)
    amg_rows([row], processor)
    with pytest.raises(ValueError, match=rf"{kind}\.png: {'depth' if kind == 'depth' else 'segmentation'} is {size[0]}x{size[1]} pixels, its picture .*rgb/000000\.png is 128x128"):
        amg_rows([dataclasses.replace(row, **{kind: other})], processor)


def stage(name, cls, **changes):
    "The parameters that a notebook sets, some changed."
    cell, = (c for c in cells(name) if "parameters" in c.metadata.get("tags", ()))
    exec(cell.source, given := {})
    return checked(cls, {k: v for k, v in given.items() if not k.startswith("_")} | changes)


COUNTS = dict(steps=-2, batch_size=-1, save_steps=0, copies=0, evaluation_scenes=0)
SIGNS = dict(stop_after=-1, scenes=-1, warmup_steps=-1)


@pytest.mark.parametrize("name, cls, value", [(n, c, v) for n, c in (("10_amg", AmgParameters), ("20_sft", SftParameters)) for v in (COUNTS | SIGNS).items()]
    + [("10_amg", AmgParameters, ("autoencoder_steps", 0))] + [("20_sft", SftParameters, (k, 0)) for k in ("per_scene", "turns")] + [("20_sft", SftParameters, ("questions", 4))]
    + [("20_sft", SftParameters, ("max_objects", -1))])
def test_parameters_out_of_range_fail_before_anything_runs(name, cls, value):
    assert stage(name, cls).steps == 20
    low = {"questions": 5}.get(value[0], 0 if value[0] in (*SIGNS, "max_objects") else 1)
    with pytest.raises(ValueError, match=f"'{value[0]}' is {value[1]}; expected at least {low}$"): stage(name, cls, **dict([value]))


@pytest.mark.parametrize("words, changes", [("'ema_decay' is -1.0; expected at least 0", dict(ema_decay=-1)), ("'ema_decay' is nan", dict(ema_decay=float("nan"))),
    ("'learning_rate' is 0.0", dict(learning_rate=0)), ("'amg_weight' is 1.5", dict(amg_weight=1.5)), ("'grounding_weight' is 0.6; expected 0 to 0.5, what the others leave", dict(grounding_weight=.6, amg_weight=.5)),
    ("'grounding_weight' is -0.1", dict(grounding_weight=-.1)), ("'comparing_weight' is 0.3; expected 0 to 0.2, what the others leave", dict(amg_weight=.5, grounding_weight=.3, comparing_weight=.3)),
    ("has a mode 'think'; expected some of direct", dict(mode_weights={"think": 1})),
    ("of direct is -1; expected a number", dict(mode_weights={"direct": -1})), ("of direct is 'much'", dict(mode_weights={"direct": "much"})),
    ("is {'direct': 0}; expected at least one above 0", dict(mode_weights={"direct": 0})), ("'steps' is 0.*'copies' is -1", dict(copies=-1, steps=0))])
def test_parameters_that_mean_nothing_fail_before_anything_runs(words, changes):
    with pytest.raises(ValueError, match=words): stage("20_sft", SftParameters, **changes)
