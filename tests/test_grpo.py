"The GRPO trainer: what it relies on in TRL, the objective by hand, groups, unjudged rows, and a run that is killed."
import copy, inspect, json, os, signal, subprocess, sys, textwrap, time, types, warnings
from dataclasses import replace

import pytest, torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from cooper.cooperate import grpo
from cooper.cooperate.grpo import CooperGRPOTrainer, GRPOParameters, RolloutConfig, as_completion, as_dataset, check_config, grpo_config, rl_rows, spread
from cooper.core import NotBuilt
from cooper.model.engine import Engine
from cooper.model.sequence import Sequence, pack
from cooper.perceive.launch import launch
from cooper.perceive.supervised import newest_whole
from grpo_house import miniature, room

# ---- TRL's private names that we override or read (trl 1.16)

OVERRIDDEN = {
    "_prepare_inputs": "(self, generation_batch)",
    "_generate_and_score_completions": "(self, inputs)",
    "_calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "_compute_loss": "(self, model, inputs)",
    "_get_per_token_logps_and_entropies":
        "(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, pixel_values, image_grid_thw, "
        "num_images, pixel_attention_mask, spatial_shapes, num_tiles, image_sizes, token_type_ids, mm_token_type_ids, image_position_ids)",
    "_get_train_sampler": "(self, dataset)",
    "_generate": "(self, prompts)", # not overridden: calls our rollout_func
    "create_model_card": None, "_send_telemetry": None, "floating_point_ops": None, "_save": None, "_save_checkpoint": None, "_get_output_dir": None,
}
# file text that says what we rely on; the reason stands beside it
RELIED_ON = {
    "_generate": ["self.rollout_func(prompts, self)", 'extra_fields.pop("env_mask", None)'], # the hook, and the mask of given tokens
    "_generate_and_score_completions": ["old_per_token_logps, _, _ = self._get_per_token_logps_and_entropies(",
        "ref_per_token_logps, _, _ = self._get_per_token_logps_and_entropies(",
        "rewards_per_func = self._calculate_rewards(", '"advantages": advantages', "unscorable_mask = torch.isnan(rewards_per_func).all(dim=1)"],
    "_prepare_inputs": ["self._step % generate_every == 0", "self._buffered_inputs[self._step % self.args.steps_per_generation]"], # what ours does too, but for the shuffle
    "_calculate_rewards": ["rewards_per_func = gather(rewards_per_func)"], # of all processes
    "training_step": ["self._step += 1"],
    "_compute_loss": ['inputs["tool_mask"]', "per_token_logps.detach() if old_per_token_logps is None"],
    "log": ["self._metrics[mode]"],
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_trl_still_has_what_we_override(name):
    assert hasattr(GRPOTrainer, name), f"TRL's GRPOTrainer has no {name} any more; cooper.cooperate.grpo needs it: read it before raising the pin"
    if OVERRIDDEN[name]:
        now = "(" + ", ".join(inspect.signature(getattr(GRPOTrainer, name)).parameters) + ")"
        assert now == OVERRIDDEN[name], f"GRPOTrainer.{name} was {OVERRIDDEN[name]} in trl 1.16 and is {now}; cooper.cooperate.grpo must follow"


@pytest.mark.parametrize("name", RELIED_ON)
def test_trl_still_does_what_we_rely_on(name):
    source = inspect.getsource(inspect.unwrap(getattr(GRPOTrainer, name)))
    for text in RELIED_ON[name]: assert text in source, f"GRPOTrainer.{name} no longer holds {text!r}; what does cooper.cooperate.grpo assume?"


# ---- a small run

@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    for i in range(4): room(i).save(folder / f"{i}.png")
    words = ["How many cubes are there?", "Which is closer?", "Which is larger?", "How many?"]
    rows = [dict(question=w, answer="2", picture=str(folder / f"{i}.png"), data_id=f"q{i}", flag="boundary") for i, w in enumerate(words)]
    return *miniature(), as_dataset(rows), folder


def letters(traces, **columns): return [sum(c.isalpha() and c.isascii() for c in t.steps[-1].text) / max(len(t.steps[-1].text), 1) for t in traces]


def trainer(parts, out, rewards=(letters,), rollout={}, cls=CooperGRPOTrainer, callbacks=None, flow=None, **options):
    model, processor, dataset, folder = parts
    defaults = dict(max_steps=2, per_device_train_batch_size=8, num_generations=4, learning_rate=1e-3, save_strategy="no", use_cpu=True, bf16=False)
    rollout = RolloutConfig(**dict(modes=("perceive", "reason"), max_new_tokens=6) | rollout)
    return cls(copy.deepcopy(model), processor, list(rewards), grpo_config(folder / out, **defaults | options), dataset, rollout, callbacks=callbacks, flow=flow)


def batch_of(t):
    "One generation batch, scored."
    rows = [t.train_dataset[i] for i in list(t._get_train_sampler())[:t.args.generation_batch_size]]
    t.model.train()
    return t._generate_and_score_completions(rows)


def test_the_loss_is_the_grpo_objective_by_hand(parts):
    "One batch, two drawings or none in each trace: TRL's loss with our scorer against the formula, written out from the traces alone."
    t = trainer(parts, "hand", loss_type="grpo", beta=.1, temperature=.8)
    out = batch_of(t)
    t.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        for p in t.model.language_model.parameters(): # the policy has moved
            p.add_(.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    out["old_per_token_logps"] = t._recorded(out["completion_ids"].shape[1], "cpu")
    loss = t._compute_loss(t.model, out)
    total = 0.
    for b, r in enumerate(out["rollouts"]):
        logp, _ = t.model.score(pack([r.sequence], t.model.config.geometry), .8, t.engine.vocabulary)
        with torch.no_grad(): ref, _ = t.ref_model.score(pack([r.sequence], t.model.config.geometry), .8, t.engine.vocabulary)
        old, A = torch.tensor([r.logprobs[i] for i in r.sampled]), out["advantages"][b]
        ratio = (logp - old).exp()
        kl = ((ref - logp).exp() - (ref - logp) - 1) * ratio # `use_bias_correction_kl`, TRL's default
        total = total + (-torch.min(ratio * A, ratio.clamp(.8, 1.2) * A) + .1 * kl).mean()
    assert torch.allclose(loss, total / len(out["rollouts"]), atol=1e-5)
    assert loss.abs() > 1e-3


def test_advantages_are_those_of_groups_and_the_buffer_keeps_rows_together(parts):
    t = trainer(parts, "groups", steps_per_generation=2, per_device_train_batch_size=4)
    rows = [t.train_dataset[i] for i in list(t._get_train_sampler())[:8]]
    t.model.train()
    kept = {}
    real = t._generate_and_score_completions
    def watch(inputs): kept["out"] = real(inputs); return kept["out"]
    t._generate_and_score_completions = watch
    pieces = []
    for t._step in (0, 1): pieces.append(t._prepare_inputs(rows))
    rewards = torch.tensor(letters(t._traces)).view(2, 4)
    expected = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    assert torch.allclose(kept["out"]["advantages"], expected, atol=1e-4)
    by_rollout = {id(r): a for r, a in zip(kept["out"]["rollouts"], expected)}
    for piece in pieces:
        assert len(piece["rollouts"]) == 4
        for r, a, ids in zip(piece["rollouts"], piece["advantages"], piece["completion_ids"]):
            assert torch.isclose(by_rollout[id(r)], a, atol=1e-4) and ids[:len(r.completion_ids)].tolist() == r.completion_ids


def test_a_row_without_its_required_reward_is_left_out(parts):
    "accuracy None with format 1.0: advantage exactly 0, and the group's mean and deviation are those of the others."
    def accuracy(traces, **columns): return [None, 1., 0., 0.] * (len(traces) // 4)
    def form(traces, **columns): return [1.] * len(traces)
    out = batch_of(trainer(parts, "unjudged", rewards=(accuracy, form)))
    others = torch.tensor([2., 1., 1.])
    expected = torch.cat([torch.zeros(1), (others - others.mean()) / (others.std() + 1e-4)]).repeat(2)
    assert torch.equal(out["advantages"][[0, 4]], torch.zeros(2))
    assert torch.allclose(out["advantages"], expected, atol=1e-3), out["advantages"]
    plain = batch_of(trainer(parts, "judged", rewards=(accuracy, form), rollout=dict(required=())))
    assert plain["advantages"][0].abs() > .1, "the test has no power: without the rule the row would have counted"


def test_a_group_without_any_judgement_teaches_nothing(parts):
    def accuracy(traces, **columns): return [None] * len(traces)
    t = trainer(parts, "silent", rewards=(accuracy,), max_steps=1)
    before = [p.clone() for p in t.model.parameters()]
    t.fit()
    assert all(torch.equal(a, b) for a, b in zip(before, t.model.parameters()))


def test_the_same_rollouts_whatever_the_batch_of_the_engine(parts):
    ids = [[r.completion_ids for r in batch_of(trainer(parts, "batch", rollout=dict(batch_size=n)))["rollouts"]] for n in (32, 3)]
    assert ids[0] == ids[1]


def test_a_prompt_that_comes_twice_in_a_batch_is_sampled_anew(parts):
    t = trainer(parts, "twice", rollout=dict(modes="reason"))
    t.model.train()
    out = t._generate_and_score_completions([t.train_dataset[0] for _ in range(8)])
    assert len({tuple(r.completion_ids) for r in out["rollouts"]}) == 8


def test_a_trace_cut_short_looks_cut_short_to_trl(parts):
    model, processor, *_ = parts
    engine = Engine(model, processor, max_new_tokens=3, temperature=1.)
    r = engine.request(room(0), "How many?", "reason", (0,))
    rollout = as_completion(engine.run([r])[0], len(r.sequence))
    assert len(rollout.sampled) == 3 and rollout.completion_ids[-1] != processor.eos and rollout.mask[-1] == 1


@pytest.mark.parametrize("options, error, words", [
    (dict(per_device_train_batch_size=6, num_generations=4), ValueError, "num_generations"),
    (dict(max_steps=-1), ValueError, "max_steps is -1"),
    (dict(temperature=0.), ValueError, "temperature is 0.0"),
    (dict(top_k=5), NotBuilt, "top_k=5"),
    (dict(sync_ref_model=True), ValueError, "sync_ref_model without beta"),
])
def test_settings_that_would_do_something_else_are_refused(parts, options, error, words):
    with pytest.raises(error, match=words): trainer(parts, "refused", **options)


def test_a_group_that_would_straddle_processes_is_refused(tmp_path):
    args = grpo_config(tmp_path, max_steps=1, per_device_train_batch_size=8, num_generations=4)
    args.per_device_train_batch_size = 6 # as on one of two processes: the global batch of 12 would pass TRL's own check
    with pytest.raises(ValueError, match="straddle"): check_config(args)


def test_required_rewards_must_exist(parts):
    with pytest.raises(ValueError, match="accuracy.*not among the reward functions: letters"):
        trainer(parts, "required", rollout=dict(required=("accuracy",)))


def test_recomputing_activations_changes_no_gradient(parts):
    grads = []
    for checkpointing in (False, True):
        t = trainer(parts, "recompute", gradient_checkpointing=checkpointing)
        if checkpointing: t.model.gradient_checkpointing_enable()
        out = batch_of(t)
        t.current_gradient_accumulation_steps = 1
        t._compute_loss(t.model, out).backward()
        grads.append(torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None]))
    assert grads[0].norm() > 0 and torch.allclose(*grads, atol=1e-6)


def test_bad_questions_are_named(tmp_path):
    bad = tmp_path / "rl.jsonl"
    bad.write_text(json.dumps(dict(question="?", answer="1", image="a.png", data_id="x", flag="postive")) + "\n")
    with pytest.raises(ValueError, match="rl.jsonl:1: 'flag' is 'postive'"): rl_rows(bad)
    with pytest.raises(FileNotFoundError, match="no such file or folder"): rl_rows(tmp_path / "absent")


def test_an_answer_is_scored_in_its_context_and_not_in_its_future(parts):
    "Another question, or another drawing, before the answer: other log-probabilities. Another end of the answer: the same, bit for bit, before it."
    t = trainer(parts, "context", rollout=dict(modes="perceive", max_new_tokens=6))
    out = batch_of(t)
    rollout = out["rollouts"][0]
    segments = list(rollout.sequence.segments)
    def logps(changed):
        with torch.no_grad(): return t.base().score(pack([Sequence(changed)], t.base().config.geometry), 1., t.engine.vocabulary)[0]
    plain = logps(segments)
    asked = next(i for i, s in enumerate(segments) if getattr(s, "ids", None) and "How" in t.processor.decode(s.ids) or "Which" in t.processor.decode(getattr(s, "ids", ())))
    drawn = max(i for i, s in enumerate(segments) if hasattr(s, "view"))
    other = {asked: type(segments[asked])((segments[asked].ids[0], *reversed(segments[asked].ids[1:-1]), segments[asked].ids[-1])),
             drawn: replace(segments[drawn], pixels=segments[drawn].pixels.flip(2))}
    for i, s in other.items(): assert (logps([*segments[:i], s, *segments[i + 1:]]) - plain).abs().min() > 1e-7, "the answer does not see what stands before it"
    last = segments[-1]
    at = max(i for i, m in enumerate(last.learn) if m)
    ids = list(last.ids); ids[at] = (ids[at] + 1) % t.engine.vocabulary
    later = logps([*segments[:-1], type(last)(ids, last.learn, last.logprobs)])
    assert torch.equal(later[:-1], plain[:-1]) and later[-1] != plain[-1]


def test_weights_in_pieces_are_refused_by_name():
    for pieces in (dict(is_fsdp_enabled=True, is_deepspeed_enabled=False), dict(is_fsdp_enabled=False, is_deepspeed_enabled=True)):
        with pytest.raises(NotBuilt, match="weights in pieces"): CooperGRPOTrainer._ready(types.SimpleNamespace(**pieces), False, None)


# ---- every option that makes sense

def moved(t, scale=.02):
    "The policy has moved since it sampled."
    with torch.no_grad():
        for p in t.base().language_model.parameters(): p.add_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))


def scored(t, out):
    "Log-probabilities, entropies and mask (B, C) of a batch, from the traces alone."
    C = out["completion_ids"].shape[1]
    logps, entropies, mask, old = (torch.zeros(len(out["rollouts"]), C) for _ in range(4))
    for b, r in enumerate(out["rollouts"]):
        logp, entropy = t.base().score(pack([r.sequence], t.base().config.geometry), t.temperature, t.engine.vocabulary)
        logps[b, r.sampled], entropies[b, r.sampled] = logp.detach(), entropy.detach()
        mask[b, r.sampled] = 1.
        old[b, r.sampled] = torch.tensor([r.logprobs[i] for i in r.sampled])
    return logps, entropies, mask, old


LOSSES = { # per-token losses (B, C), mask (B, C), advantages (B, 1), ratios, log-probabilities, longest completion -> the loss
    "grpo": lambda l, m, longest: ((l * m).sum(1) / m.sum(1)).mean(),
    "bnpo": lambda l, m, longest: (l * m).sum() / m.sum(),
    "dr_grpo": lambda l, m, longest: (l * m).sum() / (len(l) * longest),
    "dapo": lambda l, m, longest: (l * m).sum() / m.sum(),
    "cispo": lambda l, m, longest: (l * m).sum() / m.sum(),
    "sapo": lambda l, m, longest: ((l * m).sum(1) / m.sum(1)).mean(),
    "luspo": lambda l, m, longest: (l * m).sum(1).mean(),
}


@pytest.fixture(scope="module")
def one_batch(parts):
    "A trainer, and one generation whose policy has moved on."
    t = trainer(parts, "losses", num_iterations=2, epsilon_high=.4)
    out = batch_of(t)
    moved(t)
    t.current_gradient_accumulation_steps = 1
    return t, out, scored(t, out)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_type_by_hand_from_the_traces_alone(one_batch, kind):
    t, out, (logps, _, mask, old) = one_batch
    A, ratio = out["advantages"][:, None], (logps - old).exp()
    each = -torch.min(ratio * A, ratio.clamp(.8, 1.4) * A) # epsilon 0.2 downwards, epsilon_high upwards
    if kind == "cispo": each = -ratio.clamp(max=.4) * A * logps
    if kind == "sapo":
        tau = torch.where(A > 0, t.args.sapo_temperature_pos, t.args.sapo_temperature_neg)
        each = -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * A
    t.loss_type = kind
    loss = t._compute_loss(t.model, out)
    assert torch.isclose(loss, LOSSES[kind](each, mask, t.max_completion_length), atol=1e-5), kind
    assert loss.abs() > 1e-4 and (ratio[mask.bool()] > 1.2).any() and (ratio[mask.bool()] < .8).any(), "nothing is cut: the test has no power"


@pytest.mark.parametrize("name, value", [("loss_type", "vespo"), ("importance_sampling_level", "sequence"), ("off_policy_mask_threshold", .05)])
def test_other_objectives_have_a_gradient(one_batch, name, value):
    t, out, _ = one_batch
    kept, t.loss_type = (t.loss_type, getattr(t, name)), "grpo"
    setattr(t, name, value)
    loss = t._compute_loss(t.model, out)
    grads = torch.autograd.grad(loss, [t.model.language_model.lm_head.weight])
    t.loss_type = "dapo"
    if name != "loss_type": setattr(t, name, kept[1])
    assert loss.isfinite() and grads[0].isfinite().all() and grads[0].abs().max() > 0


def test_only_the_least_certain_tokens_are_learned_from(one_batch):
    t, out, (logps, entropies, mask, old) = one_batch
    A, ratio = out["advantages"][:, None], (logps - old).exp()
    each = -torch.min(ratio * A, ratio.clamp(.8, 1.4) * A)
    uncertain = entropies >= torch.quantile(entropies[mask.bool()], .7)
    t.loss_type, t.top_entropy_quantile = "dapo", .3
    loss = t._compute_loss(t.model, out)
    t.top_entropy_quantile = 1.
    assert torch.isclose(loss, (each * mask * uncertain).sum() / mask.sum(), atol=1e-5) and .2 < (mask * uncertain).sum() / mask.sum() < .4


def test_traces_that_were_cut_short_may_be_left_out(parts):
    "Half of the traces end by themselves; the others leave no trace in the loss, but count in their group's mean."
    t = trainer(parts, "cut", mask_truncated_completions=True, rollout=dict(modes="reason", max_new_tokens=6))
    run, eos = t.engine.run, t.processor.eos
    def ended(requests): # the untrained model never ends a trace
        traces = run(requests)
        for n, trace in enumerate(traces):
            if n % 2: continue
            last = trace.sequence.segments[-1]
            ids = (*last.ids[:-2], eos, last.ids[-1]) # the last sampled id becomes an end; the inserted one stays given
            trace.sequence = type(trace.sequence)((*trace.sequence.segments[:-1], type(last)(ids, last.learn, last.logprobs)))
        return traces
    t.engine.run = ended
    out = batch_of(t)
    kept = out["tool_mask"].bool() & out["completion_mask"].bool()
    assert kept.any(1).tolist() == [True, False] * 4
    assert out["num_items_in_batch"] == kept.sum()
    rewards = t._rewards[:, 0].view(2, 4)
    assert torch.allclose(out["advantages"], ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten(), atol=1e-4)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_means_and_deviations_are_those_of_the_judged(parts, scale):
    "One group with two unjudged traces, one with only one judged, all with a second reward that knows."
    def accuracy(traces, **columns): return [None, 1., None, 0., None, None, None, 1.]
    def form(traces, **columns): return [1.] * 8
    t = trainer(parts, "scaled", rewards=(accuracy, form), scale_rewards=scale)
    out = batch_of(t)
    A, totals = out["advantages"], torch.tensor([2., 1., 2.]) # of the judged
    deviation = dict(group=totals[:2].std() + 1e-4, batch=totals.std() + 1e-4, none=1.)[scale]
    assert torch.allclose(A[[1, 3, 7]], torch.tensor([.5, -.5, 0.]) / deviation, atol=1e-4) and torch.equal(A[[0, 2, 4, 5, 6]], torch.zeros(5))
    assert t._metrics["train"]["unjudged"] == [5 / 8]
    assert (out["tool_mask"] * out["completion_mask"]).sum(1).bool().tolist() == [False, True, False, True, False, False, False, True]


def test_tokens_of_an_unjudged_trace_are_in_no_term_of_the_loss(parts):
    "With a KL term and an entropy bonus: whatever stands in the unjudged trace, loss and gradient are the same."
    def accuracy(traces, **columns): return [None, 1., 0., .5] * (len(traces) // 4)
    t = trainer(parts, "silent tokens", rewards=(accuracy,), beta=.1, entropy_coef=.01)
    out = batch_of(t)
    moved(t)
    t.current_gradient_accumulation_steps = 1
    def result(out):
        t.model.zero_grad()
        loss = t._compute_loss(t.model, out)
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None])
    without = [i for i in range(8) if i % 4]
    judged = {k: v if isinstance(v, torch.Tensor) and not v.dim() else v[without] if isinstance(v, torch.Tensor) else [v[i] for i in without] for k, v in out.items()}
    (loss, grad), (alone, grad_alone) = result(out), result(judged)
    assert torch.isclose(loss, alone, atol=1e-6) and torch.allclose(grad, grad_alone, atol=1e-6) and grad.norm() > 0


def test_a_judge_may_stop_the_run_and_it_goes_on_when_the_judge_is_back(parts):
    down = []
    def accuracy(traces, trainer_state, **columns):
        if down and trainer_state.global_step == 2: raise RuntimeError("the judge answers nothing")
        return letters(traces)
    def run(out): return trainer(parts, out, rewards=(accuracy,), max_steps=3, save_strategy="steps", save_steps=1)
    whole = run("judged whole"); whole.fit()
    down.append(1)
    with pytest.raises(RuntimeError, match="the judge answers nothing"): run("judge down").fit()
    down.clear()
    again = run("judge down"); again.fit()
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))


def test_an_infinite_reward_is_an_error_with_a_name(parts):
    def generous(traces, **columns): return [float("inf")] * len(traces)
    with pytest.raises(ValueError, match="reward 'generous' of completion 0 is inf"): batch_of(trainer(parts, "inf", rewards=(generous,)))


def test_an_evaluation_on_the_way_changes_nothing(parts):
    model, processor, dataset, folder = parts
    def run(out, **options):
        args = grpo_config(folder / out, max_steps=3, per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2, num_generations=4, learning_rate=1e-3,
                           save_strategy="no", use_cpu=True, bf16=False, per_device_eval_batch_size=8, num_generations_eval=2, **options)
        t = CooperGRPOTrainer(copy.deepcopy(model), processor, [letters], args, dataset, RolloutConfig(modes="reason", max_new_tokens=4), eval_dataset=dataset)
        t.fit()
        return t
    plain, watched = run("unwatched"), run("watched", eval_strategy="steps", eval_steps=1)
    assert [h["loss"] for h in plain.state.log_history if "loss" in h] == [h["loss"] for h in watched.state.log_history if "loss" in h]
    told = [h for h in watched.state.log_history if "eval_reward" in h]
    assert len(told) == 3 and all(h["eval_logp_difference"] < 1e-4 and "eval_drawings/all" in h for h in told)
    assert max(h["logp_difference"] for h in watched.state.log_history if "logp_difference" in h) < 1e-4, "a comparison with weights that did not sample"
    args = grpo_config(folder / "torn", max_steps=1, per_device_train_batch_size=4, per_device_eval_batch_size=3, num_generations=4, num_generations_eval=2, use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="straddle batches"): CooperGRPOTrainer(copy.deepcopy(model), processor, [letters], args, dataset, eval_dataset=dataset)


def test_metrics_say_what_happened(parts):
    t = trainer(parts, "metrics", max_steps=1, rollout=dict(modes="perceive"), log_completions=True)
    t.fit()
    log = next(h for h in t.state.log_history if "loss" in h)
    traces = t._traces
    assert log["drawings/depth"] == log["drawings/segmentation"] == 1 and log["drawings/all"] == 2 and log["drawings/share"] == 1
    assert log["text/tokens"] == sum(x.tokens for x in traces) / len(traces) == log["completions/mean_length"], "pictures are no text"
    assert log["traces/cut"] == log["completions/clipped_ratio"] == sum(x.own[-1].truncated for x in traces) / len(traces)
    assert 0 < log["entropy"] and log["frac_reward_zero_std"] == 0 and log["unjudged"] == 0 and log["logp_difference"] < 1e-4
    import pandas
    table = pandas.read_parquet(parts[-1] / "metrics" / "completions" / "completions_00001.parquet")
    assert len(table) == 8 and {"prompt", "completion", "letters", "advantage"} <= set(table.columns)


def test_groups_that_are_all_alike_are_counted(parts):
    def same(traces, **columns): return [1.] * 4 + [0., 1., 0., 1.]
    t = trainer(parts, "alike", rewards=(same,))
    batch_of(t)
    assert t._metrics["train"]["frac_reward_zero_std"] == [.5]


@pytest.mark.parametrize("option", [dict(use_vllm=True, vllm_mode="colocate"), dict(min_p=.1), dict(repetition_penalty=1.1), dict(generation_kwargs={"num_beams": 2}),
    dict(cache_implementation="static"), dict(use_liger_kernel=True), dict(cast_lm_head_to_fp32=True), dict(use_transformers_continuous_batching=True)])
def test_what_belongs_to_another_sampler_is_refused_by_name(tmp_path, option):
    with pytest.raises(NotBuilt, match=next(iter(option))): check_config(grpo_config(tmp_path, max_steps=1, per_device_train_batch_size=8, num_generations=4, **option))


# ---- adapters, a reference that follows, going on from RL output

def lora(parts, out, **options):
    from peft import LoraConfig
    model, processor, dataset, folder = parts
    args = grpo_config(folder / out, **dict(max_steps=2, per_device_train_batch_size=8, num_generations=4, learning_rate=1e-2, save_strategy="no", use_cpu=True,
                                            bf16=False, beta=.05) | options)
    return CooperGRPOTrainer(copy.deepcopy(model), processor, [letters], args, dataset, RolloutConfig(modes=("perceive", "reason"), max_new_tokens=5),
                             peft_config=LoraConfig(r=2, target_modules=r".*language_model\.model\.layers\..*_proj(_moe_gen)?"))


def test_the_reference_of_an_adapter_is_the_model_without_it(parts, tmp_path):
    from cooper.model.checkpoint import load_model, save_model
    t = lora(parts, "lora")
    start = {k: v.clone() for k, v in parts[0].state_dict().items()}
    asked, real = [], t._score
    def watch(model, width, learning):
        if not learning: t.sampled = t._scoring # in the order of the rollouts, not yet dealt out
        asked.append((learning, result := real(model, width, learning)))
        return result
    t._score = watch
    t.fit()
    kl = [h["kl"] for h in t.state.log_history if "kl" in h]
    assert kl[0] < 1e-6 < kl[1] and t.ref_model is None
    reference = [result[0] for learning, result in asked if not learning][1] # in the second step, when the adapter says something
    with torch.no_grad(): by_start, _ = grpo.score_rollouts(parts[0], t.sampled, reference.shape[1], 1., t.engine.vocabulary)
    assert torch.allclose(reference, by_start, atol=1e-5)
    assert all(torch.equal(v, start[k]) for k, v in parts[0].state_dict().items())
    merged = t.whole_model()
    assert any(not torch.equal(v, start[k]) for k, v in merged.state_dict().items())
    save_model(merged, t.processor, tmp_path / "model")
    model, processor = load_model(tmp_path / "model")
    assert all(torch.allclose(v, merged.state_dict()[k]) for k, v in model.state_dict().items())


def test_an_adapter_that_is_killed_goes_on_bit_for_bit(parts):
    whole = lora(parts, "lora whole", max_steps=3); whole.fit()
    class Killed(Exception): pass
    class Die(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 3: raise Killed
    first = lora(parts, "lora killed", max_steps=3, save_strategy="steps", save_steps=2)
    first.add_callback(Die())
    with pytest.raises(Killed): first.fit()
    again = lora(parts, "lora killed", max_steps=3, save_strategy="steps", save_steps=2); again.fit()
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))


def test_training_goes_on_from_its_own_output(parts):
    "From out/model, and from a checkpoint folder: a new run with the weights that the old one ended with."
    from cooper.model.checkpoint import load_model, save_model
    model, processor, dataset, folder = parts
    first = trainer(parts, "first", save_strategy="steps", beta=.1, sync_ref_model=True, ref_model_sync_steps=1)
    first.fit()
    save_model(first.whole_model(), processor, folder / "first" / "model")
    for where in ("model", "checkpoint-2"):
        loaded, its = load_model(folder / "first" / where)
        assert all(torch.equal(v, first.model.state_dict()[k]) for k, v in loaded.state_dict().items()), where
        second = trainer((loaded, its, dataset, folder), f"second {where}", max_steps=1, rollout=dict(keep_every=0))
        second.fit()
        assert any(not torch.equal(a, b) for a, b in zip(loaded.parameters(), second.model.parameters()))


# ---- rollouts are kept

def test_kept_rollouts_are_whole_and_roll_again(parts):
    "Every row has what happened; its seed gives the same trace again from the same weights."
    model, processor, dataset, folder = parts
    def unsure(traces, **columns): return [None if i == 1 else v for i, v in enumerate(letters(traces))]
    t = trainer(parts, "kept", rewards=(unsure,), rollout=dict(keep_every=2), max_steps=3, temperature=.9)
    t.fit()
    assert sorted(p.name for p in (folder / "kept" / "rollouts").iterdir()) == ["step-000000.parquet", "step-000002.parquet"]
    rows = grpo.read_rollouts(folder / "kept", 0)
    assert len(rows) == 8 and [r["group"] for r in rows] == [0] * 4 + [1] * 4 and rows[1]["reward"] is None and rows[1]["advantage"] == 0
    assert all(r["rewards"]["unsure"] == r["reward"] for r in rows)
    engine = Engine(copy.deepcopy(model), processor, max_new_tokens=6, temperature=.9)
    groups = [engine.group(g[0]["picture"], g[0]["question"], g[0]["mode"], [r["seed"] for r in g]) for g in (rows[:4], rows[4:])]
    for r, again in zip(rows, engine.run(sum(groups, []))):
        assert [s.ids for s in again.written] == [s.ids for s in r["trace"].written] and again.drawn == r["trace"].drawn
        assert [s.picture and s.picture.tobytes() for s in again.steps] == [s.picture and s.picture.tobytes() for s in r["trace"].steps]
        assert again.logprobs == r["trace"].logprobs
    table = grpo.rollout_table(folder / "kept")
    assert len(table) == 16 and "trace" not in table.columns
    controls, shown = grpo.browse(folder / "kept").children
    before, controls.children[0].value = shown.value, 0
    assert "step 2" in before and "step 0" in shown.value
    controls.children[1].value = "lowest advantage"
    lowest = min(r["advantage"] for r in rows if r["reward"] is not None)
    assert shown.value.index(f"advantage {lowest:+.2f}") < 200
    assert "not judged" in grpo.Group(grpo.read_group(folder / "kept", 0, group=0))._repr_html_()
    with pytest.raises(FileNotFoundError, match="no rollouts of step 1; there are steps 0, 2"): grpo.read_rollouts(folder / "kept", 1)


def test_rollouts_go_to_a_tracker_where_asked(parts, monkeypatch):
    import sys, types
    said = []
    tracker = types.SimpleNamespace(log=said.append, Table=lambda dataframe: dataframe, Image=lambda picture: ("picture", picture.size))
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    row = grpo.rollout_row(Engine(parts[0], parts[1], max_new_tokens=4).run([Engine(parts[0], parts[1], max_new_tokens=4).request(room(0), "How many?", "perceive", (0,))])[0],
                           dict(data_id="a", question="How many?", answer="2"), step=0, reward=1., advantage=.5)
    grpo._report_rollouts([row], ["trackio"], 0)
    frame = said[0]["rollouts"]
    assert frame["drawn"][0] == [("picture", (32, 32))] * 2 and frame["advantage"][0] == .5 and "trace" not in frame
    grpo._report_rollouts([row], ["none"], 0)
    assert len(said) == 1


# ---- is the map any good?

@pytest.fixture(scope="module")
def scenes():
    "Rows about rendered scenes, which know their truth, and a miniature with the scenes' palette."
    from cooper.perceive.scenes import CLASSES, FAR, NEAR
    model, processor = miniature(protocol=dict(near=NEAR, far=FAR, palette=CLASSES))
    return model, processor, rl_rows("data/scenes/train", per_scene=1, limit=4)


def test_maps_of_rollouts_are_measured_against_the_truth(scenes, tmp_path):
    from cooper.perceive.scenes import load_rendered
    from cooper.model.modalities import DepthMap, modality
    from cooper.reason.data import scene_map
    model, processor, rows = scenes
    assert all(r["truth"].endswith("data/scenes/train") for r in rows) and grpo.truth_of(tmp_path / "a.png") is None
    engine = Engine(model, processor, max_new_tokens=4)
    true = {n: scene_map(load_rendered(rows[0]["truth"], dict(image=rows[0]["picture"])), modality(n, processor.protocol)) for n in ("depth", "segmentation")}
    exact = engine.run([engine.request(rows[0]["picture"], "How many?", "perceive", (0,), given=true)])
    absrel, counts = grpo.map_quality(exact, rows[:1])
    assert absrel == [0.] and counts.sum() == counts.trace() == true["segmentation"].labels.size
    far = DepthMap(true["depth"].values * 1.1, 0, 50)
    off = engine.run([engine.request(rows[0]["picture"], "How many?", "perceive", (0,), given=dict(depth=far))])
    absrel, counts = grpo.map_quality(off, rows[:1])
    assert abs(absrel[0] - .1) < 1e-4 and counts.trace() < counts.sum()
    assert grpo.map_quality(exact, [rows[0] | dict(truth=None)])[0] == []
    args = grpo_config(tmp_path / "run", max_steps=3, per_device_train_batch_size=8, num_generations=4, save_strategy="no", use_cpu=True, bf16=False)
    t = CooperGRPOTrainer(copy.deepcopy(model), processor, [letters], args, as_dataset(rows), RolloutConfig(modes="perceive", max_new_tokens=3, map_every=2, keep_every=0))
    t.fit()
    measured = [h["step"] for h in t.state.log_history if "maps/depth AbsRel" in h]
    assert measured == [1, 3] and all(0 <= h["maps/segmentation mIoU"] < 1 for h in t.state.log_history if "maps/segmentation mIoU" in h)
    assert len(t.curves.points["depth AbsRel"]) == 2


def test_a_flow_loss_keeps_the_drawings_in_training(scenes, tmp_path):
    "The loss is the policy's plus the weighted flow loss of the pictures of this very pass; what only draws has a gradient then, and only then."
    from cooper.perceive.data import read_amg
    from cooper.perceive.supervised import AmgExamples, LatentCache, amg_rows
    model, processor, rows = scenes
    maps = amg_rows(read_amg("data/scenes/train/amg.jsonl", limit=3), processor)
    def run(weight, flow=True):
        own = copy.deepcopy(model)
        examples = AmgExamples(maps, processor, LatentCache(own, processor), copies=1)
        args = grpo_config(tmp_path / str(weight), max_steps=2, per_device_train_batch_size=4, num_generations=4, save_strategy="no", use_cpu=True, bf16=False)
        return CooperGRPOTrainer(own, processor, [letters], args, as_dataset(rows), RolloutConfig(modes="reason", max_new_tokens=4, flow_weight=weight, flow_batch=2),
                                 flow=examples if flow else None)
    with pytest.raises(ValueError, match="flow_weight is 0.5 and there are no examples"): run(.5, flow=False)
    losses, grads = [], []
    for weight in (0., .5):
        t = run(weight)
        out = batch_of(t)
        t.current_gradient_accumulation_steps = 2
        loss = t._compute_loss(t.model, out)
        loss.backward()
        losses.append(loss.detach()), grads.append(t.model.llm2vae.weight.grad)
    sequences, generators = zip(*(t.flow[i] for i in range(2)))
    with torch.no_grad(): mse = t.model(pack(list(sequences), t.model.config.geometry, list(generators))).mse.mean()
    assert torch.isclose(losses[1] - losses[0], .5 * mse / 2, atol=1e-5)
    assert grads[0] is None and grads[1].abs().max() > 0
    assert run(.5).settings["fingerprint of the data"] != run(0.).settings["fingerprint of the data"]


# ---- several processes

def shared(parts, world, folder, passes=2):
    "Two runs whose work is shared by so many processes: reuse, a KL term, unjudged traces and a flow loss; and passes that add up to a step."
    def unsure(traces, **columns): return [None if sum(t.written[-1].ids) % 5 == 0 else v for t, v in zip(traces, letters(traces))]
    class Maps:
        def __len__(self): return 3
        def contents(self): return 3
        def build(self, k, generator): # maps of which all, half and nothing is known
            noised, = parts[1].picture(room(k + 1), ("noised",))
            n = noised.pixels.shape[1] * noised.pixels.shape[2] // parts[1].clean[2] ** 2
            known = torch.arange(n) % (k + 1) == 0 if k < 2 else torch.zeros(n, dtype=bool)
            return Sequence(parts[1].picture(room(k), ("clean",)) + [replace(noised, learned=known)])
    common = dict(rewards=(unsure,), learning_rate=.1, optim="sgd", logging_steps=1) # Adam makes much of the rounding of tiny gradients
    reuse = trainer(parts, f"{folder}/reuse", **common, max_steps=4, per_device_train_batch_size=8 // world, steps_per_generation=2, num_iterations=2, beta=.05,
                    rollout=dict(keep_every=1, flow_weight=.1, flow_batch=2), flow=Maps())
    passes = trainer(parts, f"{folder}/passes", **common, max_steps=passes, per_device_train_batch_size=8 // world, gradient_accumulation_steps=2, loss_type="grpo",
                     gradient_checkpointing=True, rollout=dict(keep_every=1), save_strategy="steps", save_steps=1)
    return dict(reuse=reuse, passes=passes)


TWO = textwrap.dedent("""
    import json, sys
    sys.path.insert(0, "tests")
    import test_grpo as T, torch, yaml
    from pathlib import Path
    from cooper.perceive.launch import Telling
    folder = Path(yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))["folder"])
    data = [dict(question=f"Is it {i}?", answer="2", picture=str(folder / f"{i}.png"), data_id=f"q{i}") for i in range(4)]
    parts = (*T.miniature(), T.as_dataset(data), folder)
    T.shared(parts, 2, "two", passes=1)["passes"].fit() # stops after a step, and goes on below
    for name, t in T.shared(parts, 2, "two").items():
        if name == "reuse": t.add_callback(Telling(T.grpo.GRPOCurves.pick))
        t.fit()
        if t.accelerator.is_main_process:
            torch.save(t.model.state_dict(), folder / f"{name}.pt")
            (folder / f"{name}.json").write_text(json.dumps(t.state.log_history))
""")


SRUN = """#!/bin/bash
# a machine for each task
for rank in 0 1; do SLURM_PROCID=$rank "${@: -3}" & done
wait -n && wait -n || { kill $(jobs -p); exit 1; }
"""


def test_two_processes_do_what_one_does(tmp_path, monkeypatch):
    """The same rollouts, rewards, advantages and, to rounding, the same losses, norms of gradients, metrics and weights; also when the two are stopped and started
    again. Launched as on two machines, with an srun that knows only this one; whoever launched them follows the curves."""
    for i in range(4): room(i).save(tmp_path / f"{i}.png")
    (tmp_path / "two.py").write_text(TWO)
    (tmp_path / "srun").write_text(SRUN); (tmp_path / "srun").chmod(0o755)
    for name, value in dict(PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="").items():
        monkeypatch.setenv(name, value)
    curves = launch("two", dict(folder=str(tmp_path)), 2, "cpu", out=tmp_path / "launch", num_machines=2)
    assert [s for s, _ in curves.points["tokens"]] == [1] and [s for s, _ in curves.points["grad_norm"]] == [1, 2, 3, 4]
    data = [dict(question=f"Is it {i}?", answer="2", picture=str(tmp_path / f"{i}.png"), data_id=f"q{i}") for i in range(4)]
    for name, t in shared((*miniature(), as_dataset(data), tmp_path), 1, "one").items():
        t.fit()
        rows = [[(r["seed"], r["rewards"], r["reward"], [s.ids for s in r["trace"].written]) for step in (0, *([1] if name == "passes" else []))
                 for r in grpo.read_rollouts(tmp_path / n / name, step)] for n in ("one", "two")]
        assert rows[0] == rows[1] and any(r[2] is None for r in rows[0]) and len({r[0] for r in rows[0]}) == len(rows[0])
        told = [json.loads((tmp_path / f"{name}.json").read_text()), t.state.log_history]
        for two, one in zip(*([h for h in log if "loss" in h] for log in told), strict=True):
            for key in one: # all but times and lengths of the run
                if "time" in key or "seconds" in key or key in ("epoch", "num_tokens") or "clip_ratio" in key: continue
                assert two[key] == pytest.approx(one[key], abs=2e-5), (name, key)
        weights = torch.load(tmp_path / f"{name}.pt")
        assert all(torch.allclose(v, weights[k], atol=1e-5) for k, v in t.model.state_dict().items())
        assert any(h["unjudged"] > 0 for h in t.state.log_history if "unjudged" in h)


def test_a_step_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="12 traces is not shared out evenly by 8 processes"): GRPOParameters(prompts_per_step=3, num_processes=8)
    with pytest.raises(ValueError, match="'num_processes' is 3 on 2 machines"): GRPOParameters(num_processes=3, num_machines=2, prompts_per_step=3)


def test_a_notebook_launches_its_processes_as_the_other_stages_do(tmp_path, monkeypatch):
    "Every parameter reaches the workers; the curves are those of the workers' own file."
    def launched(module, params, num_processes, out, curves, num_machines):
        assert (module, params, num_processes, num_machines, out) == ("cooper.cooperate.grpo", p, 4, 2, tmp_path / "launch")
        own = grpo.grpo_curves(); own.add(1, tokens=5.); own.save(tmp_path / "curves.json")
        (tmp_path / "seconds.json").write_text('{"step": 1.5}')
    monkeypatch.setattr(grpo, "launch", launched)
    p = GRPOParameters(out=str(tmp_path), num_processes=4, num_machines=2)
    curves, seconds = grpo.train(p)
    assert curves.points == {"tokens": [(1, 5.)]} and seconds == {"step": 1.5}


def test_the_command_line_trains_and_leaves_a_model(tmp_path, monkeypatch):
    "As `accelerate launch -m cooper.cooperate.grpo --config ...` calls it in each process; killed and started again it goes on."
    from cooper.model.checkpoint import load_model, save_model
    model, processor = miniature()
    save_model(model, processor, tmp_path / "start")
    for i in range(2): room(i).save(tmp_path / f"{i}.png")
    rows = [dict(question="How many cubes are there?", answer="2", image=f"{i}.png", data_id=f"q{i}", flag="positive") for i in range(2)]
    (tmp_path / "rl.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = dict(checkpoint=str(tmp_path / "start"), data=str(tmp_path / "rl.jsonl"), evaluation=str(tmp_path / "rl.jsonl"), out=str(tmp_path / "out"), steps=2,
                 prompts_per_step=1, num_generations=2, max_new_tokens=3, max_turns=2, beta=.1, lora_rank=2, save_steps=1, keep_every=1, map_every=0, eval_questions=1)
    (tmp_path / "parameters.yaml").write_text(json.dumps(given))
    monkeypatch.setenv("COOPER_ERRORS", str(tmp_path / "errors")), monkeypatch.setenv("COOPER_PROGRESS", str(tmp_path / "progress.jsonl"))
    with pytest.raises(ValueError, match="prompts_per_step"):
        (tmp_path / "wrong.yaml").write_text(json.dumps(given | dict(prompts_per_step=1.5)))
        grpo.main(["--config", str(tmp_path / "wrong.yaml")])
    assert "'prompts_per_step' is 1.5" in (tmp_path / "errors" / "0.txt").read_text(), "a worker's error reaches whoever launched it"
    grpo.main(["--config", str(tmp_path / "parameters.yaml"), "--steps", "1"])
    grpo.main(["--config", str(tmp_path / "parameters.yaml")])
    told = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [(r["step"], "tokens" in r["logs"]) for r in told if "logs" in r and r["logs"]] == [(1, True), (2, True)], "and so do the curves"
    load_model(tmp_path / "out" / "model")
    assert [s for s, _ in grpo.Curves.load(tmp_path / "out" / "curves.json").points["tokens"]] == [1, 2]
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"model", "curves.json", "seconds.json", "rollouts", "checkpoint-2"}


JOB = "nbs/30_grpo.sbatch"

def test_the_job_for_a_cluster_goes_into_the_queue_again_when_it_is_stopped(tmp_path):
    "With a papermill that sleeps and a scontrol that writes down what it is told."
    for name, body in dict(papermill='echo "$@" > "$OUT/asked"; exec sleep 60', scontrol='echo "$@" > "$OUT/told"').items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n"); (tmp_path / name).chmod(0o755)
    env = os.environ | dict(PATH=f"{tmp_path}:{os.environ['PATH']}", OUT=str(tmp_path / "out"), SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE="4", SLURM_JOB_NUM_NODES="2")
    job = subprocess.Popen(["bash", JOB, "-p", "steps", "2000"], env=env, stdout=subprocess.PIPE, text=True)
    for _ in range(200):
        if (tmp_path / "out" / "asked").exists(): break
        time.sleep(.05)
    time.sleep(.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0 and "into the queue again" in job.stdout.read()
    assert (tmp_path / "out" / "told").read_text().split() == ["requeue", "7"]
    asked = (tmp_path / "out" / "asked").read_text()
    assert "nbs/30_grpo.ipynb" in asked and "-p num_processes 8 -p num_machines 2 -p steps 2000" in asked


def test_a_job_whose_notebook_fails_is_not_queued_again(tmp_path):
    for name, body in dict(papermill="exit 3", scontrol='touch "$OUT/told"').items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n"); (tmp_path / name).chmod(0o755)
    env = os.environ | dict(PATH=f"{tmp_path}:{os.environ['PATH']}", OUT=str(tmp_path / "out"), SLURM_JOB_ID="7")
    assert subprocess.run(["bash", JOB], env=env).returncode == 3 and not (tmp_path / "out" / "told").exists()


def test_a_group_shows_who_was_not_judged():
    row = lambda a: dict(advantage=a, rewards={"accuracy": None}, trace=types.SimpleNamespace(_repr_html_=lambda: ""), answer="2", question="Q?", step=1)
    group = grpo.Group(map(row, (None, float("nan"), 1.)))
    assert repr(group).startswith("Group(not judged, not judged, +1.00") and group._repr_html_().count("advantage not judged") == 2


def test_memory_of_a_large_model_is_counted_by_hand():
    whole = grpo.memory_per_gpu(14e9, gpus=8, reference=True)
    assert whole["weights"] == whole["reference"] == 28e9 / 2 ** 30 and whole["optimizer"] == 14e9 * 12 / 2 ** 30
    pieces = grpo.memory_per_gpu(14e9, gpus=8, strategy="ZeRO-3 or FSDP", reference=True)
    assert pieces["all"] == pytest.approx(whole["all"] / 8)
    assert grpo.memory_per_gpu(14e9, trainable=1e8)["all"] < 30 < whole["all"]
    with pytest.raises(ValueError, match="expected one of whole, ZeRO-1"): grpo.memory_per_gpu(1, strategy="zero")


# ---- law 6

RUNS = textwrap.dedent("""
    import json, os, signal, sys
    sys.path.insert(0, "tests")
    import test_grpo as T, torch
    from pathlib import Path
    from transformers import TrainerCallback
    from transformers.trainer import Trainer
    folder = Path(sys.argv[1])
    for i in range(4): T.room(i).save(folder / f"{i}.png")
    words = ["How many?", "Which?", "Is it?", "Where?"]
    rows = [dict(question=w, answer="2", picture=str(folder / f"{i}.png"), data_id=f"q{i}") for i, w in enumerate(words)]
    parts = (*T.miniature(), T.as_dataset(rows), folder)

    def die(): os.kill(os.getpid(), signal.SIGKILL)

    class Die(TrainerCallback):
        def __init__(self, step): self.step = step
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == self.step: die()

    class DieBetween(TrainerCallback): # a generation is used up, its checkpoint is there
        def on_save(self, args, state, control, **kw):
            if state.global_step == 4: die()

    class Maps: # true maps, for the flow loss
        def __init__(self, processor): self.processor = processor
        def __len__(self): return 3
        def contents(self): return 3
        def build(self, k, generator): return T.Sequence(self.processor.picture(T.room(k), ("clean",)) + self.processor.picture(T.room(k + 1), ("noised",)))

    def run(out, when):
        if when == "keeping": # half of a file of rollouts is written
            import pyarrow.parquet as pq
            write = pq.write_table
            def half(table, where):
                if "step-000004" not in str(where): return write(table, where)
                Path(where).write_bytes(b"PAR1 half"); die()
            pq.write_table = half
        if when == "saving": # half of the second checkpoint is written
            real = Trainer._save_optimizer_and_scheduler
            def half(self, output_dir): real(self, output_dir) if self.state.global_step < 4 else die()
            Trainer._save_optimizer_and_scheduler = half
        t = T.trainer(parts, out, callbacks=[Die(5 if when == "step" else -1), *([DieBetween()] if when == "between" else [])], max_steps=6, num_iterations=2, beta=.05,
                      save_strategy="steps", save_steps=1, per_device_train_batch_size=4, scale_rewards="none", sync_ref_model=True, ref_model_sync_steps=3,
                      rollout=dict(keep_every=1, flow_weight=.1, flow_batch=1), flow=Maps(parts[1]))
        if when == "rollout":
            sample = t.engine.run
            t.engine.run = lambda *a, **k: die() if t.state.global_step == 4 else sample(*a, **k)
        t.fit()
        torch.save(t.model.state_dict(), folder / f"{out}.pt")
        log = [{k: h[k] for k in ("step", "loss", "kl", "grad_norm", "flow_loss")} for h in t.state.log_history if "loss" in h]
        (folder / f"{out}.json").write_text(json.dumps(log))

    def process(out, when): # a process of its own, so that it can be killed
        pid = os.fork()
        if pid == 0:
            try: run(out, when); os._exit(0)
            except BaseException: import traceback; traceback.print_exc(); os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    ended = {"whole": [process("whole", None)]}
    for when in ("step", "between", "saving", "rollout", "keeping"):
        ended[when] = [process(when, when)]
        kept = [p.name for p in (folder / when).glob("checkpoint-*")]
        ended[when] += [kept, process(when, None)]
    (folder / "ended.json").write_text(json.dumps(ended))
""")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "One run that is left alone; three that are killed and started again."
    folder = tmp_path_factory.mktemp("killed")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    r = subprocess.run([sys.executable, "-c", RUNS, str(folder)], env=one_thread, capture_output=True, text=True, timeout=900)
    assert r.returncode == 0, r.stderr
    return folder, json.loads((folder / "ended.json").read_text()), r.stderr


@pytest.mark.parametrize("when", ["step", "between", "saving", "rollout", "keeping"])
def test_a_killed_run_loses_nothing(runs, when):
    """Killed in a step inside a generation, between two, while a checkpoint is written, in a rollout, while rollouts are written; started again: the same
    losses, weights and rollouts, bit for bit. With a reference that follows, and a flow loss."""
    folder, ended, errors = runs
    (killed, kept, again), (whole,) = ended[when], ended["whole"]
    assert (whole, killed, again) == (0, -signal.SIGKILL, 0), errors
    assert kept and all(int(n.split("-")[1]) % 2 == 0 for n in kept), f"{kept}: checkpoints stand between generations of two steps"
    assert (folder / f"{when}.json").read_text() == (folder / "whole.json").read_text()
    a, b = (torch.load(folder / f"{n}.pt") for n in ("whole", when))
    assert all(torch.equal(a[k], b[k]) for k in a)
    kept = [[{k: v for k, v in r.items() if k != "trace"} | dict(ids=[s.ids for s in r["trace"].written], drawn=[s.picture and s.picture.tobytes() for s in r["trace"].steps])
             for step in (0, 2, 4) for r in grpo.read_rollouts(folder / n, step)] for n in ("whole", when)]
    assert kept[0] == kept[1] and len(kept[0]) == 12 and len(list((folder / when / "rollouts").iterdir())) == 3


def test_another_run_does_not_go_on_in_a_used_folder(parts):
    model, processor, dataset, folder = parts
    saved = dict(max_steps=1, save_strategy="steps")
    trainer(parts, "used", **saved).fit()
    with pytest.raises(ValueError, match="learning_rate was 0.001 and is 0.5"): trainer(parts, "used", learning_rate=.5, **saved).fit()
    with pytest.raises(ValueError, match="max_new_tokens was 6 and is 4"): trainer(parts, "used", rollout=dict(max_new_tokens=4), **saved).fit()
    other = copy.deepcopy(model)
    next(other.vae.parameters()).data.add_(1e-6)
    with pytest.raises(ValueError, match="fingerprint of the start was"): trainer((other, *parts[1:]), "used", **saved).fit()
    rows = [dict(row) for row in dataset]
    rows[0]["answer"] = "3"
    with pytest.raises(ValueError, match="fingerprint of the data was"): trainer((model, processor, as_dataset(rows), folder), "used", **saved).fit()
    moved = folder / "moved.png" # the same picture elsewhere, traces sampled in other portions, more steps
    moved.write_bytes((folder / "0.png").read_bytes())
    same = (model, processor, as_dataset([dict(dataset[0]) | dict(picture=str(moved)), *map(dict, list(dataset)[1:])]), folder)
    longer = trainer(same, "used", **saved | dict(max_steps=2), rollout=dict(batch_size=5, keep_every=3))
    longer.fit()
    assert longer.state.global_step == 2 and sorted(p.name for p in (folder / "used").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_traces_of_a_run_that_left_no_checkpoint_do_not_stay(parts):
    first, second = (trainer(parts, "traces", max_steps=n, learning_rate=lr, rollout=dict(keep_every=1)) for n, lr in ((2, 1e-3), (1, 1e-2)))
    first.fit(), second.fit()
    assert [f.name for f in (parts[-1] / "traces" / "rollouts").glob("*")] == ["step-000000.parquet"]


def test_the_last_step_leaves_a_checkpoint(parts):
    "Also in the middle of a generation, and with what TRL has counted since the last point of the curve."
    t = trainer(parts, "odd", max_steps=3, steps_per_generation=2, per_device_train_batch_size=4, save_strategy="steps", save_steps=50, logging_steps=2)
    t.fit()
    assert newest_whole(t.args.output_dir).name == "checkpoint-3"
    assert [s for s, _ in t.curves.points["letters/reward"]] == [2, 3]


def test_evaluation_may_ask_each_question_once(parts):
    model, processor, dataset, folder = parts
    args = grpo_config(folder / "eval", max_steps=1, per_device_train_batch_size=8, per_device_eval_batch_size=4, num_generations=4, num_generations_eval=1,
                       use_cpu=True, bf16=False, save_strategy="no")
    t = CooperGRPOTrainer(copy.deepcopy(model), processor, [letters], args, dataset, RolloutConfig(modes="reason", max_new_tokens=4), eval_dataset=dataset)
    asked, run = [], t.engine.run
    t.engine.run = lambda requests: asked.append(len(requests)) or run(requests)
    assert "eval_reward" in t.evaluate() and asked == [4]


def test_fields_that_only_later_rows_have_stay():
    plain = dict(question="q", answer="a", picture="p", data_id="1")
    ds = as_dataset([plain, plain | dict(data_id="2", choices=["a", "b"], kind="depth", mode="direct", flag="positive")])
    assert ds[1] == plain | dict(data_id="2", choices=["a", "b"], kind="depth", mode="direct", flag="positive", prompt="q")
    assert ds[0]["mode"] is None and ds[0]["choices"] is None
    assert [row["data_id"] for row in spread(list(ds), 2, 0)] in (["1", "2"], ["2", "1"])


def test_trl_is_quiet_without_a_word_in_the_environment(parts):
    assert "os.environ" not in inspect.getsource(grpo)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(parts, "quiet")
    assert not [str(w.message) for w in said if "rollout_func" in str(w.message)]


def test_rewards_of_the_notebook_have_options():
    made = GRPOParameters(rewards=["judge", "length", "test_grpo:letters"], reward_weights=[1., .5, .1],
                          reward_options=dict(judge=dict(model="data/tiny-cooper", timeout=5.), length=dict(free=10, limit=50))).reward_functions()
    assert [(f.__name__, f.weight) for f in made] == [("judge", 1.), ("length", .5), ("letters", .1)]
    assert (made[0].model, made[0].timeout, made[1].free, made[1].limit) == ("data/tiny-cooper", 5., 10, 50)
    for words, given in {"'length': free is 0 and limit 0": dict(rewards=["length"], reward_weights=[1.]), "has no option 'limits'": dict(reward_options=dict(format=dict(limits=1))),
                         "'reward_options' holds 'weights'": dict(reward_options=dict(weights=[1., 1., 1.])), "'dtype' is 'float16'": dict(dtype="float16"),
                         "'dtype' is 'bfloat16' without 'lora_rank'": dict(dtype="bfloat16")}.items():
        with pytest.raises(ValueError, match=words): GRPOParameters(**given)
    assert GRPOParameters(dtype="bfloat16", lora_rank=4).dtype == "bfloat16"


def test_what_decides_a_reward_is_a_fact_of_the_run_and_patience_is_none(parts):
    "A run may go on with a judge that is asked more patiently; not with another judge, and not with another limit."
    from cooper.cooperate.rewards import JudgeReward, LengthReward
    def facts(limit=50, **judge): return trainer(parts, "facts", rewards=(JudgeReward(**dict(model="data/tiny-cooper") | judge), LengthReward(limit=limit))).settings["rewards"]
    before = facts()
    assert before == facts(timeout=90., attempts=9, patience=600., concurrency=2, folder="", endpoint=dict(price=1.), max_unjudged=1.)
    for other in (dict(model="data/other"), dict(variant="published"), dict(trust_rules=True), dict(max_answer=9), dict(limit=60)): assert facts(**other) != before, other


def test_an_evaluation_that_would_ask_some_questions_twice_is_refused():
    "Where processes do not share the rows out evenly, accelerate fills the last batches with the first rows: groups would come twice, or be torn."
    args = types.SimpleNamespace(per_device_train_batch_size=8, steps_per_generation=1, num_generations=4, num_generations_eval=2, per_device_eval_batch_size=4, world_size=2)
    grpo.whole_groups(args, 8), grpo.whole_groups(args)
    with pytest.raises(ValueError, match="9 questions x 2 generations are not shared out evenly by 2 processes in batches of 4: some would be asked twice"): grpo.whole_groups(args, 9)
    args.world_size = 1
    grpo.whole_groups(args, 9)
    args.world_size, args.num_generations_eval = 2, 1
    kept = grpo.evaluating(args, 5, [{}] * 9, most=4)
    grpo.whole_groups(args, len(kept))
    assert len(kept) == 8


def test_parameters_of_the_notebook_become_trl_settings(tmp_path):
    args = GRPOParameters(out=str(tmp_path), prompts_per_step=3, num_generations=4, steps_per_generation=2, num_iterations=2).config()
    assert (args.per_device_train_batch_size, args.generation_batch_size, args.num_iterations) == (12, 24, 2)


@pytest.mark.parametrize("name, value, low", [("steps", 0, 1), ("per_scene", 0, 1), ("questions", -1, 0), ("keep_every", -1, 0), ("max_turns", -1, 0), ("max_new_tokens", -5, 0)])
def test_parameters_out_of_range_fail_before_anything_runs(name, value, low):
    with pytest.raises(ValueError, match=f"'{name}' is {value}; expected at least {low}$"): GRPOParameters(**{name: value})
