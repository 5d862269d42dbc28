"The measurements of 45_speed: the plain way says what the engine says, scripts are said, limits are counted right, bad parameters are named."
import json, types

import pytest
import torch

import cooper.model.engine as engine_module
from cooper.measure.speed import (ClockedEngine, Lab, Machine, PlainWay, SpeedParameters, distinct_thoughts, goals, least_work, random_cooper, real_size, said,
                                  save_metrics, scripted, speed_table, three_turns)
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


def test_a_lab_measures_and_writes(small, tmp_path, monkeypatch):
    lab = Lab(small, [room(0)], repeats=1)
    monkeypatch.setattr(engine_module, "_can_build", lambda device: True)
    monkeypatch.setattr(engine_module, "compiled_pieces", lambda name: (before_attention, after_attention)) # inductor takes a minute
    assert lab.decode(2, 20, 2, plain=False, compiled=True)["what"] == "decode, compiled"
    rows = [lab.prefill(2), lab.decode(1, 20, 2), lab.decode(8, 20, 2, plain=False), lab.denoise(2, guided=True, context=20), lab.question(24)]
    group, split = lab.group(2, tokens=24)
    rows.append(group)
    assert all(r["seconds"] > 0 and r["rate"] > 0 for r in rows) and all((r["plain"] is None) == (r["times"] is None) for r in rows) and rows[2]["plain"] is None
    assert [set(s) for s in split] == [{"read", "write", "draw"}] * 2 and split[0]["draw"] > 0
    table, wanted = speed_table(rows, lab.machine), goals(rows, [], gpu=False)
    assert [r["verdict"] for r in wanted.rows][0] in ("reached", "missed") and {r["verdict"] for r in wanted.rows[3:]} == {"not measured"}
    written = json.loads(save_metrics(tmp_path, machine=lab.machine, rows=rows, table=table, goals=wanted).read_text())
    assert written["rows"][0]["what"] == "prefill" and written["machine"]["copy_rate"] > 0
    assert distinct_thoughts(small) == ["full", "fast", "small"], "two steps without guidance: half is one, and a quarter is one"
    assert torch.cuda.is_available() or "No GPU was at hand" in real_size(SpeedParameters(), lab)


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
