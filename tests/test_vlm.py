"Small VLMs: labels and masks token by token, what is scored is what was sampled, killed runs go on, the published reward to the letter."
import copy, functools, json

import pytest, torch
from PIL import Image
from transformers import TrainerCallback
from trl import SFTTrainer
from cooper.cooperate.vlm_grpo import VLM_PRESETS, VLMGRPOTrainer, accuracy_reward, check_vlm_grpo, even_groups, plain_answer, train_vlm_grpo, vlm_accuracy, vlm_grpo_config
from cooper.core import NotBuilt
from cooper.perceive.vlm_supervised import (ARCHITECTURES, VLMCollator, VLMSFTTrainer, adapted, answer_vlm, chat_messages, completion_logps, load_vlm, load_processor, log_probabilities, placeholder_ids, prefix_text, sample_vlm,
    save_vlm, score_vlm, small_vlm, train_vlm_sft, vlm_lora, vlm_sft_config, with_completions)

SIZES = dict(picture=32, width=32, vision_width=32, layers=2, vision_layers=1, heads=2, vocabulary=400)


def picture(colour, size=(40, 30)): return Image.new("RGB", size, colour)


ROWS = [
    dict(images=[picture("red")], prompt="Is the red cube left or right of the blue ball?", answer="left", id="a"),
    dict(images=[picture("blue"), picture("green")], prompt="<image><image> Answer in natural language. Which way did I turn? Choose between the following options: left or right", answer="to the right", id="b"),
    dict(images=[picture("white")], prompt="How many?", answer="3", id="c", system="Be short."),
    dict(images=[picture("gray"), picture("blue"), picture("red")], prompt="Zwölf — 一二?", answer="moved left, not right", id="d")] # words the tokenizer has never seen


@functools.cache
def _made(architecture): return small_vlm(architecture, ROWS[:2], **SIZES)


def made(architecture="paligemma"):
    model, processor = _made(architecture)
    return copy.deepcopy(model), processor


# ---- one batch ----

@pytest.mark.parametrize("side", ["right", "left"])
def test_prefix_labels_are_the_answer_and_its_end_token_by_token(side):
    _, processor = made()
    t = processor.tokenizer
    batch = VLMCollator(processor, padding_side=side)(ROWS)
    for b, row in enumerate(ROWS):
        before, words = prefix_text(row).split("<image>")[0], prefix_text(row).split("<image>")[-1]
        image = [processor.image_token_id] * (16 * len(row["images"]))
        prefix = t(before, add_special_tokens=False)["input_ids"] * bool(before) + image + [t.bos_token_id] + t(words + "\n", add_special_tokens=False)["input_ids"]
        answer = t(row["answer"], add_special_tokens=False)["input_ids"] + [t.eos_token_id]
        real = batch["attention_mask"][b].bool()
        assert batch["input_ids"][b][real].tolist() == prefix + answer
        assert batch["labels"][b][real].tolist() == [-100] * len(prefix) + answer
        assert batch["token_type_ids"][b][real].tolist() == [0] * len(prefix) + [1] * len(answer)
        assert batch["position_ids"][b][real].tolist() == list(range(1, len(prefix + answer) + 1)), "PaliGemma counts from 1, and not its padding"
        assert (batch["labels"][b][~real] == -100).all() and (batch["input_ids"][b][~real] == t.pad_token_id).all()
        assert t.decode(prefix[-1:]) == "\n" and t.decode(answer, skip_special_tokens=True) == row["answer"]
    assert batch["pixel_values"].shape == (7, 3, 32, 32)


def influence(model, batch, place):
    "Which tokens the hidden state at a place depends on."
    seen = {}
    def keep(module, args, out): out.retain_grad() if out.requires_grad else out.requires_grad_(); seen["x"] = out; return out
    handle = model.model.language_model.embed_tokens.register_forward_hook(keep)
    try: hidden = model.model(**{k: v for k, v in batch.items() if k not in ("labels", "pixel_values")}, output_hidden_states=False).last_hidden_state
    finally: handle.remove()
    grad, = torch.autograd.grad(hidden[place].square().sum(), seen["x"])
    return grad[place[0]].abs().sum(-1) > 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_prefix_sees_all_of_itself_and_the_answer_no_future(side):
    model, processor = made()
    batch = VLMCollator(processor, padding_side=side)(ROWS)
    for b in range(len(ROWS)):
        real, kind = batch["attention_mask"][b].bool(), batch["token_type_ids"][b]
        places = real.nonzero().flatten().tolist()
        for i in (places[0], places[len(places) // 2], places[-1], places[-2]):
            allowed = real & ((kind == 0) | (torch.arange(len(real)) <= i)) if kind[i] else real & (kind == 0)
            assert influence(model, batch, (b, i)).tolist() == allowed.tolist()


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "smolvlm"])
def test_chat_labels_are_the_assistants_turn(architecture):
    _, processor = made(architecture)
    t = processor.tokenizer
    for side in ("right", "left"):
        batch = VLMCollator(processor, padding_side=side)(ROWS)
        for b, row in enumerate(ROWS):
            learned = batch["labels"][b] >= 0
            assert t.decode(batch["labels"][b][learned]).strip() == row["answer"] + t.eos_token, "the end is learned, what the template writes after it is not"
            start = learned.nonzero()[0].item()
            assert t.decode(batch["input_ids"][b][:start]).rstrip().lower().endswith(("assistant:", "assistant"))
            assert learned.sum() == learned.nonzero()[-1] - start + 1
    text = chat_messages(ROWS[1])[-1]["content"]
    assert [p["type"] for p in text] == ["image", "image", "text"] and "<image>" not in text[-1]["text"]
    assert chat_messages(ROWS[2])[0]["role"] == "system"


def test_labels_as_released_are_the_published_defect():
    "The reference, section 1.7: the end of the prompt is overwritten, nothing is appended, no end is learned, eight tokens at most."
    row = dict(images=[picture("red")], prompt="moved left or moved right", answer="moved right")
    _, processor = small_vlm("paligemma", [row, ROWS[1]], **SIZES) # one word, one token
    t = processor.tokenizer
    batch = VLMCollator(processor, labels="as_released")([row, ROWS[1] | dict(answer="1 2 3 4 5 6 7 8 9 0 1 2")])
    assert "token_type_ids" not in batch and "position_ids" not in batch
    words = t.decode(batch["input_ids"][0], skip_special_tokens=True).strip()
    assert words == "moved left or moved moved right"
    assert t.decode(batch["labels"][0][batch["labels"][0] >= 0]) == "moved right"
    assert (batch["labels"][1] >= 0).sum() == 8 and t.eos_token_id not in batch["labels"] and (batch["labels"][:, -1] >= 0).all()
    with pytest.raises(NotBuilt, match="chat model"): VLMCollator(made("smolvlm")[1], labels="as_released")


@pytest.mark.parametrize("row, says", [
    (dict(prompt="<image> and <image>"), "row 0 .a.: 'prompt' has 2 <image> for 1 pictures"), (dict(images=[]), "'images' is empty"), (dict(prompt=3), "'prompt' is 3"),
    (dict(answer=" "), "'answer' is ' '"), (dict(images=["nowhere.png"]), "row 0 .a.: picture 'nowhere.png' cannot be read"), (dict(images="one.png"), "expected a list of pictures")])
def test_a_bad_row_is_named(row, says):
    with pytest.raises(ValueError, match=says): VLMCollator(made()[1])([ROWS[0] | row])


# ---- models ----

@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_small_model_is_made_saved_and_loaded(architecture, tmp_path):
    model, processor = made(architecture)
    again, _ = small_vlm(architecture, ROWS[:2], **SIZES)
    other, _ = small_vlm(architecture, ROWS[:2], seed=1, **SIZES)
    weights = lambda m: torch.cat([p.flatten() for p in m.parameters()])
    assert torch.equal(weights(model), weights(again)) and not torch.equal(weights(model), weights(other))
    loaded, loaded_processor = load_vlm(save_vlm(model, processor, tmp_path/"model"))
    assert torch.equal(weights(model), weights(loaded))
    asked = dict(n=2, temperature=1., max_new_tokens=4, seed=3)
    assert answer_vlm(model, processor, ROWS, **asked) == answer_vlm(loaded, loaded_processor, ROWS, **asked)


def test_wrong_sizes_and_names_are_told():
    with pytest.raises(ValueError, match="architecture is 'llava'; expected one of paligemma"): small_vlm("llava", ROWS)
    with pytest.raises(ValueError, match="'picture' is 40; expected a multiple"): small_vlm(rows=ROWS, picture=40)
    with pytest.raises(ValueError, match="no rows"): small_vlm()


# ---- what is sampled is what is scored ----

@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities_do_not_depend_on_batch_mates(architecture):
    model, processor = made(architecture)
    found = sample_vlm(model, processor, ROWS, [(0, i) for i in range(4)], temperature=.7, max_new_tokens=6)
    ids = [c.ids for c in found]
    together, alone = score_vlm(model, processor, ROWS, ids, .7), score_vlm(model, processor, ROWS, ids, .7, batch_size=1)
    largest = lambda a, b: max(abs(x - y) for u, v in zip(a, b) for x, y in zip(u, v))
    assert largest(together, alone) < 1e-4 and largest([c.logps for c in found], alone) < 1e-4
    one = [sample_vlm(model, processor, [r], [(0, i)], temperature=.7, max_new_tokens=6)[0] for i, r in enumerate(ROWS)]
    assert [c.ids for c in one] == ids, "a sample depends on its seed alone"
    image = processor.image_token_id
    assert image in placeholder_ids(processor) and image not in sum(ids, [])
    assert log_probabilities(torch.zeros(1, 200), 1., [3])[0, 3] == -float("inf"), "what may not be sampled has no probability"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_token_does_not_see_those_after_it(architecture):
    model, processor = made(architecture)
    a, b = score_vlm(model, processor, [ROWS[1]] * 2, [[7, 8, 9, 10], [7, 8, 30, 31]])
    assert abs(a[0] - b[0]) < 1e-5 and abs(a[1] - b[1]) < 1e-5 and abs(a[3] - b[3]) > 1e-3


def test_trls_own_token_types_let_an_answer_see_its_future(tmp_path):
    "Fails when TRL gives completions of PaliGemma their own type: then that part of `Scorer` may go."
    t = trainer("grpo", tmp_path)
    t.model.train()
    batch = t._generate_and_score_completions([t.train_dataset[i] for i in (0, 0, 0, 0, 1, 1, 1, 1)])
    inputs = dict(input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
                  pixel_values=batch["pixel_values"], token_type_ids=batch["token_type_ids"])
    width, other = batch["completion_ids"].shape[1], inputs["input_ids"].clone()
    other[:, -1] = 7 # the last token of all answers
    assert width == 3 and not batch["token_type_ids"][:, -width:].any()
    def first(ids, **types): return completion_logps(t.base(), inputs | dict(input_ids=ids) | types, width)[0][:, 0].detach()
    own = torch.cat([torch.zeros_like(batch["prompt_ids"]), torch.ones_like(batch["completion_ids"])], 1)
    assert (first(other) - first(inputs["input_ids"])).abs().max() > 1e-4
    assert (first(other, token_type_ids=own) - first(inputs["input_ids"], token_type_ids=own)).abs().max() < 1e-5


def test_samples_follow_the_distribution_at_a_temperature():
    model, processor = made()
    model.lm_head.weight.data.mul_(4)
    rows, n = [ROWS[0] | dict(id=str(i)) for i in range(400)], {}
    found = sample_vlm(model, processor, rows, [(1, i) for i in range(400)], temperature=2., max_new_tokens=1)
    for c in found: n[c.ids[0]] = n.get(c.ids[0], 0) + 1
    likely = max(n, key=n.get)
    p = torch.tensor(score_vlm(model, processor, ROWS[:1], [[likely]], 2.)[0][0]).exp().item()
    assert abs(n[likely] / 400 - p) < 4 * (p * (1 - p) / 400) ** .5


# ---- adapters ----

def test_adapters_stand_where_they_are_asked_for():
    def layers(model, config):
        from peft import get_peft_model
        return adapted(get_peft_model(model, config))
    model, _ = made()
    assert layers(model, vlm_lora(model)) == sorted(f"model.language_model.layers.{i}.{part}" for i in range(2) for part in
        (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))))
    model, _ = made()
    both = layers(model, VLM_PRESETS["v1"].lora(model)) # bare names match the vision tower, too
    assert len(both) == 2 * 3 and sum("vision_tower" in n for n in both) == 2 and all(n.endswith(("q_proj", "v_proj")) for n in both)
    model, _ = made()
    seven = layers(model, VLM_PRESETS["v2"].lora(model))
    assert sum("vision_tower" in n for n in seven) == 3 and not [n for n in seven if "out_proj" in n or "fc" in n or "projector" in n]
    for architecture in ("qwen2_5_vl", "smolvlm"):
        model, _ = made(architecture)
        assert len(layers(model, vlm_lora(model))) == 14
    with pytest.raises(ValueError, match="no layer of .*visual ends in q_proj"): vlm_lora(made("qwen2_5_vl")[0], "vision", ("q_proj",))
    with pytest.raises(ValueError, match="where is 'all'; expected language, vision or both"): vlm_lora(model, "all")


# ---- the reward ----

@pytest.mark.parametrize("said, answer, grpo, sft, clean", [ # the reference, section 1.4
    ("left", "left", 1., 1., 1.), ("Left.", "left", 1., 1., 1.), (" left", "left", 0., 0., 1.), ("left-front", "left-front", 0., 1., 1.), ("to the left", "to the left,", 0., 1., 1.),
    ("5.0", "5.0", 0., 1., 1.), ("", "left", -.2, -.2, -.2), (" \t ", "left", -.2, -.2, -.2), ("...", "left", 0., 0., -.2),
    ("I think\nleft", "left", 1., 1., 0.), ("so\n left ", "left", 1., 1., 0.), ("left\n", "left", -.2, -.2, 1.), # the last line is what stands after the last newline: here nothing
    ("right", "left", 0., 0., 0.), ("(b)", "b", 1., 1., 1.), ("LEFT", "Left", 1., 1., 1.), ("left!", "left", 0., 0., 1.), ("-2", "2", 1., 1., 0.), ("1,000", "1000", 1., 1., 1.),
    ("to  the left", "to the left", 0., 0., 1.), ("left", " left", 0., 0., 1.), ("5.0", "50", 1., 1., 0.),
    (".5", "5", 1., 1., 0.), (".5", ".5", 0., 1., 1.), ("-.5", "5", 1., 1., 0.), ("-.5", ".5", 0., 1., 0.), ("-.5.", "-.5", 0., 1., 1.), ("...5", "5", 1., 1., 1.), # points and signs of numbers
    ("−2", "2", 0., 0., 0.), ("−2", "-2", 0., 0., 1.), ("(−.5)", "-.5", 0., 0., 1.), ("3−2", "3-2", 0., 0., 1.), # U+2212
    ("1,2,3", "123", 1., 1., 0.), ("1,2,3", "1, 2, 3", 0., 0., 1.), ("12,34", "1234", 1., 1., 0.), ("1,0000", "10000", 1., 1., 0.), ("12,345,67", "1234567", 1., 1., 0.),
    ("-1,234,567.5", "-1234567.5", 0., 1., 1.), ("1,000, 2,000", "1000 2000", 1., 1., 1.), ("left,right", "left right", 0., 0., 1.)])
def test_the_reward_table(said, answer, grpo, sft, clean):
    assert vlm_accuracy(said, answer, "as_released_grpo") == grpo and vlm_accuracy(said, answer, "as_released_sft") == sft and vlm_accuracy(said, answer) == clean
    assert accuracy_reward("clean")([[dict(role="assistant", content=said)]], answer=[answer]) == [clean]


def test_the_rule_before_the_newline_is_looked_at_and_unknown_variants():
    assert vlm_accuracy("left\n", "left", "as_released_grpo", last_line=False) == vlm_accuracy("left\n", "left", "as_released_sft", last_line=False) == 0.
    assert plain_answer("The  Left-Front, (2.5 m).") == "the left front 2.5 m"
    with pytest.raises(ValueError, match="variant is 'strict'; expected one of clean"): accuracy_reward("strict")


# ---- training ----

class Kill(TrainerCallback):
    def __init__(self, at): self.at = at
    def on_step_end(self, args, state, control, **kw):
        if state.global_step == self.at: raise KeyboardInterrupt


def config(kind, out, **changes):
    if kind == "sft": return vlm_sft_config(out, **dict(max_steps=7, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2, save_steps=2, logging_steps=3) | changes)
    return vlm_grpo_config(out, **dict(max_steps=5, per_device_train_batch_size=4, num_generations=4, steps_per_generation=2, max_completion_length=3, learning_rate=1e-2,
                                       save_steps=1, beta=.1, temperature=.7) | changes)


def trainer(kind, out, architecture="paligemma", lora=False, **changes):
    model, processor = made(architecture)
    adapter = vlm_lora(model, rank=2) if lora else None
    if kind == "sft": return VLMSFTTrainer(model, processor, ROWS, config(kind, out, **changes), lora=adapter)
    likes = lambda completions, **kw: [float(len(c[0]["content"]) % 3) for c in completions] # random words are rarely right
    return VLMGRPOTrainer(model, processor, ROWS, config(kind, out, **changes), [likes], lora=adapter)


@pytest.mark.parametrize("kind, architecture, lora", [("sft", "paligemma", False), ("grpo", "paligemma", True), ("grpo", "qwen2_5_vl", False)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(kind, architecture, lora, tmp_path):
    whole = trainer(kind, tmp_path/"whole", architecture, lora)
    straight = whole.fit().state_dict()
    for at in (3, 4):
        killed = trainer(kind, tmp_path/"killed", architecture, lora)
        killed.add_callback(Kill(at))
        with pytest.raises(KeyboardInterrupt): killed.fit()
    resumed = trainer(kind, tmp_path/"killed", architecture, lora)
    after = resumed.fit().state_dict()
    assert straight.keys() == after.keys() and all(torch.equal(straight[k], after[k]) for k in straight)
    assert any(not torch.equal(straight[k], v) for k, v in made(architecture)[0].state_dict().items()), "nothing was learned"
    last = lambda t: {k: v[-1] for k, v in t.curves.points.items() if k in ("loss", "kl", "entropy")}
    assert last(whole) == last(resumed) and last(whole)
    if kind == "grpo": assert max(v for _, v in whole.curves.points["logp_difference"]) < 1e-4, "law 2"
    if kind == "sft":
        with pytest.raises(ValueError, match="seed was 42 and is 1"): trainer(kind, tmp_path/"killed", architecture, lora, seed=1).fit()


@pytest.mark.parametrize("architecture", ["paligemma", "qwen2_5_vl"])
def test_our_loss_is_trls_and_accumulating_changes_nothing(architecture, tmp_path):
    t = trainer("sft", tmp_path/"a", architecture)
    batch = t.collate([dict(row=i) for i in range(4)])
    t.model.train()
    theirs = SFTTrainer.compute_loss(t, t.model, dict(batch))
    assert torch.allclose(t.compute_loss(t.model, dict(batch)), theirs, atol=1e-5)
    assert t._metrics["train"]["entropy"][1] == pytest.approx(t._metrics["train"]["entropy"][0], abs=1e-4)
    t._metrics["train"].clear()
    once = trainer("sft", tmp_path/"b", architecture, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=2, optim="sgd")
    for a, b in zip(trainer("sft", tmp_path/"c", architecture, max_steps=2, optim="sgd").fit().parameters(), once.fit().parameters()): assert torch.allclose(a, b, atol=1e-4)


def test_a_processor_that_needs_torchvision_is_named(monkeypatch, tmp_path):
    import importlib.util
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    def fails(where): raise ImportError("VideoProcessor requires the Torchvision library")
    monkeypatch.setattr("cooper.perceive.vlm_supervised.AutoProcessor.from_pretrained", fails)
    with pytest.raises(NotBuilt, match="the processor of somewhere .smolvlm. without torchvision"): load_processor("somewhere", "smolvlm")


def test_sft_learns_and_stops_and_keeps_its_record(tmp_path):
    model, processor = made()
    run = train_vlm_sft(model, processor, ROWS[:3], vlm_sft_config(tmp_path, max_steps=60, per_device_train_batch_size=3, learning_rate=5e-3))
    assert answer_vlm(run.model, processor, ROWS[:3], max_new_tokens=8) == [["left"], ["to the right"], ["3"]]
    loaded, loaded_processor = load_vlm(run.save())
    assert answer_vlm(loaded, loaded_processor, ROWS[:3], max_new_tokens=8, batch_size=1) == [["left"], ["to the right"], ["3"]]
    record = json.loads((tmp_path/"run.json").read_text())
    assert record["status"] == "finished" and record["params"]["labels"] == "clean" and record["seeds"] == {"seed": 42}
    assert run.curves.last("loss") < .1 and run.curves.last("mean_token_accuracy") == 1.


def test_grpo_makes_the_better_answer_likelier_and_the_reference_is_the_model_without_adapter(tmp_path):
    model, processor = made()
    rows = [ROWS[0], ROWS[1] | dict(answer="left")]
    model = train_vlm_sft(model, processor, [r | dict(answer=a) for r in rows for a in ("left", "right")], vlm_sft_config(tmp_path/"sft", max_steps=40, learning_rate=5e-3)).model
    asked = dict(n=16, temperature=1., max_new_tokens=3)
    right = lambda m: sum(a == r["answer"] for r, found in zip(rows, answer_vlm(m, processor, rows, **asked)) for a in found) / 32
    before, start = right(model), copy.deepcopy(model)
    args = vlm_grpo_config(tmp_path/"grpo", max_steps=20, per_device_train_batch_size=16, num_generations=8, max_completion_length=3, learning_rate=1e-2, beta=.01)
    trainer = VLMGRPOTrainer(model, processor, rows, args, lora=vlm_lora(model))
    completions = [[c] for c in processor.tokenizer("left right", add_special_tokens=False)["input_ids"]]
    base = lambda: score_vlm(trainer.base(), processor, rows, completions)
    assert before < .8 and torch.allclose(torch.tensor(base()), torch.tensor(score_vlm(start, processor, rows, completions)), atol=1e-5), "an adapter begins as no change"
    trainer.train()
    with trainer.model.disable_adapter(): assert torch.allclose(torch.tensor(base()), torch.tensor(score_vlm(start, processor, rows, completions)), atol=1e-5), "the reference moved"
    assert right(trainer.whole_model()) > max(before + .2, .7)
    assert trainer.curves.points["kl"][0][1] == 0. and trainer.curves.last("kl") > 0


def test_even_groups_may_be_left_out_with_their_kl(tmp_path):
    model, processor = made()
    same = lambda completions, **kw: [1.] * len(completions)
    weights = lambda m: torch.cat([p.detach().flatten() for p in m.parameters()])
    start = weights(model)
    args = dict(max_steps=2, steps_per_generation=1, beta=.5)
    run = train_vlm_grpo(model, processor, ROWS, config("grpo", tmp_path/"a", **args), [same], skip_even=True)
    assert torch.equal(weights(run.model), start)


@pytest.mark.parametrize("n", [7, 8])
def test_a_group_is_left_out_as_a_whole_when_its_rewards_are_even_up_to_rounding(n, tmp_path):
    model, processor = made()
    uneven = [-.2] * 5 + [1.] + [0.] * (n - 6) # the mean is 0, as are some advantages
    t = VLMGRPOTrainer(model, processor, ROWS, config("grpo", tmp_path, per_device_train_batch_size=2 * n, num_generations=n, steps_per_generation=1),
                       [lambda completions, **kw: uneven + [-.2] * n], skip_even=True)
    t.model.train()
    batch = t._generate_and_score_completions([t.train_dataset[i] for i in [0] * n + [1] * n])
    assert torch.equal(batch["tool_mask"][:n], batch["completion_mask"][:n]) and batch["completion_mask"][n:].any() and not batch["tool_mask"][n:].any()


def test_even_groups_look_past_rewards_that_are_unknown():
    nan = float("nan")
    assert even_groups(torch.tensor([1., 1., nan, 1., 1., nan, 0., 1., nan, nan, nan, 1.]), 3).tolist() == [True] * 3 + [True] * 3 + [False] * 3 + [True] * 3
    assert even_groups(torch.tensor([0., 1.4e-5, 0., 1.5e-5]), 2).tolist() == [True] * 2 + [False] * 2, "the unbiased deviation, below 1e-5"


def test_a_picture_is_opened_once_for_a_generation(tmp_path, monkeypatch):
    rows = []
    for i, r in enumerate(ROWS[:2]):
        files = [tmp_path/f"{i}{j}.png" for j in range(len(r["images"]))]
        for p, f in zip(r["images"], files): p.save(f)
        rows.append(r | dict(images=files))
    model, processor = made()
    given = []
    reward = lambda completions, images, **kw: given.extend(images) or [0.] * len(completions)
    t = VLMGRPOTrainer(model, processor, rows, config("grpo", tmp_path/"out"), [reward])
    opened, how = [], Image.open
    monkeypatch.setattr(Image, "open", lambda f, *a, **kw: opened.append(str(f)) or how(f, *a, **kw))
    t.model.train()
    t._generate_and_score_completions([t.train_dataset[i] for i in [0] * 4 + [1] * 4])
    assert sorted(opened) == sorted(str(f) for r in rows for f in r["images"])
    assert [len(x) for x in given] == [1] * 4 + [2] * 4 and given[0][0].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("changes, error, says", [
    (dict(top_k=50), NotBuilt, "top_k=50"), (dict(top_p=.9), NotBuilt, "top_p=0.9"), (dict(temperature=0.), ValueError, "temperature is 0.0"),
    (dict(disable_dropout=False), ValueError, "disable_dropout is False"), (dict(max_steps=-1), ValueError, "max_steps is -1"), (dict(repetition_penalty=1.1), NotBuilt, "repetition_penalty")])
def test_what_would_not_do_what_it_says_is_refused(changes, error, says, tmp_path):
    with pytest.raises(error, match=says): check_vlm_grpo(config("grpo", tmp_path, **changes))


def test_presets_say_what_is_not_known(tmp_path):
    for name, p in VLM_PRESETS.items():
        for field in p.assumed: assert getattr(p, field) is None and p.why[field], f"{name}: {field} is assumed, and no sentence says why"
        assert p.config(tmp_path/name).max_steps == p.value("max_steps")
    v1, v2, sft = VLM_PRESETS.values()
    assert v1.learning_rate is v2.learning_rate is v2.alpha is None and (v1.beta, v2.beta) == (.04, .01) and (v1.rank, v2.rank, sft.rank) == (8, 16, 16)
    assert v1.config(tmp_path).per_device_train_batch_size == 4 and sft.config(tmp_path).gradient_accumulation_steps == 2 and not v1.skip_even and v2.skip_even
    with pytest.raises(KeyError, match="preset sft: beta is not known"): sft.value("beta")
    assert "not recorded" in v2._repr_html_()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_token_of_the_model_is_no_word_of_an_answer(architecture):
    "An end in the middle would be learned as one."
    _, processor = made(architecture)
    end = processor.tokenizer.eos_token
    with pytest.raises(ValueError, match=r"row 1 \(z\): 'answer' has .*, a token of the model; expected words"): VLMCollator(processor)([ROWS[0], ROWS[0] | dict(answer=f"left{end}right", id="z")])
    with pytest.raises(ValueError, match="no rows"): VLMCollator(processor)([])

@pytest.mark.parametrize("said,right,worth", [("<answer> a </answer>", "<answer>A</answer>", 1.), ("I think left.\n<answer>A</answer>", "<answer>A</answer>", 1.), ("<answer>B</answer>", "<answer>A</answer>", 0.),
                                             ("A", "<answer>A</answer>", 0.), ("<answer></answer>", "<answer>A</answer>", -.2), ("+", "+", 1.), ("", "+", -.2)])
def test_the_clean_reward_reads_what_a_chat_model_was_asked_for(said, right, worth): assert vlm_accuracy(said, right) == worth
