"Law 2: what is trained is what is sampled. Log-probabilities recorded by the engine against those of the one scorer, pictures included."
import pytest, torch

import cooper.model.engine as engine_module
from cooper.model.engine import Engine
from cooper.model.sequence import TextSegment, pack
from grpo_house import miniature, room

BOUND = 1e-4 # float32


@pytest.fixture(scope="module")
def cooper_(): return miniature(seed=3, scale=4.0) # weights four times larger: a distribution that is far from uniform


def forced(monkeypatch, processor, script, forced_requests):
    "Lets the first turn of some requests be `script`; everything else is sampled. The recorded numbers are the engine's own."
    ids = [*processor.tokenizer.encode(script, add_special_tokens=False), processor.eos]
    left, real = {id(r.words): list(ids) for r in forced_requests}, engine_module.pick
    def pick(logp, temperature, top_p, generators):
        chosen = real(logp, temperature, top_p, generators)
        return torch.tensor([left[id(g)].pop(0) if left.get(id(g)) else c for g, c in zip(generators, chosen.tolist())])
    monkeypatch.setattr(engine_module, "pick", pick)


def traces(monkeypatch, model, processor, temperature, top_p):
    "Six traces each with 0, 1 and 2 drawings, all in one batch of one engine, and their recorded log-probabilities."
    engine = Engine(model, processor, max_new_tokens=40, temperature=temperature, top_p=top_p)
    none = engine.group(room(0), "How many cubes are there?", "reason", [(1, "reason", k) for k in range(6)])
    two = engine.group(room(1), "Which is closer?", "perceive", [(1, "perceive", k) for k in range(6)])
    one = engine.group(room(2), "Which is larger?", "cooperate", [(1, "cooperate", k) for k in range(6)])
    request = {m: f"<think>a</think><{t}>b</{t}>" for m, t in (("depth", "depth-estimation"), ("segmentation", "segmentation"))}
    forced(monkeypatch, processor, request["depth"], one)
    return engine, engine.run(none + two + one)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (1.0, 0.5)])
def test_the_scorer_gives_what_the_sampler_recorded(monkeypatch, cooper_, temperature, top_p):
    model, processor = cooper_
    engine, ts = traces(monkeypatch, model, processor, temperature, top_p)
    assert len(ts) >= 16 and {0, 1, 2} <= {t.calls for t in ts}, sorted(t.calls for t in ts)
    batch = pack([t.sequence for t in ts], model.config.geometry)
    with torch.no_grad(): scored, _ = model.score(batch, temperature, engine.vocabulary)
    recorded = torch.tensor([l for t in ts for l in t.logprobs])
    assert len(scored) == len(recorded) == sum(t.tokens for t in ts)
    difference = (scored - recorded).abs()
    by_calls = {n: difference[torch.tensor([t.calls == n for t in ts for _ in range(t.tokens)])].max().item() for n in sorted({t.calls for t in ts})}
    print(f"\ntemperature {temperature}, top_p {top_p}: {len(ts)} traces, {len(scored)} sampled tokens,",
          f"largest difference {difference.max():.1e}; by drawings:", {n: f"{d:.1e}" for n, d in by_calls.items()})
    assert difference.max() < BOUND
    assert recorded.std() > .1, "the test has no power: all log-probabilities are alike"


def test_what_was_given_is_not_scored(monkeypatch, cooper_):
    "Begin tokens, inserted ends, reflection, forced openings and requests are no targets; sampled ids are, exactly."
    model, processor = cooper_
    _, ts = traces(monkeypatch, model, processor, 1.0, 1.0)
    for t in ts:
        written = [s for s in t.steps if s.kind == "write"]
        learned = [(i, l) for s in t.sequence.segments if isinstance(s, TextSegment) for i, m, l in zip(s.ids, s.learn, s.logprobs or s.ids) if m]
        assert learned == [(i, l) for s in written for i, m, l in zip(s.ids, s.sampled, s.logprobs) if m]
        for s in written:
            assert not s.sampled or not s.sampled[0], "a begin token is given"
            if s.truncated: assert s.ids[-1] == processor.eos and not s.sampled[-1], "an inserted end is given"
        assert all(i < len(processor.tokenizer) for i, _ in learned), "an id outside the tokenizer was sampled"


def test_a_wrong_temperature_would_be_seen(monkeypatch, cooper_):
    "The test can fail: scoring at another temperature, or over the padded vocabulary, is far outside the bound."
    model, processor = cooper_
    engine, ts = traces(monkeypatch, model, processor, 0.7, 1.0)
    batch, recorded = pack([t.sequence for t in ts], model.config.geometry), torch.tensor([l for t in ts for l in t.logprobs])
    for temperature, vocabulary in ((1.0, engine.vocabulary), (0.7, None)):
        with torch.no_grad(): scored, _ = model.score(batch, temperature, vocabulary)
        assert (scored - recorded).abs().max() > 100 * BOUND


def test_the_shipped_checkpoint(cooper_):
    "The same with the small COOPER, whose traces are real."
    import cooper
    from cooper.core import resolve
    co = cooper.load(resolve("data/tiny-cooper"))
    engine = co.engine(temperature=1.0, max_new_tokens=40)
    modes = ("reason", "cooperate", "perceive")
    groups = [engine.group(room(3, 64), "How many cubes are there?", mode, [(0, mode, k) for k in range(2)]) for mode in modes]
    ts = engine.run(sum(groups, []))
    with torch.no_grad(): scored, _ = co.model.score(pack([t.sequence for t in ts], co.model.config.geometry), 1.0, engine.vocabulary)
    difference = (scored - torch.tensor([l for t in ts for l in t.logprobs])).abs().max()
    print(f"\ntiny-cooper: {[t.calls for t in ts]} drawings, {len(scored)} sampled tokens, largest difference {difference:.1e}")
    assert difference < BOUND
