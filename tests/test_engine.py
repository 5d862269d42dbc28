"""Law 4: a request's result does not depend on its company. Mixes of modes, sizes, groups, orders and batch sizes, with and without guidance."""
import copy, re

import numpy as np
import pytest
from PIL import Image

import cooper
import cooper.model.engine as engine_module

ROOMS = [f"data/scenes/test/rgb/{i:06d}.png" for i in range(4)]
QUESTIONS = ["How many balls are there?", "How many objects are there?", "Which is closer to the camera, the red cube or the blue ball?"]
MODES = ("cooperate", "direct", "perceive", "reason")


@pytest.fixture(scope="module")
def tiny(): return cooper.load("data/tiny-cooper")


def alike(a, b):
    "Two traces of one request: the same words, drawings within 3 of 255; log-probabilities within 1e-4, or 1e-2 once a drawing that is looked at is a level off."
    assert [s.kind for s in a.steps] == [s.kind for s in b.steps]
    off = 0
    for x, y in zip(a.steps, b.steps):
        assert x.ids == y.ids
        if x.kind == "draw": off = max(off, np.abs(np.asarray(x.picture, int) - np.asarray(y.picture, int)).max())
    assert off <= 3
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-2 if off else 1e-4)
    assert a.answer == b.answer


def mix(engine, seed):
    "A dozen requests, chosen at random: the same list of facts each time, fresh requests."
    rng = np.random.default_rng(seed)
    return [engine.request(ROOMS[rng.integers(4)], QUESTIONS[rng.integers(3)], MODES[rng.integers(4)], (seed, i)) for i in range(8)]


@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (1.0, 1.0), (1.3, 0.8)])
def test_company_order_and_batch_size_do_not_matter(tiny, temperature, top_p):
    options = dict(temperature=temperature, top_p=top_p, max_new_tokens=70)
    engine = tiny.engine(batch_size=8, **options)
    together = engine.run(mix(engine, 5))
    order = np.random.default_rng(1).permutation(8)
    shuffled, requests = [None] * 8, mix(engine, 5)
    for i, t in zip(order, tiny.engine(batch_size=3, **options).run([requests[i] for i in order])): shuffled[i] = t
    for a, b in zip(together, shuffled): alike(a, b)


def test_a_group_shares_its_prompt_and_nothing_else(tiny):
    engine = tiny.engine(temperature=1.0, max_new_tokens=70)
    seeds = [(3, k) for k in range(4)]
    group = engine.run(engine.group(ROOMS[1], QUESTIONS[1], "cooperate", seeds))
    for s, t in zip(seeds, group): alike(t, engine.run([engine.request(ROOMS[1], QUESTIONS[1], "cooperate", s)])[0])


def test_a_seed_is_a_seed(tiny):
    engine = tiny.engine(temperature=1.0, max_new_tokens=40)
    a, b, c = engine.run([engine.request(ROOMS[0], QUESTIONS[0], "reason", s) for s in ((1, 0), (1, 0), (1, 1))])
    assert a.steps[0].ids == b.steps[0].ids and a.logprobs != c.logprobs


def test_guided_drawings_of_different_sizes():
    "Random weights, the released protocol with its guidance: each drawing is renormalised by itself."
    co = cooper.load("tests/golden/bagel-tiny/checkpoint")
    pictures = [Image.open(ROOMS[0]).resize(size) for size in ((96, 64), (64, 96), (64, 64))]
    for sampler in (dict(num_timesteps=4, interval=(0.0, 1.0), renorm=r) for r in ("global", "channel", "text_channel")):
        engine = co.engine(sampler=sampler, max_new_tokens=4)
        requests = lambda: [engine.request(p, "What is in front?", "perceive", (i,)) for i, p in enumerate(pictures)]
        for together, alone in zip(engine.run(requests()), [engine.run([r])[0] for r in requests()]): alike(together, alone)


def test_maps_of_many_pictures_are_the_maps_of_each(tiny):
    seeds = [(0, i) for i in range(3)]
    many = tiny.engine(batch_size=2).perceive(ROOMS[:3], "depth", seeds)
    for room, seed, m in zip(ROOMS, seeds, many):
        np.testing.assert_allclose(m.values, tiny.engine().perceive([room], "depth", [seed])[0].values, atol=1e-3)


@pytest.mark.parametrize("options, message", [
    (dict(temperature=-1), "temperature is -1"), (dict(temperature=float("nan")), "temperature is nan"), (dict(temperature=float("inf")), "temperature is inf"),
    (dict(temperature="1"), "temperature is '1'; expected a number, 0 or more"), (dict(top_p=0), "top_p is 0; expected a number, above 0, at most 1"),
    (dict(batch_size=0), "batch_size is 0; expected a whole number, 1 or more"), (dict(batch_size=-1), "batch_size is -1"), (dict(batch_size=None), "batch_size is None"),
    (dict(max_new_tokens=-3), "max_new_tokens is -3"), (dict(max_new_tokens=False), "max_new_tokens is False"), (dict(max_turns=-1), "max_turns is -1"),
    (dict(max_turns=1.5), "max_turns is 1.5"), (dict(sampler="fast"), "sampler is 'fast'; expected a dict")])
def test_settings_that_cannot_be_are_named(tiny, options, message):
    with pytest.raises(ValueError, match=message): tiny.engine(**options)


@pytest.mark.parametrize("options, message", [
    (dict(steps=3), "sampler has steps; expected some of num_timesteps"), (dict(num_timesteps=1), "num_timesteps is 1"), (dict(num_timesteps=2.5), "num_timesteps is 2.5"),
    (dict(shift=0), "shift is 0; expected a number, above 0"), (dict(cfg_text=-1), "cfg_text is -1"), (dict(cfg_img=float("nan")), "cfg_img is nan"),
    (dict(interval=(1,)), r"interval is \(1,\); expected two"), (dict(interval=(0.8, 0.4)), r"interval\[1\] is 0.4; expected a number, 0.8 or more, at most 1"),
    (dict(interval=(-0.1, 1)), r"interval\[0\] is -0.1"), (dict(renorm_min=2), "renorm_min is 2"), (dict(renorm="none"), "expected one of global, channel, text_channel")])
def test_settings_of_the_sampler_that_cannot_be_are_named(tiny, options, message):
    with pytest.raises(ValueError, match=message): tiny.engine(sampler=options)


def test_questions_that_cannot_be_are_named(tiny):
    for nothing in (None, "", " \n"):
        with pytest.raises(ValueError, match=f"question is {re.escape(repr(nothing))}; expected words"): tiny.ask(ROOMS[0], nothing)
    for mode in ("perceive", "cooperate"):
        with pytest.raises(ValueError, match=f"mode {mode} draws maps of a picture and there is none"): tiny.ask([], QUESTIONS[0], mode)
    assert tiny.ask([], QUESTIONS[0], "direct", max_new_tokens=3).tokens
    with pytest.raises(ValueError, match="1 seeds for 2 pictures"): tiny.engine().perceive(ROOMS[:2], "depth", [(0,)])
    with pytest.raises(ValueError, match="there are no seeds"): tiny.engine().group(ROOMS[0], QUESTIONS[0], "direct", [])


def test_a_request_is_run_once(tiny):
    engine = tiny.engine(max_new_tokens=3)
    one, two = engine.group(ROOMS[0], QUESTIONS[0], "direct", [(0,), (1,)])
    with pytest.raises(ValueError, match="run: 1 of 3 requests were run before or stand here twice"): engine.run([one, two, one])
    segments = len(engine.run([one])[0].sequence)
    with pytest.raises(ValueError, match="run: 1 of 2 requests"): engine.run([one, two])
    assert len(engine.run([two])[0].sequence) == segments


def test_a_map_does_not_depend_on_its_place_in_a_list(tiny):
    many = tiny.perceive(ROOMS[:2], "depth", seed=4)
    np.testing.assert_allclose(many[1].values, tiny.perceive(ROOMS[1], "depth", seed=4).values, atol=1e-3)
    assert np.abs(many[1].values - tiny.perceive(ROOMS[1], "depth", seed=5).values).max() > 1e-2, "the seed does nothing"


def scripted(engine, *turns):
    "The engine writes these turns, one after the other; everything else is its own."
    turns = [list(engine.processor.text(t).ids[1:]) for t in turns]
    def write(writers):
        for r in writers: r.ids, r.logprobs = [*r.ids, *(new := turns.pop(0))], [*r.logprobs, *[-.1] * len(new)]; r.pending = []; engine._close(r)
    engine._write = write
    return engine


@pytest.mark.parametrize("mode, text, finished, answer", [
    ("reason", "<think>The cube is nearer.</think> The answer is \\boxed{red cube}.", True, "red cube"), ("reason", "<think>The cube", False, None),
    ("direct", "red cube", True, "red cube"), ("cooperate", "<think>The cube.</think> red cube", False, None), ("cooperate", "<think>The cube.</think><answer>red cube</answer>", True, "red cube")])
def test_finished_means_that_there_is_an_answer(tiny, mode, text, finished, answer):
    engine = scripted(tiny.engine(), text)
    trace, = engine.run([engine.request(ROOMS[0], QUESTIONS[2], mode)])
    assert (trace.finished, trace.answer) == (finished, answer)


def test_only_what_the_protocol_has_is_drawn(tiny):
    processor = copy.copy(tiny.processor)
    processor.protocol = tiny.processor.protocol | {"modalities": {"depth": tiny.processor.protocol["modalities"]["depth"]}}
    co = engine_module.Cooper(tiny.model, processor)
    perceived = co.ask(ROOMS[0], QUESTIONS[0], "perceive", max_new_tokens=4)
    assert perceived.drawn == ["depth"]
    with pytest.raises(ValueError, match="does not draw 'segmentation'; expected one of depth"): co.perceive(ROOMS[0], "segmentation")
    engine = scripted(co.engine(), "<think>Where?</think><segmentation>Segment.</segmentation>")
    trace, = engine.run([engine.request(ROOMS[0], QUESTIONS[0], "cooperate")])
    assert trace.drawn == [] and not trace.finished
