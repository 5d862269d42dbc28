"The measurements of 45_speed: the plain way says what the engine says, scripts are said, limits are counted right, bad parameters are named."
import json, types
from dataclasses import replace

import pytest
import torch

import cooper.model.engine as engine_module
from cooper.measure.speed import (ClockedEngine, GRPOStep, Lab, Machine, PlainWay, SpeedParameters, distinct_thoughts, goals, least_passes, least_seconds, least_work, random_cooper, real_size, said,
                                  save_metrics, scripted, speed_table, three_turns)
from cooper.model.engine import token_count
from cooper.model.modalities import modality
from cooper.model.modeling import preset
from cooper.model.transformer import after_attention, before_attention
from grpo_house import miniature, room


@pytest.fixture(scope="module")
def small(): return engine_module.Cooper(*miniature(seed=3, scale=4.0))


@pytest.mark.parametrize("sampler", [dict(), dict(cfg_text=4.0, cfg_img=2.0, interval=(0.0, 1.0))])
@pytest.mark.parametrize("mode", ["cooperate", "perceive", "reason"])
def test_the_plain_way_says_what_the_engine_says(small, mode, sampler):
    "Three turns, two maps, with and without guidance: another road to the same trace, so it is the same work that is compared."
    engine = ClockedEngine(small.model, small.processor, max_new_tokens=24, temperature=1.0, sampler=sampler)
    script = three_turns(small.processor, 24) if mode == "cooperate" else None
    new = lambda: engine.request(room(0), "Which is closer?", mode, (4,))
    ours, = engine.run([scripted(new(), script) if script else new()])
    plain = PlainWay(engine).ask(new(), script)
    assert [s.ids for s in plain.steps] == [s.ids for s in ours.steps] and plain.drawn == ours.drawn and len(plain.drawn) == dict(cooperate=2, perceive=2, reason=0)[mode]
    for a, b in zip(plain.steps, ours.steps):
        if a.kind == "draw" and a.modality == "depth": assert abs(a.map.values - b.map.values).max() < 1e-3 * (a.map.far - a.map.near)
    if not script: assert torch.allclose(torch.tensor(plain.logprobs), torch.tensor(ours.logprobs), atol=1e-4)
    assert all(engine.seconds[k] > 0 for k in ("read", "write")) and (engine.seconds["draw"] > 0) == (mode != "reason")


def test_scripts_are_said(small):
    script = three_turns(small.processor, 24)
    assert [len(t) for t in script] == [24] * 3
    engine = ClockedEngine(small.model, small.processor, max_new_tokens=24)
    traces = engine.run([scripted(engine.request(room(0), "Which?", "cooperate", (i,)), script) for i in range(2)] + [engine.request(room(0), "Which?", "reason", max_tokens=4)])
    assert [said(t) for t in traces[:2]] == [script] * 2 and traces[0].answer == "1" and traces[2].tokens == 4
    with pytest.raises(ValueError, match="tokens is 5; expected .* or more"): three_turns(small.processor, 5)


def test_least_work_by_hand():
    "Two layers of width 8, two heads, one key head, 16 inside, 10 words."
    config = preset("tiny", text_config=dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=10, rms_norm_eps=1e-6))
    weights = 2 * (8 * 8 * 2 + 2 * 8 * 4 + 3 * 8 * 16)
    assert least_work(config, rows=3, new=1, context=5, heads=3) == (2 * 3 * weights + 4 * 2 * 8 * 3 * 6 + 2 * 3 * 8 * 10, 4 * (weights + 8 * 10) + 3 * 6 * 2 * 2 * 1 * 4 * 4)
    assert least_work(config, rows=1, new=4, context=5, experts=2, causal=False) == (2 * 4 * weights + 4 * 2 * 8 * 4 * 9, 4 * 2 * weights + 9 * 64)
    assert Machine("m", 10., 100., "float32").least(200, 50) == 5 and Machine("m", 10., 100., "float32").least(2000, 50) == 20


def test_least_of_a_whole_question_by_hand(small):
    "Counted again from the outside: which passes there are, how long each is, and that nothing is counted twice."
    engine = ClockedEngine(small.model, small.processor, max_new_tokens=24)
    blank = modality("segmentation", engine.protocol).to_map(torch.zeros(3, *small.processor.clean[:1] * 2) - 1)
    new = lambda i=0: engine.request(room(0), "Which?", "cooperate", (i,), given={"segmentation": blank})
    trace, = engine.run([scripted(new(), three_turns(small.processor, 24))])
    passes, c, f32 = least_passes(engine, new(), trace), small.model.config, torch.float32
    prompt = sum(token_count(s, c.geometry) for s in new().sequence.segments)
    points = engine.sampler.num_timesteps - 1
    assert passes[0] == least_work(c, 1, prompt, 0, f32, experts=2)
    assert passes[2:26] == [least_work(c, 1, 1, prompt + 1 + i, f32, heads=1) for i in range(24)], "the words of the first turn, after its begin"
    others = len(passes) - 1 - 3 * 24 - 3 # the prompt, the words, three begins
    assert others == points + 2, "one drawing, two looks: the given map is seen and not drawn"
    fast = Machine("m", 1e30, 1., "float32") # counts operations only
    assert least_seconds(fast, engine, [new()], [trace]) == pytest.approx(sum(p[0] for p in passes))
    assert least_seconds(fast, engine, [new()] * 3, [trace] * 3) == pytest.approx(3 * sum(p[0] for p in passes[1:]) + passes[0][0])
    slow = Machine("m", 1., 1e30, "float32") # counts bytes only: rollouts side by side cost no more than one
    assert least_seconds(slow, engine, [new()] * 3, [trace] * 3) == pytest.approx(sum(p[1] for p in passes))


def test_a_lab_measures_and_writes(small, tmp_path, monkeypatch):
    lab = Lab(small, [room(0)], repeats=1)
    monkeypatch.setattr(engine_module, "_can_build", lambda device: True)
    monkeypatch.setattr(engine_module, "compiled_pieces", lambda name: (before_attention, after_attention)) # inductor takes a minute
    assert lab.decode(2, 20, 2, plain=False, compiled=True)["what"] == "decode, compiled"
    rows = [lab.prefill(2), lab.decode(1, 20, 2), lab.decode(8, 20, 2, plain=False), lab.denoise(2, guided=True, context=20), lab.question(24)]
    group, split = lab.group(2, tokens=24)
    rows.append(group)
    assert all(r["seconds"] > 0 and r["rate"] > 0 for r in rows) and all((r["plain"] is None) == (r["times"] is None) for r in rows) and rows[2]["plain"] is None
    assert all(0 < r["least"] < r["seconds"] for r in rows)
    rows += [lab.denoise(1, guided=False, context=20), lab.decoding(2), lab.learning(2, 24)]
    assert all(w.grad is None for w in small.model.parameters()), "measuring leaves nothing behind"
    assert 0 < lab.grpo_step(tokens=24, drawings=1).predict(rows, lab.machine)["update"] < 1
    assert [set(s) for s in split] == [{"read", "write", "draw"}] * 2 and split[0]["draw"] > 0
    table, wanted = speed_table(rows, lab.machine), goals(rows, [], "CPU, tiny model")
    assert [r["verdict"] for r in wanted.rows][0] in ("reached", "missed") and {r["verdict"] for r in wanted.rows[3:]} == {"not measured"}
    assert {r["verdict"] for r in goals(rows, [], "").rows} == {"not measured"}, "a small model on a GPU reaches no goal of the real size"
    row = lambda batch, share: dict(what="decode", batch=batch, rate=1., share=share)
    assert [r["measured"] for r in goals([row(8, .1), row(32, .8), row(128, .6)], [], "GPU, real size").rows][4] == "0.60", "32 and above"
    written = json.loads(save_metrics(tmp_path, machine=lab.machine, rows=rows, table=table, goals=wanted).read_text())
    assert written["rows"][0]["what"] == "prefill" and written["machine"]["copy_rate"] > 0
    assert distinct_thoughts(small) == ["full", "fast", "small"], "two steps without guidance: half is one, and a quarter is one"
    assert torch.cuda.is_available() or "No GPU was at hand" in real_size(SpeedParameters(), lab)


@pytest.mark.parametrize("device, preset, place", [("cpu", "", "CPU, tiny model"), ("cuda", "", ""), ("cuda:1", "bagel-7b", "GPU, real size"), ("cpu", "bagel-7b", "")])
def test_goals_are_those_of_a_place(device, preset, place): assert SpeedParameters(device=device, preset=preset).place == place


def test_a_step_is_predicted_by_hand():
    "Four prompts of ten tokens, two rollouts of each, of twenty tokens and half a drawing; every number is counted on paper."
    row = lambda what, batch, seconds, **more: dict(what=what, batch=batch, seconds=seconds, **more)
    rows = [row("prefill", 4, 2., tokens=10), row("decode", 1, 1.), row("decode", 8, 4.), row("denoising step", 4, 3.), row("denoising step, guided", 4, 7.),
            row("decoding drawings", 4, 5.), row("learning", 1, 1., rate=100.)]
    step = GRPOStep(prompts=4, group=2, tokens=20, drawings=.5, prompt=10, look=6, points=3, weights=1e6)
    found, machine = step.predict(rows, Machine("m", 28e6, 1., "float32")), Machine("m", 28e6, 1., "float32")
    assert {k: round(v, 9) for k, v in found.items()} == dict(read=(40 + 24) * 2 / 40, write=80., draw=3 * 3. + 5., learn=8 * 33 / 100, update=1., all=3.2 + 80 + 14 + 2.64 + 1)
    change = lambda **new: replace(step, **new).predict(rows, machine)
    assert change(longest=160)["write"] == 160 * 1., "eight times as long: one goes on, on average"
    assert change(group=4)["write"] == 20 * 8. and change(group=4, batch_size=8)["write"] == pytest.approx(160.), "beyond what was measured: in rounds"
    assert change(guided=True)["draw"] == pytest.approx(3 * 7. + 5) and change(guided=True)["read"] == (120 + 24) / 20
    assert change(iterations=2)["learn"] == 2 * found["learn"] and change(drawings=0.)["draw"] == 0
    with pytest.raises(ValueError, match="no row 'decoding drawings' was measured; there are .*learning"): step.predict([r for r in rows if "drawings" not in r["what"]], machine)


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(monkeypatch):
    import cooper.measure.speed as speed
    monkeypatch.setattr(speed.os, "sysconf", lambda name: 2 ** 17)
    monkeypatch.setattr(speed.engines, "capacity_of", lambda *a, **b: engine_module.Capacity(29 * 2 ** 30, 2 ** 18, 2 ** 10, 2, 0, 2 ** 30, 0))
    with pytest.raises(ValueError, match="'bagel-7b' needs 34.0 GiB: 29.0 of weights in float32 and 5.0 for 8 rollouts at work; cpu has 16.0 GiB free"): random_cooper("bagel-7b")
    lab = types.SimpleNamespace(device="cuda", model=types.SimpleNamespace(device="cpu"))
    assert real_size(SpeedParameters(), lab).startswith("The real size was not measured in this run: preset 'bagel-7b' needs 34.0 GiB")
    assert "already" in real_size(SpeedParameters(preset="bagel-7b"), lab)


@pytest.mark.parametrize("wrong, message", [(dict(batches="1,zero"), "'batches' is '1,zero'"), (dict(contexts="0"), "'contexts' is '0'"), (dict(preset="huge"), "expected 'bagel-7b', 'tiny' or ''"), (dict(repeats=0), "repeats")])
def test_parameters_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ValueError, match=message): SpeedParameters(**wrong)
