"The GRPO trainer: what it relies on in TRL, the objective by hand, groups, unjudged rows, and a run that is killed."
import copy, inspect, json, os, signal, subprocess, sys, textwrap, warnings

import pytest, torch
from trl import GRPOTrainer

from cooper.cooperate.grpo import CooperGRPOTrainer, GRPOParameters, RolloutConfig, as_completion, as_dataset, check_config, grpo_config, rl_rows, spread
from cooper.core import NotBuilt
from cooper.model.engine import Engine
from cooper.model.sequence import pack
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
    "_prepare_inputs": ["self._step % generate_every == 0", "shuffle_sequence_dict(", "split_tensor_dict("],
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


def trainer(parts, out, rewards=(letters,), rollout={}, cls=CooperGRPOTrainer, callbacks=None, **options):
    model, processor, dataset, folder = parts
    defaults = dict(max_steps=2, per_device_train_batch_size=8, num_generations=4, learning_rate=1e-3, save_strategy="no", use_cpu=True, bf16=False)
    rollout = RolloutConfig(**dict(modes=("perceive", "reason"), max_new_tokens=6) | rollout)
    return cls(copy.deepcopy(model), processor, list(rewards), grpo_config(folder / out, **defaults | options), dataset, rollout, callbacks=callbacks)


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
    (dict(sync_ref_model=True, beta=.1), NotBuilt, "sync_ref_model"),
])
def test_settings_that_would_do_something_else_are_refused(parts, options, error, words):
    with pytest.raises(error, match=words): trainer(parts, "refused", **options)


def test_a_group_that_would_straddle_processes_is_refused(tmp_path):
    args = grpo_config(tmp_path, max_steps=1, per_device_train_batch_size=8, num_generations=4)
    args.per_device_train_batch_size = 6 # as on one of two processes: the global batch of 12 would pass TRL's own check
    with pytest.raises(ValueError, match="straddle"): check_config(args)
    args._n_gpu = 1
    many = copy.copy(args)
    type(many).world_size, kept = property(lambda self: 2), type(many).world_size
    try:
        with pytest.raises(NotBuilt, match="several processes"): check_config(many)
    finally: type(many).world_size = kept


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

    def run(out, when):
        if when == "saving": # half of the second checkpoint is written
            real = Trainer._save_optimizer_and_scheduler
            def half(self, output_dir): real(self, output_dir) if self.state.global_step < 4 else die()
            Trainer._save_optimizer_and_scheduler = half
        t = T.trainer(parts, out, callbacks=[Die(5 if when == "step" else -1)], max_steps=6, num_iterations=2, beta=.05,
                      save_strategy="steps", save_steps=1, per_device_train_batch_size=4, scale_rewards="none")
        if when == "rollout":
            sample = t.engine.run
            t.engine.run = lambda *a, **k: die() if t.state.global_step == 4 else sample(*a, **k)
        t.fit()
        torch.save(t.model.state_dict(), folder / f"{out}.pt")
        log = [{k: h[k] for k in ("step", "loss", "kl", "grad_norm")} for h in t.state.log_history if "loss" in h]
        (folder / f"{out}.json").write_text(json.dumps(log))

    def process(out, when): # a process of its own, so that it can be killed
        pid = os.fork()
        if pid == 0:
            try: run(out, when); os._exit(0)
            except BaseException: import traceback; traceback.print_exc(); os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    ended = {"whole": [process("whole", None)]}
    for when in ("step", "saving", "rollout"):
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


@pytest.mark.parametrize("when", ["step", "saving", "rollout"])
def test_a_killed_run_loses_nothing(runs, when):
    "Killed in a step inside a generation, while a checkpoint is written, in a rollout; started again: the same losses and weights, bit for bit."
    folder, ended, errors = runs
    (killed, kept, again), (whole,) = ended[when], ended["whole"]
    assert (whole, killed, again) == (0, -signal.SIGKILL, 0), errors
    assert kept and all(int(n.split("-")[1]) % 2 == 0 for n in kept), f"{kept}: checkpoints stand between generations of two steps"
    assert (folder / f"{when}.json").read_text() == (folder / "whole.json").read_text()
    a, b = (torch.load(folder / f"{n}.pt") for n in ("whole", when))
    assert all(torch.equal(a[k], b[k]) for k in a)


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
    assert [f.name for f in (parts[-1] / "traces" / "traces").glob("*")] == ["step-000000.jsonl"]


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
    from cooper.cooperate import grpo
    assert "environ" not in inspect.getsource(grpo)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(parts, "quiet")
    assert not [str(w.message) for w in said if "rollout_func" in str(w.message)]


def test_parameters_of_the_notebook_become_trl_settings(tmp_path):
    args = GRPOParameters(out=str(tmp_path), prompts_per_step=3, num_generations=4, steps_per_generation=2, num_iterations=2).config()
    assert (args.per_device_train_batch_size, args.generation_batch_size, args.num_iterations) == (12, 24, 2)


@pytest.mark.parametrize("name, value, low", [("steps", 0, 1), ("per_scene", 0, 1), ("questions", -1, 0), ("keep_every", -1, 0), ("max_turns", -1, 0), ("max_new_tokens", -5, 0)])
def test_parameters_out_of_range_fail_before_anything_runs(name, value, low):
    with pytest.raises(ValueError, match=f"'{name}' is {value}; expected at least {low}$"): GRPOParameters(**{name: value})
