"""Law 3: a checkpoint in the released layout gives the reference's numbers.

Runs on every folder named in COOPER_GOLDEN (colon separated; default: those below tests/golden). A folder holds `checkpoint/` and
`expected/`; every size comes from its files. Floats agree within 1e-4, pictures within 3 of 255, both in float32. Where the reference
is wrong (scoring, `output_transfer`), the repaired numbers stored beside its own are the ones compared.
"""
import json, os
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cooper.model import engine as engine_module, transformer as transformer_module
from cooper.model.checkpoint import load_model
from cooper.model.engine import Canvas, Engine, Request, Sampler, draw, nucleus, read
from cooper.model.modalities import DepthMap, colour, decoded_picture, modality, spectral, unit_pixels
from cooper.model.modeling import log_probabilities, sincos_2d, timestep_features
from cooper.model.processor import Resize, to_pixels, to_rgb
from cooper.model.sequence import (PictureSegment, Sequence, TextSegment, attention_mask, grid_positions, pack, patchify,
                                   shift_timestep, unpatchify)
from cooper.model.traces import parse_turn
from cooper.model.transformer import Cache, make_plan, rope_theta, rotary

HERE = Path(__file__).resolve().parent


def folders(named, home):
    "The golden folders: those named, else all below `home`. Without numbers there is no law, so none, or one that lacks them, is an error and no skip."
    found = [Path(p).resolve() for p in named.split(":") if p] or sorted(p for p in home.glob("*") if p.is_dir())
    if not found: raise ValueError(f"{home}: there are no golden vectors; expected a folder with checkpoint/ and expected/, or one named in COOPER_GOLDEN")
    for p in found:
        lacks = [n for n in ("checkpoint", "expected/expected.json") if not (p/n).exists()]
        if lacks: raise ValueError(f"{p}: {' and '.join(lacks)} missing; expected a folder of golden vectors")
    return found


FOLDERS = folders(os.environ.get("COOPER_GOLDEN", ""), HERE/"golden")


def test_absent_golden_vectors_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="there are no golden vectors"): folders("", tmp_path)
    with pytest.raises(ValueError, match="none: checkpoint and expected/expected.json missing"): folders(f"{FOLDERS[0]}:{tmp_path}/none", tmp_path)
    (tmp_path/"half/checkpoint").mkdir(parents=True)
    with pytest.raises(ValueError, match="half: expected/expected.json missing"): folders("", tmp_path)
    assert folders("", HERE/"golden") == [HERE/"golden/bagel-tiny"], "the shipped golden vectors"


class Golden:
    "One folder of golden vectors, with its checkpoint loaded."
    def __init__(self, folder):
        self.folder, self.files = folder, {}
        self.json = json.loads((folder/"expected/expected.json").read_text())
        used = self.json["transforms_used"]
        self.model, self.processor = load_model(folder/"checkpoint", clean=tuple(used["vae"]), vision=tuple(used["vit"]))
        self.geometry, self.config = self.model.config.geometry, self.model.config

    def __call__(self, file):
        if file not in self.files: self.files[file] = load_file(self.folder/f"expected/{file}.safetensors")
        return self.files[file]

    def picture(self, name): return Image.fromarray(self("inputs")[name].numpy())

    def segments(self, name, *views):
        "Views of a stored picture that has its size for the autoencoder already."
        picture = self.picture(name)
        pixels = {"clean": to_pixels(picture)}
        if "vision" in views: pixels["vision"] = to_pixels(Resize(*self.processor.vision)(picture))
        return [PictureSegment(pixels[v], v) for v in views]

    def cache(self, slots=1): return Cache(self.config.text_config, slots)

    @cached_property
    def context(self):
        "The updates of `context`, read one after the other: hidden states and embeddings of each, positions, lengths, the cache."
        t, cache, position, seen = self("context"), self.cache(), 0, []
        for update in self.json["context"]["updates"]:
            name = update["name"]
            kind = name.rsplit("_", 1)[1]
            segments = ([TextSegment(t[f"{name}.input.packed_text_ids"].tolist())] if kind == "text" else
                        self.segments("img1_vae_resized", {"vae": "clean", "vit": "vision"}[kind]))
            batch = pack([Sequence(segments)], self.geometry, positions=[position])
            with torch.no_grad(): embedded = self.model.embed(batch, self.model.latent_tokens(batch))
            _, (position,), hidden = read(self.model, cache, [0], [Sequence(segments)], [position])
            seen.append((name, hidden, embedded, position, int(cache.lengths[0])))
        return seen, cache, position

    def branches(self, prompt):
        "The three contexts of a drawing after a picture and a prompt: everything, picture only, prompt only."
        picture, words = self.segments("img1_vae_resized", "clean", "vision"), [self.processor.text(prompt)]
        cache = self.cache(3)
        _, positions, _ = read(self.model, cache, [0, 1, 2], [Sequence(s) for s in (picture + words, picture, words)], [0, 0, 0])
        return cache, positions

    def shape(self, height, width):
        down = self.config.latent_downsample
        return (self.geometry.latent_channels, height // down, width // down)

    def drawn(self, cache, positions, noise, hyper, height, width):
        "Draw once: velocities and latents of every step, final latent tokens, pixels."
        canvas, steps = Canvas([0, 1, 2], positions, self.shape(height, width), noise), []
        latents = draw(self.model, cache, [canvas], sampler(hyper), on_step=lambda t, xs, vs: steps.append((t, xs[0], vs[0])))
        return steps, canvas.x, self.model.decode_latents(latents[0][None])[0]


def sampler(hyper):
    return Sampler(num_timesteps=hyper["num_timesteps"], shift=hyper["timestep_shift"], cfg_text=hyper["cfg_text_scale"], cfg_img=hyper["cfg_img_scale"],
                   interval=tuple(hyper["cfg_interval"]), renorm=hyper["cfg_renorm_type"], renorm_min=hyper["cfg_renorm_min"])


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda p: p.name)
def golden(request):
    torch.set_num_threads(1)
    return Golden(request.param)


def close(got, expected, what="", tolerance=1e-4):
    got, expected = torch.as_tensor(got).detach().float(), torch.as_tensor(expected).float()
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.numel():
        error = (got - expected).abs().max().item()
        assert error <= tolerance, f"{what}: off by {error:.2e}, allowed {tolerance:.0e}"


def same(got, expected, what=""):
    got, expected = torch.as_tensor(got).tolist(), torch.as_tensor(expected).tolist()
    assert got == expected, f"{what}: {got} is not {expected}"


def all_seen(seen, *names):
    "Fail if something that a loop should have compared was not in the files."
    missing = [n for n in names if not seen[n]]
    assert not missing, f"the golden vectors hold nothing to check for: {', '.join(missing)}"


def same_picture(got, expected, what=""): close(np.array(got).astype(np.int16), expected, what, 3)


# Pictures


def formula(kind, width, height):
    "The test pictures of the README."
    x, y, k = np.arange(width)[None, :, None], np.arange(height)[:, None, None], np.arange(3)[None, None]
    rgb = ((7 * x + 13 * y + 53 * k + (x * y) // 29) % 256).astype(np.uint8)
    grey, alpha = Image.fromarray(rgb[..., 0]), Image.fromarray(((3 * x + 5 * y) % 256).astype(np.uint8)[..., 0])
    if kind == "RGB": return Image.fromarray(rgb)
    if kind == "L": return grey
    if kind == "RGBA": return Image.merge("RGBA", [*Image.fromarray(rgb).split(), alpha])
    if kind == "LA": return Image.merge("LA", [grey, Image.fromarray(rgb[..., 1])])
    picture = Image.fromarray(rgb[..., 0] % 16).copy()
    picture.putpalette(sum(([(16 * i) % 256, (255 - 10 * i) % 256, (37 * i) % 256] if i < 16 else [0, 0, 0] for i in range(256)), []))
    if kind == "P_transparency": picture.info["transparency"] = 3
    return picture


def test_pictures_become_rgb_and_get_their_size(golden):
    t, sizes = golden("transforms"), golden.json["transforms"]["transforms"]
    names = sorted({k.split(".")[0] for k in t if k.endswith(".input_raw")})
    assert names
    seen = Counter()
    for name in names:
        kind, size = name.rsplit("_", 1)
        picture = formula(kind, *map(int, size.split("x")))
        same(np.array(picture).reshape(t[f"{name}.input_raw"].shape), t[f"{name}.input_raw"], f"{name}: the test's own formula")
        rgb = to_rgb(picture)
        same(np.array(rgb), t[f"{name}.rgb"], name)
        for which in sizes:
            if f"{name}.{which}_uint8" in t: same_picture(Resize(*sizes[which])(rgb), t[f"{name}.{which}_uint8"], f"{name} {which}"); seen["uint8"] += 1
            if f"{name}.{which}_normalized" in t:
                close(to_pixels(Resize(*sizes[which])(rgb)), t[f"{name}.{which}_normalized"], f"{name} {which}", 3 / 127); seen["normalized"] += 1
    all_seen(seen, "uint8", "normalized")


def test_transforms_of_many_pictures(golden):
    sizes, seen = golden.json["transforms"]["transforms"], Counter()
    for row in golden.json["transforms"]["rows"]:
        rgb = to_rgb(formula(row["kind"], *row["size_wh"]))
        what = f"{row['kind']} {row['size_wh']}"
        close((np.array(rgb) / 1.0).mean((0, 1)), row["rgb_mean"], what, 1e-3)
        for name, out in row["out"].items():
            first, _, second = name.partition("_then_")
            if second: # the result of one of the transforms for the autoencoder goes on to the vision tower
                vae = next(k for k in sizes if k.startswith("vae") and ("small" in k) == ("small" in second))
                pixels = to_pixels(Resize(*sizes[second])(Resize(*sizes[vae])(rgb)))
            else: pixels = to_pixels(Resize(*sizes[name])(rgb))
            same(pixels.shape[:0:-1], out["size_wh"], f"{what} {name}")
            close(pixels.mean((1, 2)), out["mean"], f"{what} {name} mean")
            if "std" in out: close(pixels.double().flatten(1).std(1, correction=0), out["std"], f"{what} {name} std")
            seen.update(["transform", *(["std"] if "std" in out else ()), *(["second transform"] if second else ())])
    all_seen(seen, "transform", "std", "second transform")


def test_resize_arithmetic(golden):
    t, checked = golden("transforms"), 0
    for name, rule in golden.json["transforms"]["transforms"].items():
        for width, height, pictures, *out in t[f"resize_arithmetic.{name}"].tolist():
            assert Resize(*rule).size(width, height, pictures) == tuple(out), (name, width, height, pictures)
            checked += 1
    assert checked


def test_loops_that_compare_nothing_fail():
    with pytest.raises(AssertionError, match="nothing to check for: decoded_float"): all_seen(Counter(v_t_all=2), "v_t_all", "decoded_float")


def test_depth_colours(golden):
    t = golden("depth")
    close(spectral(), t["spectral_lut"], "colour map")
    x = t["depth"].numpy()
    same(colour(x), t["colored_0_1_uint8_hwc"], "colours")
    valid = t["valid_mask"].bool().numpy()
    masked = np.where(valid[..., None], np.asarray(DepthMap(x, 0.1, 0.9).show(), np.float32) / 255, 0)
    close(masked.transpose(2, 0, 1), t["colored_01_09_masked"], "colours of 0.1 to 0.9", 1 / 255)


def test_inputs_are_fitted(golden):
    names = [name for name in golden("inputs") if f"{name}_vae_resized" in golden("inputs")]
    for name in names: same_picture(golden.processor.fit(golden.picture(name)), golden("inputs")[f"{name}_vae_resized"], name)
    assert names


# Words


def test_tokenizer(golden):
    expected = golden.json["tokenizer"]
    assert golden.processor.vocabulary == expected["len"]
    ids = expected["new_token_ids"]
    p = golden.processor
    assert (p.bos, p.eos, p.start_of_image, p.end_of_image) == (ids["bos_token_id"], ids["eos_token_id"], ids["start_of_image"], ids["end_of_image"])
    assert expected["cases"]
    for case in expected["cases"]:
        assert p.tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]
        assert p.tokenizer.decode(case["ids"]) == case["decoded"], case["text"]


# Parts of the model


def test_patches_and_positions(golden):
    t, g = golden("modules"), golden.geometry
    out = t["patchify_output_p2"]
    close(patchify(t["patchify_input"], 2), out, "patchify")
    close(unpatchify(out, *(n // 2 for n in t["patchify_input"].shape[1:]), 2), t["patchify_input"], "unpatchify")
    seen = Counter()
    for name, ids in t.items():
        if name.startswith("position_ids."):
            _, rule, size = name.split(".")
            rows, columns = (int(n) // g.latent_stride for n in size.split("x"))
            same(grid_positions(rows, columns, g.latent_side, rule == "interpolate"), ids, name); seen[rule] += 1
    assert seen["interpolate"] and len(seen) > 1, f"rules of positions: {list(seen)}"
    width = golden.config.text_config.hidden_size
    close(sincos_2d(g.latent_side, width), t["latent_pos_embed"], "latent positions")
    close(sincos_2d(g.vision_side, width), t["vit_pos_embed"], "vision positions")


@torch.no_grad()
def test_rotary_and_time(golden):
    t, c = golden("modules"), golden.config.text_config
    cos, sin = rotary(t["rope_position_ids"], t["rope_cos"].shape[1], rope_theta(c))
    close(cos, t["rope_cos"], "cos"); close(sin, t["rope_sin"], "sin")
    close(timestep_features(t["time_embedder_t"]), t["time_embedder_sinusoid"], "sinusoid")
    close(golden.model.time_embedder(t["time_embedder_t"]), t["time_embedder_out"], "time embedder")


@torch.no_grad()
def test_autoencoder(golden):
    t, c = golden("vae"), golden.model.vae.config
    moments = golden.model.vae.encode(t["image"]).latent_dist
    close(moments.parameters, t["encoder_moments"], "moments")
    close((moments.mean + moments.std * t["sample_noise"] - c.shift_factor) * c.scaling_factor, t["latent_sampled"], "sampled latent")
    close(golden.model.encode_pictures(t["image"]), t["latent_mean"], "latent")
    close(golden.model.decode_latents(t["decode_latent"]), t["decoded_image"], "decoded")


@torch.no_grad()
def test_vision_tower(golden):
    t, model = golden("vit"), golden.model
    seen = model.vit_model(t["packed_vit_tokens"], t["packed_vit_position_ids"], t["vit_token_seqlens"].tolist())
    close(seen, t["vit_output"], "vision tower")
    close(model.connector(seen), t["connector_output"], "connector")
    batch = pack([Sequence(golden.segments("img1_vae_resized", "vision") + golden.segments("img2_vae_resized", "vision"))], golden.geometry)
    close(batch.vision_patches, t["packed_vit_tokens"], "patches", 3 / 127)
    same(batch.vision_positions, t["packed_vit_position_ids"], "vision positions"); same(batch.vision_lengths, t["vit_token_seqlens"])
    batch.vision_patches = t["packed_vit_tokens"]
    close(model.embed(batch, torch.zeros(0))[batch.vision_at], t["final_embedding"], "what enters the transformer")


def test_small_attention_masks(golden):
    g = golden.geometry
    assert golden.json["attention_masks"]
    for case in golden.json["attention_masks"]:
        segments = []
        for n, mode in zip(case["split_lens"], case["attn_modes"]):
            if mode == "causal": segments.append(TextSegment((0,) * n)); continue
            if mode == "full": segments.append(PictureSegment(torch.zeros(3, g.vision_patch, g.vision_patch * (n - 2)), "vision")); continue
            latents = torch.zeros(g.latent_channels, g.latent_patch, g.latent_patch * (n - 2))
            segments.append(PictureSegment(None, "noised", latents=latents, noise=torch.zeros(n - 2, g.latent_patch ** 2 * g.latent_channels), timestep=0.5))
        mask = attention_mask(pack([Sequence(segments)], g))[0]
        assert ["".join(str(int(v)) for v in row) for row in mask] == case["allowed"], case["attn_modes"]


# Training


def training_sequences(golden, shift):
    "The plan of `train` as sequences: latents cut to each picture, noise and timesteps as given."
    t, g, down = golden("train"), golden.geometry, golden.config.latent_downsample
    vae, token, patch, out = 0, 0, 0, []
    for sample in golden.json["train"]["plan"]:
        segments, learn_start = [], False
        for item in sample:
            if item["kind"] == "text":
                ids, learn = item["token_ids"], bool(item["loss"])
                segments.append(TextSegment((golden.processor.bos, *ids, golden.processor.eos), (False, *[learn] * len(ids), learn)))
                learn_start = bool(item["special_token_loss"])
                continue
            _, H, W = item["shape"]
            if item["kind"] == "vit_image":
                n = (H // g.vision_patch) * (W // g.vision_patch)
                pixels = unpatchify(t["packed_vit_tokens"][patch:patch + n], H // g.vision_patch, W // g.vision_patch, g.vision_patch)
                segments.append(PictureSegment(pixels, "vision", learn_start=learn_start)); patch += n
            else:
                n = (H // g.latent_stride) * (W // g.latent_stride)
                noised, raw = bool(item["loss"]), t["packed_timesteps"][token]
                segments.append(PictureSegment(None, "noised" if noised else "clean", latents=t["padded_latent"][vae, :, :H // down, :W // down],
                    noise=t["noise"][token:token + n] if noised else None, learn_start=learn_start,
                    timestep=shift_timestep(raw.sigmoid().item(), shift) if noised else None))
                vae, token = vae + 1, token + n
            learn_start = False
        out.append(Sequence(segments))
    return out


def test_training_batch(golden):
    t, expected = golden("train"), golden.json["train"]
    batch = pack(training_sequences(golden, expected["timestep_shift"]), golden.geometry)
    assert len(batch) == expected["sequence_length"] and batch.lengths == expected["sample_lens"]
    same(batch.positions, t["packed_position_ids"], "positions")
    same(batch.ids[t["packed_text_indexes"]], t["packed_text_ids"], "ids")
    same(batch.latent_at, t["packed_vae_token_indexes"], "places of latents"); same(batch.latent_positions, t["packed_latent_position_ids"], "latent positions")
    same(batch.vision_at, t["packed_vit_token_indexes"], "places of patches"); same(batch.vision_positions, t["packed_vit_position_ids"], "vision positions")
    same(batch.target_at, t["ce_loss_indexes"], "places of targets"); same(batch.target_ids, t["packed_label_ids"], "targets")
    same(batch.latent_at[batch.flow], t["mse_loss_indexes"], "noised latents")
    mask = attention_mask(batch)
    for i, n in enumerate(batch.lengths): same(mask[i, :n, :n].int(), t[f"attention_allowed_sample{i}"].int(), f"mask {i}")


def test_training_forward_and_gradients(golden):
    t, expected, model = golden("train"), golden.json["train"], golden.model
    layers, seen = model.language_model.model.layers, []
    hooks = [layer.register_forward_hook(lambda module, args, out: seen.append(out.detach())) for layer in layers]
    batch = pack(training_sequences(golden, expected["timestep_shift"]), golden.geometry)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    try:
        out = model(batch)
        out.loss.backward()
        grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    finally:
        for hook in hooks: hook.remove()
        model.zero_grad(set_to_none=True)
    inverse = make_plan(batch, golden.config.text_config).inverse
    for i, x in enumerate(seen): close(x[inverse], t[f"layer{i}_output"], f"layer {i}")
    close(out.last_hidden_state, t["last_hidden_state"], "hidden states")
    close(out.ce, t["ce"], "cross-entropy"); close(out.mse, t["mse"], "velocity error")
    close(out.loss, expected["loss"], "loss")
    whole, norms = [n for n in t if n.startswith("grad.")], {n: x for n, x in expected["grad_norm_per_parameter"].items() if x is not None}
    for name in whole: close(grads[name[5:]], t[name], name)
    for name, norm in norms.items(): close(grads[name].norm() / max(norm, 1), norm / max(norm, 1), f"gradient of {name}")
    assert whole and len(seen) == len(layers) and norms.keys() == grads.keys(), f"gradients without a norm: {sorted(grads.keys() - norms.keys())[:3]}"
    assert frozen and not any(k.startswith("vae.") for k in grads)


@torch.no_grad()
def test_training_timestep_shift(golden):
    t = golden("train")
    shifts = [name[8:] for name in t if name.startswith("ce_shift")]
    assert shifts
    for shift in shifts:
        out = golden.model(pack(training_sequences(golden, float(shift)), golden.geometry))
        for name, got in (("ce", out.ce), ("mse", out.mse)): close(got, t[f"{name}_shift{shift}"], f"{name} at shift {shift}")


# Context and words


def test_context(golden):
    t, (seen, cache, _) = golden("context"), golden.context
    for (name, hidden, embedded, position, length), update in zip(seen, golden.json["context"]["updates"]):
        close(embedded, t[f"{name}.input_embeddings"], f"{name} embeddings"); close(hidden, t[f"{name}.hidden"], f"{name} hidden")
        assert [length] == update["kv_lens"] and [position] == update["ropes"], name
    checked = 0
    for name in t:
        if name.startswith("final."):
            _, kind, layer = name.split(".")
            tensor = (cache.keys if kind == "key_cache" else cache.values)[int(layer)][0, :, :len(t[name])]
            close(tensor.transpose(0, 1), t[name], name); checked += 1
    assert checked


@torch.no_grad()
def greedy(golden, steps, stop=None):
    "Ids and logits of greedy decoding after the context, over all ids of the table (as the reference decodes here)."
    _, context, position = golden.context
    cache = golden.cache(); cache.reserve(context.capacity)
    for mine, theirs in zip(cache.keys + cache.values, context.keys + context.values): mine[:, :, :theirs.shape[2]] = theirs
    cache.lengths.copy_(context.lengths)
    ids, logits = [int(golden("context")["generate.input.packed_start_tokens"][0])], []
    for _ in range(steps):
        last, (position,), _ = read(golden.model, cache, [0], [Sequence([TextSegment((ids[-1],))])], [position])
        logits.append(golden.model.language_model.lm_head(last)[0])
        ids.append(int(logits[-1].argmax()))
        if ids[-1] == stop: break
    return ids, torch.stack(logits)


def test_greedy_words(golden):
    t, expected = golden("context"), golden.json["context"]["generate"]
    ids, logits = greedy(golden, expected["max_length"])
    same(ids[1:], t["generate.argmax_all_steps"], "greedy ids")
    same(ids[:-1], t["generate.sequence"][:, 0], "returned sequence")
    close(logits[:len(t["generate.logits_first4"])], t["generate.logits_first4"], "logits")
    assert golden.processor.decode(ids[:-1]) == golden.json["context"]["gen_text_output"]


def test_greedy_words_stop(golden):
    expected = golden.json["context"]["generate_stop"]
    ids, _ = greedy(golden, expected["max_length"], stop=expected["end_token_id"])
    assert ids[:-1] == expected["sequence"] and ids[-1] == expected["end_token_id"]


def test_greedy_words_of_the_engine(golden):
    t = golden("context")
    best = t["generate.argmax_all_steps"].tolist()
    allowed = [i for i in best if i < golden.processor.vocabulary]
    best = best[:len(allowed)] if allowed == best[:len(allowed)] else [] # the engine samples ids of the tokenizer only
    if not best: pytest.skip("the reference's first word is no id of the tokenizer")
    segments = [s for name, *_ in golden.context[0] for s in
                ([TextSegment(t[f"{name}.input.packed_text_ids"].tolist())] if name.endswith("text") else
                 golden.segments("img1_vae_resized", "clean" if name.endswith("vae") else "vision"))]
    traces = Engine(golden.model, golden.processor, max_new_tokens=len(best)).run([Request(Sequence(segments), "direct", "", [golden.picture("img1")])])
    n = best.index(golden.processor.eos) + 1 if golden.processor.eos in best else len(best)
    same(traces[0].steps[-1].ids[1:1 + n], best[:n], "engine")


def test_sampling_probabilities(golden):
    _, logits = greedy(golden, 1)
    checked = 0
    for name, expected in golden("context").items():
        if not name.startswith("sampling."): continue
        temperature, top_p = (float(x[1:]) for x in name.removeprefix("sampling.").removesuffix(".probs").split("_"))
        p = nucleus((logits / temperature).softmax(-1), top_p)[0]
        if top_p < 1: p = p.sort(descending=True).values
        close(p, expected, name); assert (p > 0).sum() == (expected > 0).sum(), name
        checked += 1
    assert checked


# Drawing


@pytest.fixture(scope="module")
def painting(golden):
    expected = golden.json["imagegen"]
    return expected, golden("imagegen"), *golden.branches(expected["prompt"]), *expected["image_shape_hw"]


@torch.no_grad()
def test_first_velocities(golden, painting):
    expected, t, cache, positions, height, width = painting
    for slot, name in enumerate(("gen", "cfg_text", "cfg_img")):
        assert [int(cache.lengths[slot])] == expected["contexts"][name]["kv_lens"] and [positions[slot]] == expected["contexts"][name]["ropes"], name
    canvas = Canvas([0, 1, 2], positions, golden.shape(height, width), t["init_noise"])
    found = engine_module.Brush(golden.model, cache, [(canvas, branch) for branch in range(3)])([1.0] * 3)
    for v, name in zip(found, ("v_cond", "v_cfg_text", "v_cfg_img")): close(v, t[f"first_step.{name}"], name)
    noised = PictureSegment(None, "noised", latents=torch.zeros(canvas.shape), noise=canvas.x, timestep=1.0)
    batch = pack([Sequence([noised])], golden.geometry, positions=positions[:1])
    close(golden.model.embed(batch, canvas.x), t["first_step.query_embeddings"], "query embeddings")


def test_guidance_variants(golden, painting):
    expected, t, cache, positions, height, width = painting
    compared = Counter()
    for name, variant in expected["variants"].items():
        close(sampler(variant).times()[:-1], variant["timesteps"], f"{name} timesteps", 1e-6)
        steps, final, pixels = golden.drawn(cache, positions, t["init_noise"], variant, height, width)
        close(steps[0][2], t[f"{name}.v_t_first"], f"{name} first velocity")
        close(final, t[f"{name}.final_latent"], f"{name} final latent")
        more = {"v_t_all": lambda x, what: close(torch.stack([v for _, _, v in steps]), x, what),
                "x_t_all": lambda x, what: close(torch.stack([z for _, z, _ in steps]), x, what),
                "decoded_uint8": lambda x, what: same_picture(decoded_picture(pixels), x, what),
                "decoded_float": lambda x, what: close(pixels[None], x, what, 1e-3),
                "depth_float": lambda x, what: close(unit_pixels(pixels).mean(0), x, what, 3 / 255)}
        for field, compare in more.items(): # the large ones are stored for a few variants
            if f"{name}.{field}" in t: compare(t[f"{name}.{field}"], f"{name}.{field}"); compared[field] += 1
    all_seen(compared, "v_t_all", "x_t_all", "decoded_uint8", "decoded_float", "depth_float")


def test_single_drawings(golden):
    t, hyper, protocol = golden("cooper"), golden.json["cooper"]["hyper"], golden.processor.protocol
    height, width = t["edit.uint8"].shape[:2]
    hyper = {k: hyper[k] for k in ("num_timesteps", "timestep_shift", "cfg_text_scale", "cfg_img_scale", "cfg_interval", "cfg_renorm_type", "cfg_renorm_min")}
    edit = hyper | dict(cfg_interval=(0.4, 1.0), cfg_renorm_type="global")
    for name, prompt, h in (("depth_image", modality("depth", protocol).request, hyper), ("depth_map", modality("depth", protocol).request, hyper),
                            ("segmentation", modality("segmentation", protocol).request, hyper), ("edit", golden.json["imagegen"]["prompt"], edit)):
        _, final, pixels = golden.drawn(*golden.branches(prompt), t["single.init_noise"], h, height, width)
        close(final, t[f"{name}.final_latent"], name)
        if name == "depth_map": close(modality("depth", protocol).to_map(pixels).code, t["depth_map.float"], name, 3 / 255)
        elif name == "depth_image": assert_coloured(modality("depth", protocol).to_map(pixels), t[f"{name}.uint8"], name)
        else: same_picture(decoded_picture(pixels), t[f"{name}.uint8"], name)


def assert_coloured(depth, expected, what):
    "Coloured depth: pictures agree within 3 of 255, which is one of the 256 colours; and where our depth is clear of the edge of its colour, exactly."
    same_picture(depth.show(), expected, what)
    scaled = depth.code * 256
    clear = np.abs(scaled - np.rint(scaled)) > 256 * 1e-3
    off = np.abs(np.asarray(depth.show(), int) - np.asarray(expected, int)).max(-1)
    assert not off[clear].any(), f"{what}: {(off[clear] > 0).sum()} of {clear.sum()} pixels have another colour, away from its edge"


def test_the_tolerance_of_coloured_depth():
    "The colours of two neighbouring depths differ by less than the 3 of 255 that a picture may be off; those of two a step apart may not pass, nor may rounding."
    steps = np.abs(np.diff((spectral() * 255).astype(np.uint8).astype(int), axis=0)).max(1)
    assert steps.max() == 3
    code = (np.arange(256, dtype=np.float32).reshape(16, 16) + 0.5) / 256
    coloured = lambda x: np.array(DepthMap(x, 0, 1).show())
    assert_coloured(DepthMap(code + 1e-4, 0, 1), coloured(code), "a little off")
    edge = np.float32(0.5) + np.float32([[-1e-5, 1e-5]]) # the colours of 127 and 128
    assert_coloured(DepthMap(edge, 0, 1), coloured(edge[:, ::-1]), "on the edge of a colour")
    for wrong in (code + 1 / 256, code - 1 / 256, code + 2 / 256, 1 - code, code * 0.98):
        with pytest.raises(AssertionError): assert_coloured(DepthMap(np.clip(code, 0, 1), 0, 1), coloured(np.clip(wrong, 0, 1)), "another depth")
    rounded = (spectral() * 255)[np.minimum(np.rint(code * 256 + 0.25), 255).astype(int)].astype(np.uint8)
    with pytest.raises(AssertionError): assert_coloured(DepthMap(code, 0, 1), rounded, "rounded, not cut")


# The cooperative loop


class Scripted(Engine):
    "An engine whose words are given."
    def _write(self, writers):
        for r in writers:
            ids = self.processor.text(self.script.pop(0)).ids
            r.pending = [TextSegment(ids[1:-1])]; self._read([r])
            r.ids, r.logprobs = list(r.ids) + list(ids[1:]), list(r.logprobs) + [0.0] * (len(ids) - 1)
            self._close(r)


@pytest.mark.parametrize("mode, prefix", [("cooperate", ""), ("perceive", "image_reason.")])
def test_cooper_loop(golden, monkeypatch, mode, prefix):
    expected, t = golden.json["cooper"], golden("cooper")
    key = prefix.replace(".", "_")
    drawings = [e for e in expected[f"{key}events"] if e["event"] == "gen_image"]
    hyper, made = expected["hyper"], []

    engine = Scripted(golden.model, golden.processor, max_turns=hyper["max_inter_num"], max_new_tokens=4096, sampler=sampler(hyper))
    engine.script = list(expected[f"{key}script"])

    def canvas(model, slots, positions, shape, generator):
        made.append((engine.cache.lengths[slots].tolist(), list(positions), Canvas(slots, positions, shape, t[f"{prefix}gen{len(made)}.init_noise"])))
        return made[-1][2]
    monkeypatch.setattr(engine_module, "canvas", canvas)

    trace = engine.run([engine.request(golden.picture("img1"), expected["question"], mode)])[0]
    assert len(made) == len(drawings)
    for i, ((lengths, positions, final), event) in enumerate(zip(made, drawings)):
        assert [[[n], [p]] for n, p in zip(lengths, positions)] == [event["gen_context"], event["cfg_text"], event["cfg_img"]], f"contexts of drawing {i}"
        close(final.x, t[f"{prefix}gen{i}.final_latent"], f"final latent {i}")
    drawn = [s for s in trace.steps if s.kind == "draw"]
    assert [s.modality for s in drawn] == ["depth" if e["out_depth"] else "segmentation" for e in drawings]
    assert_depth = [s for s in drawn if s.modality == "depth"][0].map
    close(assert_depth.code, t[f"{prefix}gen0.depth_float"], "depth", 3 / 255)
    if not prefix:
        same_picture(golden.processor.fit(golden.picture("img1")), t["output_image0_uint8"], "input picture")
        assert_coloured(assert_depth, t["output_image1_uint8"], "coloured depth")
        same_picture(drawn[1].picture, t["output_image2_uint8"], "segmentation")
        assert trace.answer == parse_turn(expected["script"][-1]).boxed and trace.format_ok()
    assert trace.steps[-1].text == expected[f"{key}output_list"][-1]
    ids = [i for s in trace.sequence.segments if isinstance(s, TextSegment) for i in s.ids]
    texts = [golden.processor.text(x).ids for x in expected[f"{key}output_list"][:1]]
    assert tuple(ids[:len(texts[0])]) == texts[0], "system prompt"


# Scoring


def scored(golden):
    "The trace of `output_transfer` as a batch."
    t, expected, p = golden("output_transfer"), golden.json["output_transfer"], golden.processor
    names, segments, image, down = iter(("img1", "ot_img1")), [], 0, golden.config.latent_downsample
    for text in expected["texts"]:
        if isinstance(text, str): segments.append(p.text(text, learn=text.startswith("<think>"))); continue
        picture = golden.picture(next(names))
        H, W = p.picture(picture, ("clean",))[0].pixels.shape[1:]
        vision = PictureSegment(to_pixels(Resize(*p.vision)(picture)), "vision") # here, as in training, the reference resizes the original
        segments += [PictureSegment(None, "clean", latents=t["padded_latent"][image, :, :H // down, :W // down]), vision]; image += 1
    return pack([Sequence(segments)], golden.geometry)


@torch.no_grad()
def test_scores_of_generated_words(golden):
    t, expected, model, batch = golden("output_transfer"), golden.json["output_transfer"], golden.model, scored(golden)
    assert len(batch) == expected["sequence_length"]
    same(batch.positions, t["packed_position_ids"], "positions")
    same(batch.ids[t["packed_text_indexes"]], t["packed_text_ids"], "ids")
    mask = np.unpackbits(t["mask_repaired_packbits"].numpy(), axis=1)[:, :len(batch)]
    same(attention_mask(batch)[0].int(), mask.astype(np.int32), "mask")
    same(batch.target_at, t["shifted.ce_loss_indexes"], "places of targets"); same(batch.target_ids, t["shifted.labels"], "targets")
    logp, _ = model.score(batch)
    close(logp, t["logps_next_token_repaired_mask"], "log-probabilities")
    first = t["logits_repaired_mask_first4"]
    close(model.language_model.lm_head(model.hidden(batch)[t["ce_loss_indexes"][:len(first)]]), first, "logits")


def zipped_mask(lengths, modes, size):
    "The mask of the reference: lengths and modes are zipped, and what has no mode gets no rows."
    mask, at = torch.zeros(size, size, dtype=torch.bool), 0
    for n, mode in zip(lengths, modes):
        mask[at:at + n, :at] = True
        mask[at:at + n, at:at + n] = torch.ones(n, n).tril().bool() if mode == "causal" else True
        at += n
    return mask


@torch.no_grad()
def test_where_the_reference_is_wrong_both_numbers_are_known(golden, monkeypatch):
    "spec/cooper_reference.md, A1 (modes shifted) and A2 (a token scored where it is the input): its numbers come out if its mistakes are made."
    t, expected, model, batch = golden("output_transfer"), golden.json["output_transfer"], golden.model, scored(golden)
    places, ids, means = t["ce_loss_indexes"], t["ce_loss_text_ids"], expected["mean_logp"]
    same(batch.ids[places], ids, "the token that is scored is the input")
    score = lambda: log_probabilities(model.language_model.lm_head(model.hidden(batch)[places])).gather(-1, ids[:, None])[:, 0]
    ours, paired = model.score(batch)[0], score()
    wrong = zipped_mask(expected["split_lens"], expected["attn_modes"], len(batch))
    same(wrong.int(), np.unpackbits(t["mask_reference_packbits"].numpy(), axis=1)[:, :len(batch)].astype(np.int32), "the reference's mask")
    assert (~wrong.any(1)).nonzero()[0].item() < places[-1], "its last turn sees nothing"
    monkeypatch.setattr(transformer_module, "attention_mask", lambda batch: wrong[None])
    close(paired, t["logps_same_token_repaired_mask"], "A2 alone"); close(score(), t["logps_reference"], "A1 and A2")
    for got, name in ((score(), "reference"), (paired, "same_token_repaired_mask"), (ours, "next_token_repaired_mask")): close(got.mean(), means[name], name)
    assert means["reference"] < means["next_token_repaired_mask"] - 0.1, "these are not the same numbers"
