"""The supervised trainer: killed runs go on as if they had not been, half-written checkpoints are never seen."""
import pytest, torch
from cooper.core import resolve
from cooper.model.processor import tiny_protocol, train_tokenizer
from cooper.perceive.data import read_amg
from cooper.perceive.scenes import CLASSES, FAR, NEAR
from cooper.perceive.supervised import (AmgExamples, InterleavedExamples, Mixture, SupervisedConfig, SupervisedTrainer, amg_rows, by_mode,
    fresh_cooper, newest_whole)
from cooper.reason.data import sft_rows


def small():
    "A model of a few thousand weights, its processor and a mixture of both kinds of examples."
    protocol = tiny_protocol(NEAR, FAR, CLASSES)
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=400)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, patch_size=8, image_size=64)
    model, processor = fresh_cooper(train_tokenizer(["a red cube"] * 2, 300), protocol, text_config=text, vision_config=vision)
    maps = amg_rows(read_amg("data/scenes/train/amg.jsonl", limit=4), processor)
    rows = list(sft_rows("data/scenes/train", scenes=2, protocol=protocol, encode=lambda p: p))
    examples = Mixture([AmgExamples(maps, processor, model, copies=1), by_mode(InterleavedExamples(rows, processor, model), {"cooperate": 1, "direct": 1})], [1, 1])
    return model, examples


def train(out, steps=6, stop_after=0, save_steps=2):
    model, examples = small()
    args = SupervisedConfig(output_dir=str(out), max_steps=steps, stop_after=stop_after, per_device_train_batch_size=3, learning_rate=1e-2,
                            save_steps=save_steps, logging_steps=1, use_cpu=True, disable_tqdm=True, seed=3)
    trainer = SupervisedTrainer(model, args, examples)
    trainer.fit()
    return trainer


class Killed(Exception): pass


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("straight"))


def test_it_learns(straight):
    losses = [v for _, v in straight.curves.points["loss"]]
    assert losses[-1] < losses[0]


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
    assert again.curves.points["loss"] == straight.curves.points["loss"]


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
    assert same(train(tmp_path).model, straight.model)


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
