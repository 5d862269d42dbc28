"""Law 4: a request's result does not depend on its company. Mixes of modes, sizes, groups, orders and batch sizes, with and without guidance.
And the machine: places, budgets, cancelling, events, given maps; what is read, what is copied, what fits."""
import copy, gc, re, sys, types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cooper
import cooper.model.engine as engine_module
from cooper.measure.speed import PlainCache
from cooper.model.sequence import pack
from cooper.model.traces import Trace
from cooper.model.transformer import Cache
from grpo_house import miniature, room

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


# The machine: places, budgets, cancelling, what is read and what is copied. A few thousand random weights are enough.


@pytest.fixture(scope="module")
def small(): return engine_module.Cooper(*miniature(seed=3, scale=4.0))


def steps_of(engine, *requests):
    "Submits and runs; the phases after each stroke."
    for r in requests: engine.submit(r)
    seen = []
    while engine.step(): seen.append([r.phase for r in requests])
    return seen


def test_a_freed_place_is_taken_by_the_next(small):
    engine = small.engine(batch_size=2, max_new_tokens=6, temperature=1.0)
    requests = [engine.request(room(i), "How many cubes are there?", "reason", (i,), max_tokens=n) for i, n in enumerate((2, 6, 3, 4))]
    seen = steps_of(engine, *requests)
    for phases in seen: assert sum(p not in ("waits", "done") for p in phases) <= 2
    third = next(i for i, p in enumerate(seen) if p[2] != "waits")
    assert seen[third][1] == "writes", "the third begins while the second still writes"
    assert engine.cache is None and all(r.done for r in requests)


def test_company_that_comes_and_goes_does_not_matter(small):
    "Law 4 with cancellations: who stays says what he says alone."
    options = dict(max_new_tokens=12, temperature=1.0)
    modes = ("cooperate", "reason", "perceive", "direct")
    def make(engine, i, on_event=None): return engine.request(room(i % 3), "Which is closer?", modes[i % 4], (9, i), on_event=on_event)
    def leaves(i): # every third one gives up: at its fourth token, or at the first step of its drawing
        return (lambda e: e.request.cancel() if e.kind == "step" or e.request.tokens >= 4 else None) if i % 3 == 0 else None
    for gather in (0, 1):
        engine = small.engine(batch_size=4, gather=gather, **options)
        requests = [make(engine, i, leaves(i)) for i in range(14)]
        traces = engine.run(requests)
        assert {r.ended for r in requests[::3]} >= {"cancelled"}
        for i in (1, 2, 4, 7, 10): alike(traces[i], small.engine(**options).run([make(engine, i)])[0])


def test_cancelled_requests_leave_whole_traces(small):
    engine = small.engine(batch_size=1, max_new_tokens=30, temperature=1.0)
    waiting = engine.request(room(1), "Which is closer?", "reason")
    def stop(event):
        if event.kind == "token" and event.request.tokens == 3: event.request.cancel(); waiting.cancel()
    first = engine.request(room(0), "Which is closer?", "reason", on_event=stop)
    a, b = engine.run([first, waiting])
    assert (a.tokens, a.finished, a.steps[-1].truncated, b.tokens, b.steps) == (3, False, True, 0, [])
    assert [first.ended, waiting.ended] == ["cancelled"] * 2 and len(b.sequence) == len(waiting.sequence)
    with torch.no_grad(): scored, _ = small.model.score(pack([a.sequence], small.model.config.geometry), 1.0, engine.vocabulary)
    np.testing.assert_allclose(scored, a.logprobs, atol=1e-4)


def test_a_callback_that_fails_ends_its_own_request_only(small):
    engine = small.engine(batch_size=3, max_new_tokens=10, temperature=1.0)
    def fails(event):
        if event.kind == "token" and event.request.tokens == 3: raise KeyError("mine")
    make = lambda i, on_event=None: engine.request(room(i), "Which is closer?", "reason", (7, i), on_event=on_event)
    first, *others = (engine.submit(make(i, fails if i == 0 else None)) for i in range(3))
    with pytest.raises(KeyError, match="mine"):
        while engine.step(): pass
    assert not any(r.done for r in others), "it is told at once, when the step is whole"
    while engine.step(): pass
    assert first.ended == "cancelled" and first.tokens == 3
    for i, r in enumerate(others, 1): alike(engine._trace(r), small.engine(max_new_tokens=10, temperature=1.0).run([make(i)])[0])


def test_one_request_without_room_takes_no_other_with_it(small):
    engine = small.engine(max_new_tokens=8)
    need = engine.need(engine.request(room(0), "Which?", "direct"))
    engine = small.engine(max_new_tokens=8, context=need)
    waiting = engine.submit(engine.request(room(0), "Which?", "direct"))
    fine, long = engine.request(room(1), "Which?", "direct"), engine.request(room(0), "Which is closer? " * 20, "direct")
    with pytest.raises(engine_module.NoRoom): engine.run([fine, long])
    assert list(engine.queue) == [waiting] and not fine.submitted
    engine.run([fine])
    assert fine.done and waiting.done


def asking(engine, *turns):
    "A request of mode cooperate that will write these turns."
    turns = [[*engine.processor.tokenizer.encode(t, add_special_tokens=False), engine.processor.eos] for t in turns]
    class Scripted(type(engine)):
        def _wrote(self, r, i, logprob): engine_module.Engine._wrote(self, r, turns[r.turns][len(r.ids) - r.opened], logprob)
    engine.__class__ = Scripted
    return engine


DEPTH, SEGMENTS, ANSWER = "<think>a</think><depth-estimation>b</depth-estimation>", "<think>a</think><segmentation>b</segmentation>", "<think>a</think><answer>1</answer>"


@pytest.mark.parametrize("budget, ended, drawn", [
    (dict(), "answer", ["depth", "segmentation"]), (dict(max_turns=2), "turns", ["depth"]), (dict(max_pictures=1), "pictures", ["depth"]), (dict(max_pictures=0), "pictures", []),
    (dict(max_new_tokens=3), "tokens", []), (dict(max_tokens=10), "tokens", ["depth"]), (dict(max_tokens=7), "tokens", []), (dict(max_seconds=1e-9), "seconds", [])])
def test_budgets_of_a_request(small, budget, ended, drawn):
    engine = asking(small.engine(max_new_tokens=60), DEPTH, SEGMENTS, ANSWER)
    r, free = engine.request(room(0), "Which is closer?", "cooperate", **budget), engine.request(room(0), "Which is closer?", "cooperate")
    trace, other = engine.run([r, free])
    assert (r.ended, trace.drawn, trace.finished) == (ended, drawn, ended == "answer")
    assert r.tokens == trace.tokens == sum(map(sum, (s.sampled for s in trace.written))) <= budget.get("max_tokens", 999)
    assert (free.ended, other.calls) == ("answer", 2), "one budget is nobody else's"


@pytest.mark.parametrize("budget, message", [(dict(max_token=3), "max_token is no budget; expected some of max_turns"), (dict(max_tokens=0), "max_tokens is 0"),
    (dict(max_seconds=-1), "max_seconds is -1"), (dict(max_pictures=1.5), "max_pictures is 1.5"), (dict(top_p=2), "top_p is 2"), (dict(given={"normals": None}), "given has 'normals'; expected some of depth")])
def test_budgets_that_cannot_be_are_named(small, budget, message):
    with pytest.raises(ValueError, match=message): small.engine().request(room(0), "Which?", "cooperate", **budget)


def test_events_tell_all_of_it(small):
    engine, events = asking(small.engine(max_new_tokens=60), DEPTH, ANSWER), []
    trace, = engine.run([engine.request(room(0), "Which is closer?", "cooperate", on_event=events.append)])
    assert "".join(e.text for e in events if e.kind == "token") == DEPTH + ANSWER and [e.id for e in events if e.kind == "token"] == [i for s in trace.written for i, m in zip(s.ids, s.sampled) if m]
    assert [(e.k, e.n) for e in events if e.kind == "step"] == [(1, 2), (2, 2)]
    shown = [e for e in events if e.kind in ("step", "drawn")]
    assert np.abs(np.asarray(shown[1].preview(), int) - np.asarray(trace.steps[1].picture, int)).max() <= 1, "the preview after the last step is the drawing"
    assert events[-1].kind == "finished" and events[-1].trace.answer == trace.answer == "1"


def test_letters_come_whole(small):
    engine, events = asking(small.engine(max_new_tokens=60), "é€😀 ok"), []
    engine.run([engine.request(room(0), "Which?", "direct", on_event=events.append)])
    texts = [e.text for e in events if e.kind == "token"]
    assert "".join(texts) == "é€😀 ok" and "" in texts and not any("\ufffd" in t for t in texts)


def test_a_prompt_is_read_once(small, monkeypatch):
    "A group reads its prompt once and everybody's begin; guided contexts read only what is new in them."
    counted, real = [], engine_module.read
    def read(model, cache, slots, sequences, positions, attention):
        counted.append([sum(engine_module.token_count(s, model.config.geometry) for s in x.segments) for x in sequences])
        return real(model, cache, slots, sequences, positions, attention)
    monkeypatch.setattr(engine_module, "read", read)
    engine = small.engine(max_new_tokens=2, temperature=1.0, batch_size=3)
    group = engine.group(room(0), "How many cubes are there?", "reason", [(i,) for i in range(5)])
    prompt = sum(engine_module.token_count(s, small.model.config.geometry) for s in group[0].sequence.segments)
    engine.run(group)
    assert counted[0] == [prompt + 1] and counted[1] == [1, 1] and sum(map(sum, counted)) == prompt + 5, "those who come later find it in a place that was left"
    counted.clear()
    engine = asking(small.engine(max_new_tokens=60, sampler=dict(cfg_text=4.0, cfg_img=2.0)), DEPTH, ANSWER)
    r, = engine.group(room(0), "How many cubes are there?", "cooperate", [(0,)])
    trace, = engine.run([r])
    no_words, no_picture = counted[2]
    pictures = sum(engine_module.token_count(s, small.model.config.geometry) for s in r.sequence.pictures)
    assert no_words == len(small.processor.text("<think>a</think>").ids) and no_picture == len(r.sequence.segments[-1].ids) + len(trace.steps[0].ids) < pictures


def test_branches_that_cannot_matter_are_not_run(small, monkeypatch):
    rows, real = [], engine_module.Brush.__call__
    monkeypatch.setattr(engine_module.Brush, "__call__", lambda self, times: rows.append(len(times)) or real(self, times))
    for sampler, expected in ((dict(), [1] * 4), (dict(cfg_text=4.0), [2] * 4), (dict(cfg_text=4.0, cfg_img=2.0), [3] * 4), (dict(cfg_img=2.0), [1] * 4),
                              (dict(cfg_text=4.0, cfg_img=2.0, interval=(0.7, 1.0)), [3, 3, 3, 1]), (dict(cfg_text=4.0, interval=(0.7, 0.95)), [1, 2, 2, 1])):
        rows.clear()
        engine = small.engine(sampler=dict(num_timesteps=5, interval=(0.0, 1.0)) | sampler)
        engine.perceive([room(0)], "depth", [(0,)])
        assert rows == expected, (sampler, [round(t, 2) for t in engine.sampler.times()])


class Largest(TorchDispatchMode):
    "Remembers the largest new tensor that any operation makes."
    def __init__(self): super().__init__(); self.numbers = 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in old)])
        return out


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_nothing_of_the_context_is_copied_for_a_token_or_a_step(kv_heads):
    "The largest tensor made while decoding, or in a step of a drawing, has no more numbers after 3000 tokens than after 300: but a score for each head and key of a word, and one for each key, where keys must be hidden."
    model, _ = miniature(kv_heads=kv_heads)
    def largest(lengths):
        cache = Cache(model.config.text_config, 4, 3100, grows=False)
        cache.lengths[:] = torch.tensor(lengths)
        with Largest() as word: model.language_model.model.decode(torch.zeros(3, dtype=torch.long), cache, [0, 1, 3], lengths[:2] + lengths[3:])
        c = engine_module.canvas(model, [2], [lengths[2]], (8, 8, 8), torch.Generator().manual_seed(0))
        brush = engine_module.Brush(model, cache, [(c, 0)])
        with Largest() as step: brush([0.5])
        return word.numbers, step.numbers
    short, long = largest([300] * 4), largest([3000] * 4)
    assert short[1] == long[1] and long[0] <= (short[0] if kv_heads == 1 else 2 * 2 * 3001)
    assert largest([300, 250, 300, 200])[0] < 1000 and largest([3000, 2500, 3000, 2000])[0] <= 2 * kv_heads * 3001
    slow = PlainCache(model.config.text_config)
    slow.layers, slow.lengths[:] = [torch.zeros(2, 1, kv_heads, 3000, 24)] * 2, 3000
    with Largest() as plain: model.language_model.model.decode(torch.zeros(1, dtype=torch.long), slow, [0], [3000])
    assert plain.numbers > 3000 * kv_heads * 24, "the test has no power: the plain way copies its context"


def test_many_pass_through_a_small_store(small):
    "500 requests, 16 places: one store, never another, and nothing stays behind."
    engine, stores = small.engine(batch_size=16, max_new_tokens=3, temperature=1.0), set()
    requests = [engine.request(room(i % 5), "Which?", "direct", (i,)) for i in range(500)]
    for r in requests: engine.submit(r)
    engine._open()
    size = engine.cache.store.numel()
    while engine.step():
        stores.add((engine.cache.store.data_ptr(), engine.cache.store.numel()))
        assert len(engine.held) <= 16 and len(engine._latents) <= 64
    assert len(stores) == 1 and stores.pop()[1] == size and all(r.done and r.tokens for r in requests)
    assert size == engine_module.bytes_per_token(small.model.config.text_config, torch.float32) // 4 * 16 * engine.need(requests[0])


def test_what_never_fits_is_refused_and_what_does_not_fit_now_waits(small):
    engine = small.engine(max_new_tokens=8)
    long, short = (engine.request(room(0), words, "direct") for words in ("Which is closer? " * 20, "Which?"))
    need = engine.need(short)
    per_place = engine_module.bytes_per_token(small.model.config.text_config, torch.float32) * need / 2 ** 30
    with pytest.raises(engine_module.NoRoom, match="a request may come to .* expected more memory or smaller budgets"): small.engine(max_new_tokens=8, memory=per_place * 1.5).run([long])
    with pytest.raises(engine_module.NoRoom, match=f"a place has {need}; expected a larger context"): small.engine(max_new_tokens=8, context=need).submit(long)
    tight = small.engine(max_new_tokens=8, memory=per_place * 2.5)
    tight.submit(short); more = [tight.submit(tight.request(room(0), "Which?", "direct", (i,))) for i in range(4)]
    tight.step()
    assert len(tight.places) == 2 and [r.phase for r in (short, *more)].count("waits") == 3
    while tight.step(): pass
    assert all(r.done for r in more)
    engine.submit(engine.request(room(0), "Which?", "direct")); engine.step(); engine.submit(long); engine.step()
    assert (long.phase, engine.cache.capacity) == ("waits", need), "the store is too small for it: it waits for the next one"
    while engine.step(): pass
    assert long.ended and small.model.training is False


def test_capacity_counts_what_is_held(small):
    c = small.engine(sampler=dict(cfg_text=4.0, cfg_img=2.0)).capacity(memory=1, context=100)
    text = small.model.config.text_config
    assert c.weights == sum(p.numel() for p in small.model.parameters()) * 4 and c.contexts == 3
    assert c.per_token == 2 * 2 * 2 * 24 * 4 == Cache(text, 1).bytes_per_token
    assert c.requests == int((2 ** 30 - c.weights - c.working) // (100 * 3 * c.per_token + c.latents))
    assert small.engine().capacity(memory=1e-6).requests == 0


def test_a_trace_goes_on_with_another_map(small):
    engine = asking(small.engine(max_new_tokens=60), DEPTH, SEGMENTS, ANSWER)
    trace, = engine.run([engine.request(room(0), "Which is closer?", "cooperate")])
    assert [s.kind for s in trace.steps] == ["write", "draw", "write", "draw", "write"]
    blank = Image.new("RGB", (32, 32))
    for kept, drawn in ((0, 2), (1, 2), (2, 1), (3, 1), (4, 0)):
        r = engine.resumed(trace, kept, given={"depth": blank, "segmentation": blank})
        again, = engine.run([r])
        assert [s.ids for s in again.steps] == [s.ids for s in trace.steps] and again.steps[:kept] == trace.steps[:kept]
        assert sum(not np.asarray(s.picture).any() for s in again.steps if s.kind == "draw") == drawn
        with torch.no_grad(): scored, _ = small.model.score(pack([again.sequence], small.model.config.geometry), 1.0, engine.vocabulary)
        assert len(scored) == again.tokens
    for wrong in (-1, 5): 
        with pytest.raises(ValueError, match="expected 0 to 4, the trace has 5"): engine.resumed(trace, wrong)
    other = copy.copy(small.processor); other.protocol = small.processor.protocol | {"system": dict.fromkeys(MODES, "Which?")}
    with pytest.raises(ValueError, match="begins with other words"): engine_module.Engine(small.model, other).resumed(trace, 1)
    back = Trace.from_dict(trace.to_dict()) # a trace from a file will do
    assert engine.run([engine.resumed(back, 2)])[0].answer == "1"


@pytest.mark.parametrize("kept, budget, ended, drawn", [
    (1, dict(max_pictures=0), "pictures", 0), (1, dict(max_turns=1), "turns", 0), (1, dict(max_tokens=7), "tokens", 0), (2, dict(max_turns=1), "turns", 1), (2, dict(max_pictures=1), "pictures", 1),
    (3, dict(max_pictures=1), "pictures", 1), (3, dict(max_pictures=2, max_turns=3), "answer", 2)])
def test_a_trace_that_goes_on_has_the_same_budgets(small, kept, budget, ended, drawn):
    "What its kept steps have spent counts: nothing is drawn or written beyond."
    engine = asking(small.engine(max_new_tokens=60), DEPTH, SEGMENTS, ANSWER)
    trace, = engine.run([engine.request(room(0), "Which is closer?", "cooperate")])
    r = engine.resumed(trace, kept, **budget)
    again, = engine.run([r])
    assert (r.ended, len(again.drawn)) == (ended, drawn) and again.steps[:kept] == trace.steps[:kept]
    assert r.turns <= budget.get("max_turns", 9)
    if kept == 1: assert len(again.sequence) == len(r.sequence) and again.steps == trace.steps[:1]


def test_a_trace_that_goes_on_keeps_its_temperature(small):
    "Law 2: one trace, one temperature. Words that were given have none."
    engine = asking(small.engine(max_new_tokens=60, temperature=0.5), DEPTH, ANSWER)
    trace, = engine.run([engine.request(room(0), "Which is closer?", "cooperate")])
    with pytest.raises(ValueError, match="recorded at temperature 0.5, and new ones would be at 1; expected the same"): engine.resumed(trace, 2, temperature=0)
    assert engine.resumed(trace, 0, temperature=2.0).temperature == 2.0
    perceived, = small.engine(max_new_tokens=2).run([engine.request(room(0), "Which is closer?", "perceive", temperature=0.5)])
    assert engine.resumed(perceived, 2, temperature=2.0).temperature == 2.0


def test_who_is_shut_out_is_done(small):
    "Nobody waits for ever for what was given up: at work or in the queue."
    engine = small.engine(batch_size=1, max_new_tokens=6)
    at_work, waiting = (engine.submit(engine.request(room(i), "Which?", "direct")) for i in range(2))
    engine.step()
    engine.shut()
    assert [(r.done, r.ended, r.phase) for r in (at_work, waiting)] == [(True, "cancelled", "done")] * 2 and engine.cache is None and not engine.step()
    assert engine.run([engine.request(room(0), "Which?", "direct")])[0].tokens


def test_its_own_map_gives_the_same_trace(tiny):
    trace = tiny.ask(ROOMS[0], QUESTIONS[0], "perceive", max_new_tokens=20)
    engine = tiny.engine(max_new_tokens=20)
    same, = engine.run([engine.resumed(trace, 1, given={"depth": trace.steps[1].map})])
    assert [s.ids for s in same.steps] == [s.ids for s in trace.steps] and same.steps[1].map is trace.steps[1].map
    assert np.abs(np.asarray(same.steps[3].picture, int) - np.asarray(trace.steps[3].picture, int)).max() <= 3, "the second drawing sees the same first"


def test_thoughts_choose_steps_guidance_and_resolution(small):
    protocol = small.processor.protocol | {"sampler": small.processor.protocol["sampler"] | dict(num_timesteps=9, cfg_text=4.0, cfg_img=2.0)}
    processor = copy.copy(small.processor); processor.protocol = protocol
    seen = {}
    for name in engine_module.THOUGHTS:
        engine = engine_module.Engine(small.model, processor, thought=name)
        seen[name] = (engine.sampler.num_timesteps - 1, len(engine.sampler.branches()), engine.sampler.resolution)
        drawn, = engine.perceive([room(0)], "depth", [(0,)])
        assert drawn.values.shape == (32, 32), "a drawing of half the side is brought to the size of the others"
    assert seen == dict(full=(8, 3, 1), fast=(4, 3, 1), unguided=(8, 1, 1), draft=(2, 1, 1), small=(4, 1, .5))
    for wrong, message in ((dict(thought="quick"), "thought is 'quick'; expected one of full, fast"), (dict(thought="fast", sampler=engine_module.Sampler()), "expected one of them"),
                           (dict(gather=2), "gather is 2"), (dict(memory=0), "memory is 0"), (dict(tokens_per_pass=0), "tokens_per_pass is 0")):
        with pytest.raises(ValueError, match=message): small.engine(**wrong)


def test_small_passes_change_nothing(small):
    options = dict(temperature=1.0, max_new_tokens=5)
    requests = lambda e: [e.request(room(i), "Which is closer?", "perceive", (i,)) for i in range(3)]
    wide, narrow = small.engine(**options), small.engine(tokens_per_pass=40, **options)
    for a, b in zip(wide.run(requests(wide)), narrow.run(requests(narrow))): alike(a, b)
    assert engine_module.passes([30, 30, 50, 5, 5], 60) == [[0, 1], [2, 3, 4]] and engine_module.passes([99], 60) == [[0]]


def test_the_store_holds_what_the_layers_give(small):
    "Under autocast that is bfloat16: a store in float32 would be converted, all of it, for every token. Log-probabilities stay within 0.1 of the scorer's under the same autocast."
    engine = small.engine(max_new_tokens=6, temperature=1.0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        r = engine.submit(engine.request(room(0), "Which is closer?", "perceive"))
        engine.step()
        assert engine.cache.store.dtype == torch.bfloat16
        while engine.step(): pass
        trace = engine._trace(r)
        scored, _ = small.model.score(pack([trace.sequence], small.model.config.geometry), 1.0, engine.vocabulary)
    np.testing.assert_allclose(scored, trace.logprobs, atol=0.1)
    assert engine.dtype == torch.float32


def test_drawings_do_not_starve(small):
    "Beside a steady stream of short answers a drawing begins after so many strokes; without patience's end it would wait for ever."
    def strokes(patience):
        engine, n, i = small.engine(batch_size=7, max_new_tokens=8, patience=patience), 0, 0
        r = engine.submit(engine.request(room(0), "Which is closer?", "perceive"))
        while r.drawings == 0 and n < 30:
            while len(engine.queue) < 6: engine.submit(engine.request(room(1), "Which?", "direct", (i,), max_tokens=2 + i % 5)); i += 1
            engine.step(); n += 1
        engine.shut()
        return n
    assert 10 < strokes(10) < 16 and strokes(1000) == 30


@pytest.mark.parametrize("most, drawn", [(0, []), (1, ["depth"]), (2, ["depth", "segmentation"]), (None, ["depth", "segmentation"])])
def test_pictures_are_a_budget_of_perceiving_too(small, most, drawn):
    engine = small.engine(max_new_tokens=3)
    r = engine.request(room(0), "Which is closer?", "perceive", max_pictures=most)
    assert engine.run([r])[0].drawn == drawn and r.needed >= int(engine.need(r))


def test_a_given_map_may_be_larger_than_the_picture(small):
    "It is counted before the request has a place, as a picture and as numbers."
    engine, flat, square = small.engine(max_new_tokens=3), room(0).resize((32, 8)), room(1)
    maps = {"depth": small.perceive(square, "depth")}, {"depth": square, "segmentation": square}
    without = engine.need(engine.request(flat, "Which is closer?", "perceive"))
    for given in maps:
        r = engine.request(flat, "Which is closer?", "perceive", given=given)
        assert engine.need(r) > without
        trace, = engine.run([r])
        tokens = sum(engine_module.token_count(s, small.model.config.geometry) for s in trace.sequence.segments)
        assert without < tokens <= r.needed


def test_drawings_are_decoded_as_memory_allows(small, monkeypatch):
    config, counted, real = small.model.config, [], type(small.model).decode_latents
    monkeypatch.setattr(type(small.model), "decode_latents", lambda self, z: counted.append(len(z)) or real(self, z))
    latents = [torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    one = engine_module.decoding_bytes(config, (8, 8, 8), torch.float32)
    assert one == 4 * 4 * 48 * 32 * 32, "the finest level is fed by 48 channels"
    whole, slices = engine_module.decode_drawings(small.model, latents), engine_module.decode_drawings(small.model, latents, 2.5 * one)
    assert counted == [5, 2, 2, 1]
    for a, b in zip(whole, slices): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert engine_module.capacity_of(config, tokens_per_pass=1, side=2048, dtype=torch.float32).working == engine_module.decoding_bytes(config, (8, 512, 512), torch.float32)


def test_a_trace_says_at_which_temperature_it_was_recorded(small):
    engine = small.engine(max_new_tokens=6, temperature=1.0)
    traces = engine.run([engine.request(room(i), "Which?", "direct", (i,), temperature=t) for i, t in enumerate((None, 0.5, 2.0, 0))])
    assert [t.temperature for t in traces] == [1.0, 0.5, 2.0, 1.0]
    for t in map(Trace.from_dict, (t.to_dict() for t in traces)):
        with torch.no_grad(): scored, _ = small.model.score(pack([t.sequence], small.model.config.geometry), t.temperature, engine.vocabulary)
        np.testing.assert_allclose(scored, t.logprobs, atol=1e-4)


def test_what_is_free_on_a_gpu_is_counted(small, monkeypatch):
    "What the driver gives, and what torch holds without using it; the largest pass stays free. There is no GPU here: the numbers are pretended."
    for name, value in (("mem_get_info", (3 * 2 ** 30, 9 * 2 ** 30)), ("memory_reserved", 2 * 2 ** 30), ("memory_allocated", 2 ** 30)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    engine = small.engine(max_new_tokens=4)
    monkeypatch.setattr(type(small.model), "device", torch.device("cuda"), raising=False)
    c = engine.capacity()
    assert engine._room == 0.9 * 4 * 2 ** 30 - c.working and c.memory == 4 * 2 ** 30 + c.weights
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 9 * 2 ** 30)); monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 ** 30)
    with pytest.raises(engine_module.NoRoom, match="and there are 0 MiB"): engine.submit(engine.request(room(0), "Which?", "direct"))


def test_memory_stays_as_it_is(small):
    "Bytes of all tensors alive, while 60 requests, which nobody keeps, pass through four places."
    def alive(): return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is torch.Tensor}.values())
    engine, seen = small.engine(batch_size=4, max_new_tokens=3, temperature=1.0), []
    for i in range(60):
        engine.submit(engine.request(room(i % 7), "Which?", ("direct", "perceive")[i % 10 == 0], (i,)))
        while len(engine.queue) > 3: engine.step()
        if i % 10 == 9: gc.collect(); seen.append(alive())
    engine.shut()
    assert max(seen[1:]) - min(seen[1:]) < 0.1 * seen[0], seen


# Attention by other functions, and the compiler


def pretended_flash(calls, half=True):
    "A flash-attn that checks what it is handed, as its documentation has it, and computes the same by sdpa."
    def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None,
                                block_table=None, softmax_scale=None, causal=False):
        (B, L, H, d), (slots, T, K, _) = q.shape, k_cache.shape
        assert v_cache.shape == k_cache.shape == (slots, T, K, d) and H % K == 0 and q.dtype == k_cache.dtype == v_cache.dtype
        assert q.dtype in (torch.bfloat16, torch.float16) or not half
        assert all(x.stride(-1) == 1 for x in (q, k_cache, v_cache))
        for x in (cache_seqlens, cache_batch_idx): assert x.dtype == torch.int32 and x.shape == (B,) and x.is_contiguous()
        assert cache_seqlens.min() >= L and cache_seqlens.max() <= T and cache_batch_idx.max() < slots
        calls.append((B, L, causal))
        out = torch.empty_like(q)
        for b, (slot, n) in enumerate(zip(cache_batch_idx.tolist(), cache_seqlens.tolist())):
            keys, values = (x[slot, :n].transpose(0, 1).repeat_interleave(H // K, 0) for x in (k_cache, v_cache))
            seen = torch.arange(n) <= n - L + torch.arange(L)[:, None] if causal else None # aligned at the bottom right
            out[b] = torch.nn.functional.scaled_dot_product_attention(q[b].transpose(0, 1), keys, values, attn_mask=seen).transpose(0, 1)
        return out
    return types.SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache)


@torch.no_grad()
@pytest.mark.parametrize("attention, kv_heads", [("flash_attention_2", 2), ("flash_attention_2", 1), ("flex_attention", 1)])
def test_other_attention_gives_the_same_vectors(monkeypatch, attention, kv_heads):
    "In pieces behind a cache: prompts of unlike lengths, then pictures and words, drawings, one word more. And the training pack, which flash refuses."
    calls = []
    monkeypatch.setitem(sys.modules, "flash_attn", pretended_flash(calls, half=False))
    (model, processor), sampled = miniature(kv_heads=kv_heads), torch.Generator().manual_seed(0)
    lm, g = model.language_model.model, model.config.geometry
    picture = [engine_module.replace(s, latents=torch.randn(8, 4, 4, generator=sampled)) if s.view == "clean" else s for s in processor.picture(room(0), ("clean", "vision"))]
    words = [processor.text("Which is closer?"), processor.text("Which?")]
    reads = [[[*picture, *words], [words[1]], [words[0], picture[0]]], [[picture[1], words[0]], [words[1], picture[1], words[1]], [words[0]]]]
    def everything(attention):
        cache, at, out = Cache(model.config.text_config, 5, 128, grows=False), [0] * 3, []
        for sequences in reads:
            last, at, hidden = engine_module.read(model, cache, [0, 1, 3], [engine_module.Sequence(s) for s in sequences], at, attention)
            out.append(hidden)
        drawn = engine_module.canvas(model, [1], [at[1]], (8, 8, 8), torch.Generator().manual_seed(1))
        out += engine_module.Brush(model, cache, [(drawn, 0)], attention)([.5])
        return [*out, lm.decode(torch.tensor([5, 6, 7]), cache, [0, 1, 3], at, attention)]
    for a, b in zip(everything(attention), everything("sdpa")): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    if attention == "flash_attention_2":
        assert {(L > 1, causal) for _, L, causal in calls} == {(True, True), (True, False), (False, False)}, "text, pictures and single words"
    noised = engine_module.PictureSegment(None, "noised", latents=picture[0].latents, noise=torch.zeros(4, 32), timestep=.5)
    training = pack([engine_module.Sequence([*picture, words[0], noised, words[1]]), engine_module.Sequence(words)], g)
    x = model.embed(training, model.latent_tokens(training))
    if attention == "flex_attention": torch.testing.assert_close(lm(x, training, attention=attention), lm(x, training), atol=1e-5, rtol=0)
    else:
        with pytest.raises(ValueError, match="expected sdpa or flex_attention"): lm(x, training, attention=attention)
        with pytest.raises(ValueError, match="a noised picture is hidden from what follows it"): lm(x, training, Cache(model.config.text_config, 2), [0, 1], attention=attention)


def test_flash_attention_in_the_engine(monkeypatch):
    "In bfloat16, all modes, a guided drawing: recorded log-probabilities are the scorer's, who uses sdpa, within 0.1."
    calls = []
    monkeypatch.setitem(sys.modules, "flash_attn", pretended_flash(calls))
    model, processor = miniature(seed=3, scale=4.0)
    with pytest.raises(ValueError, match="'flash_attention_2' and the model is in torch.float32; expected torch.bfloat16"): engine_module.Engine(model, processor, attention="flash_attention_2")
    model = model.to(torch.bfloat16)
    engine = engine_module.Engine(model, processor, attention="flash_attention_2", max_new_tokens=3, temperature=1.0, sampler=dict(num_timesteps=3, cfg_text=4.0, cfg_img=2.0))
    for t in engine.run([engine.request(room(i), "Which is closer?", mode, (i,)) for i, mode in enumerate(MODES)]):
        with torch.no_grad(): scored, _ = model.score(pack([t.sequence], model.config.geometry), 1.0, engine.vocabulary)
        np.testing.assert_allclose(scored, t.logprobs, atol=0.1)
    assert len({c for c in calls}) > 4


def test_flex_attention_in_the_engine(small):
    options = dict(max_new_tokens=3, temperature=1.0)
    requests = lambda e: [e.request(room(i), "Which is closer?", mode, (i,)) for i, mode in enumerate(("perceive", "direct"))]
    plain, flex = small.engine(**options), small.engine(attention="flex_attention", **options)
    for a, b in zip(plain.run(requests(plain)), flex.run(requests(flex))): alike(a, b)
    assert small.engine(attention=dict(read="flex_attention")).attention == dict(read="flex_attention", write="sdpa", draw="sdpa")


@pytest.mark.parametrize("wrong, message", [
    (dict(attention="eager"), "attention is 'eager'; expected one of sdpa"), (dict(attention=dict(look="sdpa")), "attention has 'look'; expected some of read, write, draw"),
    (dict(attention="flash_attention_2"), "needs the package flash-attn"), (dict(compile="fast"), "compile is 'fast'; expected True, False or one of"), (dict(patience=0), "patience is 0")])
def test_ways_that_cannot_be_are_named(small, wrong, message):
    with pytest.raises(ValueError, match=message): small.engine(**wrong)


def test_compiling_needs_a_compiler(small, monkeypatch):
    from torch._inductor import cpp_builder, exc
    def none(): raise exc.InvalidCxxCompiler()
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match="compile needs a C\\+\\+ compiler .* expected it, or compile=False"): small.engine(compile=True)


def test_compiled_words_are_the_same(small):
    "Greedy, alone and with others that leave at different times; the backend that only traces is enough to see that nothing is lost. Log-probabilities within 1e-4."
    options = dict(max_new_tokens=8)
    requests = lambda e: [e.request(room(i), "Which is closer?", "reason", (i,), max_tokens=n) for i, n in enumerate((8, 3, 5))]
    plain, compiled = small.engine(**options), small.engine(compile="eager", **options)
    for a, b in zip(plain.run(requests(plain)), compiled.run(requests(compiled))): alike(a, b)


class Replay:
    "In the place of a CUDA graph: shapes must stay, and the answer is overwritten by the next call."
    made = []
    def __init__(self, run, *inputs): self.run, self.shapes = run, [x.shape for x in inputs]; self.out = run(*inputs); Replay.made.append(self.shapes)
    def __call__(self, *inputs):
        assert [x.shape for x in inputs] == self.shapes
        self.out.copy_(self.run(*inputs))
        return self.out


def test_recorded_words_are_the_same(small, monkeypatch):
    "Law 4 on the road of CUDA graphs, with a pretended recorder: who does not write leaves no trace, in places that are full to the last token too."
    monkeypatch.setattr(engine_module, "Recorded", Replay); Replay.made.clear()
    options = dict(max_new_tokens=6, temperature=1.0, batch_size=3)
    requests = lambda e: [e.request(room(i % 3), "Which is closer?", MODES[i % 4], (i,), max_tokens=2 + i) for i in range(8)]
    plain, recorded = small.engine(**options), small.engine(**options)
    recorded._graphs = {}
    for a, b in zip(plain.run(requests(plain)), recorded.run(requests(recorded))): alike(a, b)
    assert 1 < len(Replay.made) <= 6 and recorded._graphs == {}
