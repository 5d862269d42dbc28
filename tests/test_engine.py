"""Law 4: a request's result does not depend on its company. Mixes of modes, sizes, groups, orders and batch sizes, with and without guidance."""
import numpy as np
import pytest
from PIL import Image

import cooper

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


def test_settings_that_cannot_be_are_named(tiny):
    for options, message in ((dict(temperature=-1), "temperature is -1"), (dict(top_p=0), "top_p is 0"), (dict(sampler=dict(num_timesteps=1)), "num_timesteps is 1"),
                             (dict(sampler=dict(renorm="none")), "expected one of global, channel, text_channel")):
        with pytest.raises(ValueError, match=message): tiny.engine(**options)
