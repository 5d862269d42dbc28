"""The supervised trainer: killed runs go on as if they had not been, half-written checkpoints are never seen."""
import copy, dataclasses, functools, json, os, signal, types

import numpy as np, pytest, torch
from PIL import Image
from cooper.core import Curves, checked, read_jsonl
from cooper.model.checkpoint import load_model, save_model
from cooper.model.modalities import Depth, modality
from cooper.model.processor import text_parts, tiny_protocol, train_tokenizer
from cooper.model.sequence import pack
from cooper.perceive import launch as launching, supervised
from cooper.perceive.data import read_amg
from cooper.perceive.launch import launch
from cooper.perceive.parts import part_of
from cooper.perceive.scenes import CLASSES, FAR, NEAR
from cooper.perceive.supervised import (AmgExamples, AmgParameters, InterleavedExamples, Mixture, SftParameters, SupervisedConfig,
    SupervisedTrainer, amg_rows, by_mode, LatentCache, fresh_cooper, load_map, measure_latents, newest_whole, train_stage, trained)
from cooper.reason.data import comparing_rows, placing_rows, sft_rows
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
    train(tmp_path, save_steps=1, steps=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


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


def test_the_numbers_of_a_lesson_in_placing_are_targets_and_nothing_else():
    model, examples = made()
    processor = examples.parts[0].processor
    for row in placing_rows("data/scenes/test", scenes=6, per_scene=2, protocol=processor.protocol, encode=lambda p: p):
        batch = pack([InterleavedExamples([row], processor).build(0)], model.config.geometry)
        said = row["interleaved_reason"][-1]
        numbers = "".join(said["value"][start:end] for start, end in said["loss_spans"])
        assert processor.tokenizer.decode(batch.target_ids) == numbers, row["data_id"]
        assert processor.text(text_parts(said)).ids == processor.text(said["value"]).ids, "the cuts are no cuts to the tokenizer"
        assert not any(processor.text(text_parts(said)).learn[-2:]), "what is given ends in a given end"
    for row in comparing_rows("data/scenes/test", scenes=6, protocol=processor.protocol):
        for said in row["interleaved_reason"]: assert processor.text(text_parts(said)).ids == processor.text(said["value"]).ids, said["value"]


def test_kinds_of_which_there_are_none_are_refused(monkeypatch):
    from cooper.reason import lessons
    model, examples = made()
    monkeypatch.setattr(lessons, "placing_rows", lambda *args, **options: iter(()))
    with pytest.raises(ValueError, match="data/scenes/train gives no example for placing_weight; expected a weight of 0"):
        lessons.sft_examples(SftParameters(scenes=2, per_scene=1), model, examples.parts[0].processor)


@pytest.mark.parametrize("changes, words", [(dict(value=None), "'value' is None; expected a string"), (dict(loss_spans=[[0, 99]]), "'loss_spans' is .*expected pairs")])
def test_replayed_texts_are_checked(tmp_path, changes, words):
    item = dict(type="text", value="ball: 12", need_loss="true") | changes
    (tmp_path / "replay.jsonl").write_text(json.dumps(dict(interleaved_reason=[item])) + "\n")
    model, examples = made()
    with pytest.raises(ValueError, match=rf"replay.jsonl:1.*'interleaved_reason\[0\]'.*{words}"):
        supervised.amg_examples(AmgParameters(scenes=2, replay=str(tmp_path / "replay.jsonl"), replay_weight=.5), model, examples.parts[0].processor)


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
    ("'grounding_weight' is -0.1", dict(grounding_weight=-.1)), ("'placing_weight' is 0.5; expected 0 to 0.4, what the others leave", dict(amg_weight=.5, grounding_weight=.1, placing_weight=.5)), ("'comparing_weight' is 0.3; expected 0 to 0.2, what the others leave", dict(amg_weight=.5, grounding_weight=.3, placing_weight=0, comparing_weight=.3)),
    ("has a mode 'think'; expected some of direct", dict(mode_weights={"think": 1})),
    ("of direct is -1; expected a number", dict(mode_weights={"direct": -1})), ("of direct is 'much'", dict(mode_weights={"direct": "much"})),
    ("'lora_also' is 'drawing' without 'lora'", dict(lora_also="drawing")), ("'freeze' and 'lora_also' both name drawing", dict(lora="both", lora_also="drawing", freeze="vision, drawing")),
    ("'skip_too_long' is True without 'tokens_per_pack'", dict(skip_too_long=True)), ("'strategy' is 'ddp' and 'num_processes' 1", dict(strategy="ddp")),
    ("'schedule' is 'constant'; expected one of 'cosine', 'constant_with_warmup'", dict(schedule="constant")),
    ("is {'direct': 0}; expected at least one above 0", dict(mode_weights={"direct": 0})), ("'steps' is 0.*'copies' is -1", dict(copies=-1, steps=0))])
def test_parameters_that_mean_nothing_fail_before_anything_runs(words, changes):
    with pytest.raises(ValueError, match=words): stage("20_sft", SftParameters, **changes)


def part_trainer(model, out, examples, **options):
    defaults = dict(max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, use_cpu=True, disable_tqdm=True, seed=3)
    return SupervisedTrainer(model, SupervisedConfig(output_dir=str(out), **defaults | options), examples)


def lively(model=None):
    "A model that draws something: fresh ones draw nothing, and then nothing but the last layer has a gradient."
    model = copy.deepcopy(model or made()[0])
    with torch.no_grad(): model.llm2vae.weight.normal_(std=.02, generator=torch.Generator().manual_seed(0))
    return model


def gradients(model, sequences):
    model.zero_grad()
    batch = pack(sequences, model.config.geometry, [torch.Generator().manual_seed(i) for i, _ in enumerate(sequences)])
    loss = model(batch)["loss"]
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def with_holes(folder, where, behind=0):
    "A row whose depth is unknown where `where` is true; `behind` stands there in a map that has its own mask."
    row, = read_amg("data/scenes/train/amg.jsonl", limit=1)
    metres = np.asarray(Image.open(row.depth)).copy()
    metres[where(*np.indices(metres.shape))] = behind
    path = folder / f"depth{behind}.png"
    Image.fromarray(metres.astype(np.uint16)).save(path)
    return dataclasses.replace(row, depth=path)


@pytest.mark.parametrize("side", ["left", "right", "top"])
def test_a_hidden_half_is_neither_in_the_loss_nor_in_the_gradient(tmp_path, side):
    """What stands behind the mask is changed, wildly: the loss and every gradient stay bit for bit. Without the mask they do not."""
    model, processor = lively(), made()[1].parts[0].processor
    where = {"left": lambda y, x: x < 64, "right": lambda y, x: x >= 64, "top": lambda y, x: y < 64}[side]
    def loss(behind, masked):
        row = with_holes(tmp_path, where, behind)
        pictures, = amg_rows([row], processor, ["depth"])
        if masked and behind: # the same hole, with something in it, in a map that brings its own mask
            map = load_map(row, modality("depth", processor.protocol))
            map.valid = ~where(*np.indices(map.values.shape))
            class Own(Depth):
                def load(self, row): return map
            pictures = supervised._amg_pictures(row, [Own(processor.protocol["modalities"]["depth"])], processor)
        examples = AmgExamples([pictures], processor, None, ["depth"], copies=1, flip=False)
        return gradients(model, [examples.build(0, torch.Generator().manual_seed(0))])
    (a, ga), (b, gb), (c, gc) = loss(0, True), loss(9000, True), loss(500, True)
    assert a == b == c and torch.equal(ga, gb) and torch.equal(ga, gc) and ga.abs().sum() > 0
    assert loss(9000, False)[0] != loss(500, False)[0]


def test_only_patches_that_are_wholly_known_are_learned(tmp_path):
    processor = made()[1].parts[0].processor
    row = with_holes(tmp_path, lambda y, x: (x >= 33) & (y < 20))
    pictures, = amg_rows([row], processor, ["depth"])
    sequence = AmgExamples([pictures], processor, None, ["depth"], copies=1, flip=False).build(0, torch.Generator().manual_seed(0))
    batch = pack([sequence], made()[0].config.geometry, [torch.Generator().manual_seed(0)])
    cells = batch.flow[-batch.latent_lengths[-1]:].view(*(n // processor.clean[2] for n in pictures["rgb"].size[::-1]))
    known = np.asarray(pictures["depth/valid"]) > 0
    stride = processor.clean[2]
    assert cells.tolist() == [[bool(known[y:y + stride, x:x + stride].all()) for x in range(0, known.shape[1], stride)] for y in range(0, known.shape[0], stride)]
    assert 0 < (~cells).sum() < cells.numel()


def test_the_loss_on_a_pack_is_the_mean_over_its_samples_run_alone(tmp_path):
    """Weighted by what each learns, as in BAGEL ('token'), or each alike ('sample'): in a pack, and over passes that make one step."""
    model, examples = lively(), made()[1]
    sequences = [examples.build(0, torch.Generator().manual_seed(i)) for i in range(6)]
    g = model.config.geometry
    def run(ids, mean, n=None):
        batch = pack([sequences[i] for i in ids], g, [torch.Generator().manual_seed(i) for i in ids])
        with torch.no_grad(): out = model(batch)
        found = supervised.shares(batch, out, (n if n is not None else supervised.targets(batch, mean)).tolist(), mean)
        return torch.tensor([found["ce"], found["mse"]]), supervised.targets(batch, mean), out
    for mean in ("token", "sample"):
        whole, n, out = run(range(6), mean)
        alone = [run([i], mean) for i in range(6)]
        assert sum(m for _, m, _ in alone).tolist() == n.tolist()
        expected = sum(loss * count for loss, count, _ in alone) / n
        torch.testing.assert_close(whole.double(), expected.double(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sum(run(ids, mean, n)[0] for ids in ([0, 1, 2, 3], [4, 5])), whole, atol=1e-5, rtol=1e-5)
        if mean == "token": torch.testing.assert_close(whole.sum(), out["loss"], atol=1e-5, rtol=1e-5)
    assert len({int(count[0]) for _, count, _ in alone} | {int(run([i], "token")[1][0]) for i in range(6)}) > 1, "samples of one length would prove nothing"


@pytest.mark.parametrize("mean", ["token", "sample"])
def test_four_passes_of_one_example_are_one_pass_of_four(tmp_path, mean):
    def run(name, **options):
        trainer = part_trainer(lively(), tmp_path / name, made()[1], loss_mean=mean, **options)
        trainer.fit()
        return trainer.curves.points
    one, four = run("one", per_device_train_batch_size=4), run("four", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert one.keys() == four.keys()
    for k in ("loss", "ce", "mse"): assert [v for _, v in one[k]] == pytest.approx([v for _, v in four[k]], abs=1e-5), k


def test_packs_stay_within_their_budget_and_forget_nobody(tmp_path):
    examples = made()[1].parts[1]
    lengths = {supervised.tokens_of(e, k, torch.Generator()) for e, k in supervised.each_row(examples)}
    budget = 2 * max(lengths) + 10
    trainer = part_trainer(lively(), tmp_path, examples, per_device_train_batch_size=1, tokens_per_pack=budget, max_steps=3)
    packs = trainer.train_dataset
    for j in range(3):
        batch = trainer.collate([packs[j]])["batch"]
        assert len(batch) <= budget and len(batch.lengths) > 1
    trainer.fit()
    with pytest.raises(ValueError, match=r"\d+ of \d+ examples are longer than a pack of 100 tokens: .*\(\d+\).*Expected a larger budget, or skip_too_long"):
        part_trainer(lively(), tmp_path / "b", examples, tokens_per_pack=100)
    middle = sorted(lengths)[len(lengths) // 2]
    with pytest.warns(UserWarning, match=f"longer than a pack of {middle} tokens.*they are left out"):
        left = part_trainer(lively(), tmp_path / "c", examples, tokens_per_pack=middle, skip_too_long=True).train_dataset.left_out
    assert {n for _, n in left} == {n for n in lengths if n > middle}
    assert [tuple(row.values()) for row in read_jsonl(tmp_path / "c/left_out.jsonl")] == left


def test_told_lengths_are_those_of_the_sequences():
    model, examples = made()
    for i in range(6):
        told = examples.tokens(0, torch.Generator().manual_seed(i))
        assert told == supervised.packed_length(examples.build(0, torch.Generator().manual_seed(i)), model.config.geometry)


def test_conditions_are_left_out_as_often_as_said_and_targets_never():
    _, examples = made()
    def build(shares, i): return supervised.Dropout(examples, shares).build(0, torch.Generator().manual_seed(i))
    for i in range(8):
        whole, without = examples.build(0, torch.Generator().manual_seed(i)), build({c: 1. for c in supervised.CONDITIONS}, i)
        learned = lambda s: sum(sum(x.learn) for x in s.segments if hasattr(x, "ids"))
        assert learned(whole) == learned(without) and [p.view for p in whole.pictures].count("noised") == [p.view for p in without.pictures].count("noised")
        assert (len(whole) == len(without)) == (learned(whole) > 0), "where words are learned, all stays"
    amg = examples.parts[0]
    gone = sum(not any(hasattr(s, "ids") for s in supervised.Dropout(amg, {"text": .25}).build(0, torch.Generator().manual_seed(i)).segments) for i in range(400))
    assert 70 < gone < 130


def test_the_training_timesteps_are_shifted(tmp_path):
    amg = made()[1].parts[0]
    def times(shift):
        t = part_trainer(lively(), tmp_path, amg, timestep_shift=shift)
        return torch.cat([t.collate([t.train_dataset[i]])["batch"].timesteps for i in range(2)])
    plain, own, far = times(1.), times(0.), times(9.)
    noised = plain > 0
    torch.testing.assert_close(far[noised], 9 * plain[noised] / (1 + 8 * plain[noised]))
    torch.testing.assert_close(own[noised], 3 * plain[noised] / (1 + 2 * plain[noised])) # the tiny preset's own is 3


def test_killed_across_the_end_of_an_epoch_in_packs_goes_on_bit_for_bit(tmp_path, monkeypatch):
    "Three rows, so that every step is another epoch; packs are open when the run is killed."
    examples = AmgExamples(made()[1].parts[0].rows[:3], made()[1].parts[0].processor, made()[1].parts[0].latents, copies=1)
    options = dict(per_device_train_batch_size=1, tokens_per_pack=900, save_steps=2, max_steps=5, gradient_accumulation_steps=2)
    straight = part_trainer(lively(), tmp_path / "a", examples, **options); straight.fit()
    step, count = SupervisedTrainer.training_step, []
    def dying(self, *a, **k):
        count.append(1)
        if len(count) == 8: raise Killed
        return step(self, *a, **k)
    monkeypatch.setattr(SupervisedTrainer, "training_step", dying)
    with pytest.raises(Killed): part_trainer(lively(), tmp_path / "b", examples, **options).fit()
    monkeypatch.undo()
    again = part_trainer(lively(), tmp_path / "b", examples, **options); again.fit()
    assert same(again.model, straight.model) and losses_of(again) == losses_of(straight)
    assert max(max(again.train_dataset.positions(j)) for j in range(4)) > len(examples), "an epoch has ended"


def losses_of(trainer): return {k: v for k, v in trainer.curves.points.items() if k in ("loss", "ce", "mse")}


class Fatal:
    "Examples one of which ends the process that builds it, as if it had been killed, while a file is there."
    def __init__(self, examples, flag): self.examples, self.flag = examples, flag
    def __len__(self): return len(self.examples)
    def contents(self): return self.examples.contents()
    def build(self, k, generator):
        if self.flag.exists() and torch.utils.data.get_worker_info() and torch.rand((), generator=copy_of(generator)).item() < .3: os.kill(os.getpid(), signal.SIGKILL)
        return self.examples.build(k, generator)


def copy_of(generator):
    new = torch.Generator(); new.set_state(generator.get_state())
    return new


def test_killed_in_a_loader_worker_goes_on_bit_for_bit(tmp_path):
    flag = tmp_path / "flag"
    examples = Fatal(made()[1].parts[0], flag)
    options = dict(save_steps=1, max_steps=4, per_device_train_batch_size=1)
    straight = part_trainer(lively(), tmp_path / "a", examples, **options); straight.fit()
    flag.touch()
    with pytest.raises(RuntimeError, match="worker.*(killed|exited)"): part_trainer(lively(), tmp_path / "b", examples, dataloader_num_workers=1, **options).fit()
    flag.unlink()
    again = part_trainer(lively(), tmp_path / "b", examples, dataloader_num_workers=1, **options); again.fit()
    assert same(again.model, straight.model) and losses_of(again) == losses_of(straight)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    "A run that is left alone, and its options."
    options = dict(save_steps=1, max_steps=3, per_device_train_batch_size=1)
    straight = part_trainer(lively(), tmp_path_factory.mktemp("three"), made()[1].parts[0], **options); straight.fit()
    return straight, options


@pytest.mark.parametrize("where", ["_save_optimizer_and_scheduler", "_publish", "_save_rng_state"])
def test_killed_at_any_moment_of_saving_goes_on_bit_for_bit(three_steps, tmp_path, monkeypatch, where):
    examples, (straight, options) = made()[1].parts[0], three_steps
    original, count = getattr(SupervisedTrainer, where), []
    def dying(self, *a, **k):
        count.append(1)
        if len(count) == 2: raise Killed # while the second checkpoint is written
        return original(self, *a, **k)
    monkeypatch.setattr(SupervisedTrainer, where, dying)
    with pytest.raises(Killed): part_trainer(lively(), tmp_path / "b", examples, **options).fit()
    monkeypatch.undo()
    assert newest_whole(tmp_path / "b").name == "checkpoint-1"
    again = part_trainer(lively(), tmp_path / "b", examples, **options); again.fit()
    assert same(again.model, straight.model) and losses_of(again) == losses_of(straight)


def run_stage(folder, model=None, **changes):
    "A stage of two steps over four rows; the trainer."
    amg = made()[1].parts[0]
    p = AmgParameters(**dict(out=str(folder), steps=2, batch_size=2, copies=1, learning_rate=1e-2, warmup_steps=0) | changes)
    model = model or lively()
    return train_stage(p, "amg", model, amg.processor, amg, read_amg("data/scenes/test/amg.jsonl", limit=2))


def test_held_out_drawings_do_not_touch_the_training(tmp_path):
    plain, watched = run_stage(tmp_path / "a"), run_stage(tmp_path / "b", evaluate_every=1)
    assert same(plain.model, watched.model) and losses_of(plain) == losses_of(watched)
    assert [s for s, _ in watched.curves.points["depth/AbsRel"]] == [1, 2] and 0 <= watched.curves.last("segmentation/mIoU") <= 1
    assert sorted(p.name for p in (tmp_path / "b/amg").glob("drawn-*.png")) == ["drawn-000001.png", "drawn-000002.png"]


@pytest.mark.parametrize("options, learns", [(dict(freeze="vision,understanding"), {"connector", "embeddings", "generation", "drawing"}),
    (dict(lora="generation"), {"generation"}), (dict(lora="both", lora_also="drawing"), {"understanding", "generation", "drawing"})])
def test_only_the_named_parts_change(tmp_path, options, learns):
    before = lively()
    names = list(before.state_dict())
    after = run_stage(tmp_path, copy.deepcopy(before), **options).model
    assert list(after.state_dict()) == names, "adapters are merged: the names are the old ones"
    changed = {part_of(n) for n, p in after.named_parameters() if not torch.equal(p, dict(before.named_parameters())[n])}
    assert changed <= learns and {"generation"} <= changed and ("drawing" in changed) == ("drawing" in learns)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    assert same(run_stage(tmp_path / "a").model, run_stage(tmp_path / "b", gradient_checkpointing=True).model)


def test_bfloat16_computes_while_the_weights_stay_float32(tmp_path):
    exact, rough = run_stage(tmp_path / "a"), run_stage(tmp_path / "b", bf16=True)
    assert {p.dtype for p in rough.model.parameters()} == {torch.float32}
    (_, a), (_, b) = exact.curves.points["loss"][0], rough.curves.points["loss"][0]
    assert a != b and b == pytest.approx(a, rel=.02)
    with pytest.raises(ValueError, match="weights to be learned are torch.bfloat16.*Expected torch.float32"): run_stage(tmp_path / "c", lively().bfloat16())


def test_adapters_of_a_killed_run_go_on_bit_for_bit(tmp_path):
    options = dict(lora="generation", lora_rank=2, steps=3, save_steps=1)
    straight = run_stage(tmp_path / "a", **options)
    run_stage(tmp_path / "b", stop_after=1, **options)
    assert same(run_stage(tmp_path / "b", **options).model, straight.model)


def test_the_paper_is_a_preset_and_defaults_stand_in_the_notebooks():
    for name, cls in (("10_amg", AmgParameters), ("20_sft", SftParameters)):
        assert stage(name, cls) == cls(), f"the parameters of {name} are not the defaults of {cls.__name__}"
    amg, sft = AmgParameters(preset="paper"), SftParameters(preset="paper", save_steps=50)
    assert (amg.steps, amg.save_steps, sft.steps, sft.save_steps) == (6000, 2000, 600, 50)
    for p in (amg, sft):
        c = p.config("x")
        assert (c.learning_rate, c.lr_scheduler_type, c.warmup_steps, c.adam_beta1, c.adam_beta2, c.adam_epsilon, c.weight_decay, c.max_grad_norm) == \
            (5e-6, "constant_with_warmup", 500, .9, .95, 1e-15, 0, 1.)
        assert (c.ema_decay, c.ema_warmup, c.tokens_per_pack, c.per_device_train_batch_size, c.timestep_shift, c.bf16, c.gradient_checkpointing, p.freeze) == \
            (.995, False, 10240, 1, 1., True, True, "vision")
    with pytest.raises(ValueError, match="'preset' is 'papre'; expected one of tiny, paper"): AmgParameters(preset="papre")


def test_replay_keeps_words_among_the_drawings(tmp_path):
    rows = [r for r in sft_rows("data/scenes/train", scenes=1, per_scene=2, modes=("direct",))]
    (tmp_path / "replay.jsonl").write_text("".join(json.dumps({"interleaved_reason": r["interleaved_reason"]}) + "\n" for r in rows))
    amg = made()[1].parts[0]
    p = AmgParameters(scenes=2, replay=str(tmp_path / "replay.jsonl"), replay_weight=.5, copies=1)
    examples = supervised.amg_examples(p, made()[0], amg.processor)
    learned = {any(hasattr(s, "ids") and any(s.learn) for s in examples.build(0, torch.Generator().manual_seed(i)).segments) for i in range(12)}
    assert learned == {True, False}
    with pytest.raises(ValueError, match="'replay' is '' and 'replay_weight' 0.5; expected both or neither"): AmgParameters(replay_weight=.5)
    (tmp_path / "replay.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ValueError, match=r"replay.jsonl:1: 'interleaved_reason' is None"): supervised.amg_examples(p, made()[0], amg.processor)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_model(lively(), made()[1].parts[0].processor, tmp_path_factory.mktemp("start") / "model")


def test_two_processes_give_the_losses_of_one(start, tmp_path):
    """Started as a RUN notebook starts them. The same data: two processes with one example each, one with two.
    Steps with words and steps without: what a step does not go through moves on alike."""
    rows = sft_rows("data/scenes/train", scenes=1, per_scene=2, modes=("direct",))
    (tmp_path / "replay.jsonl").write_text("".join(json.dumps({"interleaved_reason": r["interleaved_reason"]}) + "\n" for r in rows))
    options = dict(checkpoint=str(start), scenes=4, copies=1, steps=6, learning_rate=1e-2, warmup_steps=0, dropout={"text": .3, "pictures": .3}, replay=str(tmp_path / "replay.jsonl"), replay_weight=.3)
    one, two = (AmgParameters(**options, batch_size=b, num_processes=n, strategy="cpu", out=str(tmp_path / str(n))) for b, n in ((2, 1), (1, 2)))
    (a, curves_a), (b, curves_b) = (trained(p, "amg", *load_model(start), supervised.amg_examples, "cooper.perceive.supervised") for p in (one, two))
    assert 0 < len(curves_a.points["ce"]) < 6
    for k in ("loss", "ce", "mse"): assert [v for _, v in curves_a.points[k]] == pytest.approx([v for _, v in curves_b.points[k]], abs=1e-5)
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True): torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    said = [json.loads(line) for line in (tmp_path / "2/launch/progress.jsonl").read_text().splitlines()]
    assert [r["step"] for r in said if "logs" in r][:6] == [1, 2, 3, 4, 5, 6], "what the cell follows"


DIVIDED = """
import os, sys, torch
from pathlib import Path
from accelerate.state import DistributedType, PartialState
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU) # accelerate divides weights over nothing else
from cooper.perceive.supervised import main
for options in (["--stop_after", "2"], [], ["--bf16", "true", "--out", str(Path(sys.argv[-1]).with_name("rough"))]): main(sys.argv[1:] + options)
"""


def test_two_processes_with_divided_weights_give_the_losses_of_one(start, tmp_path, monkeypatch):
    """FSDP2 as its file says, on two CPUs. Stopped at step 2 and started again: losses and averaged, whole weights are those of one process that never stopped.
    In bfloat16 the losses are close to those of one process, too, and are not themselves rounded."""
    (tmp_path / "divided.py").write_text(DIVIDED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    file = launching.launch_file("fsdp2")
    monkeypatch.setattr(launching, "launch_file", lambda strategy: file) # the strategy is called cpu, which needs no GPU
    options = dict(checkpoint=str(start), scenes=4, copies=1, steps=3, learning_rate=1e-2, warmup_steps=0, dropout={"text": .3, "pictures": .3})
    def stage(name, n, **more):
        p = AmgParameters(**options, batch_size=4 // n, num_processes=n, out=str(tmp_path / name), **more)
        return trained(p, "amg", *load_model(start), supervised.amg_examples, "divided")
    (a, one), (b, two) = stage("one", 1), stage("two", 2, strategy="cpu")
    assert sorted(p.parent.name for p in tmp_path.glob("two/amg/*/pytorch_model_fsdp.bin")) == ["checkpoint-2", "checkpoint-3"], "written where weights are divided"
    assert [s for s, _ in two.points["loss"]] == [1, 2, 3]
    for k in ("loss", "grad_norm"): assert [v for _, v in one.points[k]] == pytest.approx([v for _, v in two.points[k]], abs=1e-5)
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True): torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    rough = [v for _, v in Curves.load(tmp_path / "two/launch/rough/curves.json").points["loss"]]
    assert rough == pytest.approx([v for _, v in stage("rough", 1, bf16=True)[1].points["loss"]], rel=2e-3)
    assert any(v * 2 ** 12 % 1 for v in rough), "the share of each process is below 1, where bfloat16 has 8 bits"
    assert rough != pytest.approx([v for _, v in two.points["loss"]], abs=1e-5), "it did compute in bfloat16"


WORKER = """
import os, time
from cooper.perceive.launch import telling_errors
with telling_errors():
    if os.environ["RANK"] == "1": raise FileNotFoundError("row 7: nowhere.png: no such file")
    time.sleep(600) # waits for the other
"""


def test_a_failing_worker_fails_the_cell_with_its_own_error(tmp_path, monkeypatch):
    "The launcher ends the others, and the error is that of the one that failed; a stage tells its own so."
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(RuntimeError, match=r"worker failed in worker 1 of 2:(?s:.*)FileNotFoundError: row 7: nowhere.png: no such file$"):
        launch("worker", {}, 2, "cpu", out=tmp_path / "launch")
    monkeypatch.setenv("COOPER_ERRORS", str(tmp_path / "errors"))
    (tmp_path / "run.yaml").write_text("steps: 1.5\n")
    with pytest.raises(ValueError, match="'steps' is 1.5"): supervised.main(["--config", str(tmp_path / "run.yaml")])
    assert "'steps' is 1.5" in (tmp_path / "errors/0.txt").read_text()


def test_the_average_of_divided_weights_is_that_of_whole_ones():
    "Weights as FSDP2 lays them out, over one process here; half-way through, the average is put together, as for a checkpoint, and laid out again."
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain = torch.nn.Linear(4, 3)
        divided, found = copy.deepcopy(plain), []
        fully_shard(divided, mesh=init_device_mesh("cpu", (1,)))
        for model in (plain, divided):
            average = supervised.WeightAverage(.9)
            average.on_train_begin(None, None, None, model)
            for step in range(1, 5):
                with torch.no_grad():
                    for p in model.parameters(): p.mul_(1.5)
                average.on_step_end(None, types.SimpleNamespace(global_step=step), None, model)
                if step == 2:
                    average.weights = {k: supervised._whole(v).clone() for k, v in average.weights.items()}
                    average.on_train_begin(None, None, None, model)
            average.apply(model)
            found.append({k: supervised._whole(p) for k, p in model.named_parameters()})
        assert hasattr(next(divided.parameters()), "device_mesh")
        for k in found[0]: assert torch.equal(found[0][k], found[1][k]), k
    finally: dist.destroy_process_group()


def test_a_decay_of_zero_keeps_no_average(start, tmp_path):
    "So DeepSpeed, which leaves empty places where weights were, can train; a run without an average is resumed, too."
    model = torch.nn.Linear(2, 1)
    average = supervised.WeightAverage(0.)
    average.on_train_begin(None, None, None, model)
    for p in model.parameters(): p.data = p.data.new_empty(0)
    average.on_step_end(None, types.SimpleNamespace(global_step=1), None, model)
    average.apply(model)
    assert average.weights == {}
    def run(out, **more):
        p = AmgParameters(checkpoint=str(start), scenes=2, copies=1, batch_size=1, steps=3, learning_rate=1e-2, warmup_steps=0, ema_decay=0., out=str(tmp_path / out), **more)
        return trained(p, "amg", *load_model(start), supervised.amg_examples, "")[0].state_dict()
    whole = run("whole")
    run("halved", stop_after=2)
    assert all(torch.equal(w, whole[k]) for k, w in run("halved").items())
