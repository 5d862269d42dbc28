"Checkpoints as people have them: whole, cut off, mixed up, called by another's name; what loading costs; what others read of what we write."
import json, re, shutil, subprocess, sys, textwrap, warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cooper
from cooper.core import NotBuilt
from cooper.model.checkpoint import (TABLES, check_quantization, choose_dtype, deal, export_released, heads, load_model, released_config, save_model,
                                     weight_files)
from cooper.model.modeling import CooperForConditionalGeneration
from cooper.model.processor import RELEASED_PROTOCOL
from cooper.model.sequence import PictureSegment, Sequence, TextSegment, pack

from house import ROOT

GOLDEN = ROOT/"tests/golden/bagel-tiny/checkpoint"
IDS = (303, 40, 41, 42, 304)


def loss(model):
    torch.manual_seed(0)
    picture = torch.linspace(-1, 1, 3 * 64 * 64).reshape(3, 64, 64)
    g = model.config.geometry
    noised = PictureSegment(picture, "noised", timestep=0.5, noise=torch.linspace(-1, 1, 16 * g.latent_patch ** 2 * g.latent_channels).reshape(16, -1))
    batch = pack([Sequence([PictureSegment(picture, "clean"), TextSegment(IDS, (False, *[True] * 4)), noised])], g)
    with torch.no_grad(): return model(batch).loss.item()


@pytest.fixture(scope="module")
def golden(): return load_model(GOLDEN)


@pytest.fixture
def folder(tmp_path): return Path(shutil.copytree(GOLDEN, tmp_path/"bagel-tiny"))


def weights(change, name="ema.safetensors"):
    def damage(folder):
        state = load_file(folder/name)
        new = change(state)
        save_file(new if isinstance(new, dict) else state, folder/name, metadata={"format": "pt"})
    return damage


def shards(folder, count=3, index=True, stem="ema"):
    "The weights of a folder in several files."
    state = load_file(folder/"ema.safetensors"); (folder/"ema.safetensors").unlink()
    names, places = sorted(state), {}
    for i in range(count):
        file = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file({n: state[n] for n in names[i::count]}, folder/file)
        places |= dict.fromkeys(names[i::count], file)
    if index: (folder/f"{stem}.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=places)))


# Whole ones


def test_coverage_of_a_whole_checkpoint(golden):
    origin = golden[0].origin
    assert origin.layout == "released" and origin.coverage.complete
    assert sum(row[0] for row in origin.coverage.rows.values()) == len(load_file(GOLDEN/"ema.safetensors")) + len(load_file(GOLDEN/"ae.safetensors"))
    assert all(row[1:] == [0, 0, 0, 0] for row in origin.coverage.rows.values()) and "drawing expert" in str(origin.coverage)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("stem", ["ema", "model"])
def test_shards(golden, folder, index, stem):
    shards(folder, index=index, stem=stem)
    assert loss(load_model(folder)[0]) == loss(golden[0])


def test_weights_alone_find_bagel_beside_them(golden, folder, tmp_path):
    amg = tmp_path/"COOPER-AMG"; amg.mkdir()
    weights(lambda s: s["llm2vae.weight"].mul_(2))(folder) # BAGEL's own are others
    shutil.copy(GOLDEN/"ema.safetensors", amg/"model.safetensors")
    model, _ = load_model(amg)
    assert loss(model) == loss(golden[0]) and Path(model.origin.base) == folder and model.origin.kind == "cooper"
    assert loss(load_model(amg, base=folder)[0]) == loss(golden[0])
    shutil.copytree(folder, tmp_path/"BAGEL-copy")
    with pytest.raises(ValueError, match="several folders beside it hold a configuration: BAGEL-copy, bagel-tiny; name the one as base="): load_model(amg)


def test_a_layer_of_siglip_too_many_is_rightly_left(golden, folder):
    def add(s):
        for n in [n for n in s if "encoder.layers.1." in n]: s[n.replace("layers.1.", "layers.2.")] = s[n].clone()
    weights(add)(folder)
    model, _ = load_model(folder)
    assert loss(model) == loss(golden[0]) and len(model.origin.coverage.harmless) == 16


def test_tables_may_be_absent(golden, folder):
    weights(lambda s: {n: t for n, t in s.items() if n not in TABLES.values()})(folder)
    assert loss(load_model(folder)[0]) == loss(golden[0])


# Broken and mixed-up ones


def cut(name, size=None): return lambda f: (f/name).write_bytes((f/name).read_bytes()[:size or -50])
def put(name, data): return lambda f: (f/name).write_bytes(data)
def edit(name, **values):
    def damage(f): (f/name).write_text(json.dumps({k: v for k, v in (json.loads((f/name).read_text()) | values).items() if v is not None}))
    return damage


def lose_shard(f): shards(f); (f/"ema-00002-of-00003.safetensors").unlink()
def lose_shard_without_index(f): shards(f, index=False); (f/"ema-00002-of-00003.safetensors").unlink()
def index_outside(f):
    shards(f); p = f/"ema.safetensors.index.json"
    p.write_text(p.read_text().replace("ema-00002-of-00003", "../ema-00002-of-00003"))
def twice(f):
    shards(f); a, b = f/"ema-00001-of-00003.safetensors", f/"ema-00002-of-00003.safetensors"
    one = load_file(a); save_file(load_file(b) | {next(iter(one)): one[next(iter(one))]}, b)
def swap(f): a, b = f/"ema.safetensors", f/"ae.safetensors"; x = a.read_bytes(); a.write_bytes(b.read_bytes()); b.write_bytes(x)
def table(t): return weights(lambda s: s | {"latent_pos_embed.pos_embed": t})
def index(f, where, name="ema.safetensors.index.json"): (f/name).write_text(json.dumps(dict(weight_map=where)))
def where(f): return json.loads((f/"ema.safetensors.index.json").read_text())["weight_map"]
def index_of_others(f): # what each shard holds is said of the next one
    shards(f); there = where(f); names = sorted(set(there.values()))
    index(f, {n: names[(names.index(file) + 1) % 3] for n, file in there.items()})
def index_lacks_one(f): shards(f); index(f, {n: file for n, file in where(f).items() if n != "llm2vae.bias"})
def index_of_nothing(f): shards(f); index(f, where(f) | {"llm2vae.scale": "ema-00002-of-00003.safetensors"})
def index_lacks_a_shard(f): shards(f); index(f, {n: file for n, file in where(f).items() if "00002" not in file})
def a_fourth_shard(f): shards(f); shutil.copy(f/"ema-00001-of-00003.safetensors", f/"ema-00004-of-00004.safetensors")
def a_fourth_of_three(f): shards(f, index=False); shutil.copy(f/"ema-00001-of-00003.safetensors", f/"ema-00004-of-00003.safetensors")
def twice_without_index(f): twice(f); (f/"ema.safetensors.index.json").unlink()
def folder_for(name): return lambda f: [(f/name).unlink(), (f/name).mkdir()]
def link_for(name): return lambda f: [(f/name).unlink(), (f/name).symlink_to(f"../blobs/{name}")]
def float8(s): return {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 and "pos_embed" not in n else t for n, t in s.items()}
def number(name, field, word): return lambda f: (f/name).write_text(re.sub(rf'("{field}": )[^,}}]*', rf"\g<1>{word}", (f/name).read_text()))
def exchanged_sizes(f): a, b = f/"llm_config.json", f/"vit_config.json"; x = a.read_bytes(); a.write_bytes(b.read_bytes()); b.write_bytes(x)
def permuted_words(f):
    words = json.loads((f/"tokenizer.json").read_text()); vocab = words["model"]["vocab"]
    words["model"]["vocab"] = dict(zip(vocab, reversed(vocab.values()))); (f/"tokenizer.json").write_text(json.dumps(words))
def half_the_merges(f): (f/"tokenizer.json").unlink(); lines = (f/"merges.txt").read_text().splitlines(); (f/"merges.txt").write_text("\n".join(lines[:len(lines) // 2]))
def two_programs(s): return s | {"encoder.mid_block.attentions.0.group_norm.weight": s["encoder.mid.attn_1.norm.weight"].clone()}
def empty_index(f): (f/"ema.safetensors").unlink(); (f/"ema.safetensors.index.json").write_text('{"weight_map": {}}')
def shard_of_none(f): (f/"ema.safetensors").rename(f/"ema-00001-of-00000.safetensors")
def without_tables(**values): return lambda f: [weights(lambda s: {n: t for n, t in s.items() if n not in TABLES.values()})(f), edit("config.json", **values)(f)]
def more_words(f):
    words = json.loads((f/"tokenizer.json").read_text())
    words["model"]["vocab"] |= {f"word{i}": 1000 + i for i in range(9)}
    (f/"tokenizer.json").write_text(json.dumps(words))
def no_special_words(f):
    edit("tokenizer.json", added_tokens=[])(f); edit("tokenizer_config.json", added_tokens_decoder=None, additional_special_tokens=None)(f)
def with_nan(s): s["llm2vae.bias"][0] = float("nan")
def number_in(name, value): return lambda s: s[name].view(-1).__setitem__(-1, value)
def zeros_in(words): return lambda s: [t.zero_() for n, t in s.items() if words in n and "pos_embed" not in n] and None


BROKEN = {
    "cut off": (cut("ema.safetensors"), "ema.safetensors: cannot be read as safetensors"), "cut in its head": (cut("ema.safetensors", 900), "cannot be read as safetensors"),
    "empty": (put("ema.safetensors", b""), "cannot be read as safetensors"),
    "a pointer of git": (put("ema.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 29\n"), "ema.safetensors: cannot be read"),
    "autoencoder cut off": (cut("ae.safetensors"), "ae.safetensors: cannot be read as safetensors"),
    "no autoencoder": (lambda f: (f/"ae.safetensors").unlink(), "ae.safetensors missing"), "no tokenizer": (lambda f: [(f/n).unlink() for n in ("tokenizer.json", "vocab.json")], "tokenizer.json missing"),
    "no sizes": (lambda f: (f/"llm_config.json").unlink(), "llm_config.json missing"), "no weights": (lambda f: (f/"ema.safetensors").unlink(), "ema.safetensors missing"),
    "understanding only": (weights(lambda s: {n: t for n, t in s.items() if "_moe_gen" not in n}), "(?s)the drawing expert is not there at all: a model that only understands.*drawing expert +0 +43"),
    "no tower": (weights(lambda s: {n: t for n, t in s.items() if "vit_model" not in n}), "(?s)the vision tower is not there at all.*vision tower +0 +37"),
    "one tensor less": (weights(lambda s: {n: t for n, t in s.items() if n != "time_embedder.mlp.2.bias"}), "(?s)1 tensors missing: time_embedder.mlp.2.bias.*latents in and out +7 +1"),
    "a stranger": (weights(lambda s: s | {"stranger.weight": torch.ones(2)}), "(?s)1 tensors unexpected: stranger.weight.*other +0 +0 +1"),
    "misshapen": (weights(lambda s: s | {"connector.fc1.weight": torch.ones(64, 7)}), r"(?s)connector.fc1.weight is \(64, 7\), expected \(64, 48\).*connector +3 +0 +0 +1"),
    "a wrapper's names": (weights(lambda s: {f"module.{n}": t for n, t in s.items()}), "all names begin with 'module.'"),
    "quantized": (weights(lambda s: s | {"llm2vae.weight": s["llm2vae.weight"].to(torch.int8)}), "'llm2vae.weight' is I8; expected BF16, F16 or F32"),
    "not a number": (weights(with_nan), "(?s)1 tensors damaged: 'llm2vae.bias' holds infinities or NaN.*latents in and out +7 +0 +0 +0 +1"),
    "not a number in a table": (weights(number_in("language_model.model.embed_tokens.weight", float("nan"))), "ema.safetensors: 1 tensors damaged: 'language_model.model.embed_tokens.weight' holds infinities"),
    "infinite": (weights(number_in("language_model.model.layers.1.mlp_moe_gen.down_proj.weight", float("-inf"))), "(?s)down_proj.weight' holds infinities.*drawing expert +42 +0 +0 +0 +1"),
    "not a number in the autoencoder": (weights(number_in("decoder.conv_in.weight", float("inf")), "ae.safetensors"), "ae.safetensors: 1 tensors damaged: 'decoder.conv_in.weight' holds infinities"),
    "a drawing expert of zeros": (weights(zeros_in("_moe_gen")), "(?s)nothing but zeros in the drawing expert.*drawing expert +9 +0 +0 +0 +34"),
    "a tower of zeros": (weights(zeros_in("vit_model")), "(?s)'vit_model.*is all zeros.*nothing but zeros in the vision tower"), "an autoencoder of zeros": (weights(zeros_in(""), "ae.safetensors"), "(?s)ae.safetensors: .*'decoder.* is all zeros.*nothing but zeros in the autoencoder"),
    "one norm of zeros": (weights(zeros_in("layers.1.input_layernorm.weight")), "1 tensors damaged: 'language_model.model.layers.1.input_layernorm.weight' is all zeros"),
    "zeros and no numbers": (lambda f: [weights(zeros_in("connector.fc1"))(f), weights(number_in("encoder.conv_in.bias", float("nan")), "ae.safetensors")(f)], "ae.safetensors and .*ema.safetensors: 2 tensors damaged: '.*conv_in.bias' holds infinities or NaN, 'connector.fc1.weight' is all zeros"),
    "learned tables": (weights(lambda s: s | {"latent_pos_embed.pos_embed": torch.randn(64, 64)}), "off the fixed sines"),
    "another's sizes": (edit("llm_config.json", hidden_size=96), "weights and configuration are of two different models|'latent_pos_embed.pos_embed' is"),
    "fewer layers": (edit("llm_config.json", num_hidden_layers=2), "tensors unexpected: language_model.model.layers.2"), "more layers": (edit("llm_config.json", num_hidden_layers=4), "tensors missing: language_model.model.layers.3"),
    "another vocabulary": (edit("llm_config.json", vocab_size=400), "two different models"), "another tower": (edit("vit_config.json", patch_size=16), "patch_embedding.weight is"),
    "another autoencoder": (edit("vae_config.json", ch=64), "ae.safetensors: .*wrong shape"), "no field": (edit("llm_config.json", hidden_size=None), "llm_config.json: 'hidden_size' missing"),
    "a word for a number": (edit("llm_config.json", hidden_size="many"), "llm_config.json"), "not JSON": (put("vit_config.json", b"{"), "vit_config.json:1: not JSON"),
    "files exchanged": (swap, "tensors missing"), "a shard lost": (lose_shard, "ema-00002-of-00003.safetensors: missing; .* places"),
    "a shard lost, no index": (lose_shard_without_index, "ema-00002-of-00003.safetensors missing, 1 of 3 shards"),
    "an index that leads out": (index_outside, "names '../ema-00002-of-00003.safetensors'; expected a file beside the index"), "a tensor twice": (twice, "stands in ema-00001-of-00003.safetensors, too"),
    "both layouts": (put("config.json", b'{"model_type": "cooper"}'), "which is our layout, but llm_config.json, vit_config.json, ema.safetensors of the released layout"),
    "no heads": (edit("llm_config.json", num_attention_heads=0), "llm_config.json: 'num_attention_heads' is 0; expected a whole number above 0"),
    "no layers": (edit("vit_config.json", num_hidden_layers=-1), "vit_config.json: 'num_hidden_layers' is -1"), "a rotary base of words": (edit("llm_config.json", rope_theta="x"), "'rope_theta' is 'x'; expected a number above 0"),
    "no rotary base": (edit("llm_config.json", rope_theta=0), "llm_config.json: 'rope_theta' is 0"), "scaled positions": (edit("llm_config.json", rope_scaling=dict(type="yarn", factor=4.0)), "'rope_scaling' is of type 'yarn'"),
    "an unknown activation": (edit("llm_config.json", hidden_act="loud"), "'hidden_act' is 'loud'"), "another activation": (edit("config.json", connector_act="loud"), "/config.json: 'connector_act' is 'loud'"),
    "a side of words": (without_tables(max_latent_size="big"), "'max_latent_size' is 'big'"), "no and yes": (edit("config.json", interpolate_pos="no"), "'interpolate_pos' is 'no'; expected true or false"),
    "a negative shift": (edit("config.json", timestep_shift=-1), "'timestep_shift' is -1"), "latents divided by zero": (edit("vae_config.json", scale_factor=0), "vae_config.json: 'scale_factor' is 0; expected a number above 0"),
    "nested too deep": (put("llm_config.json", b"[" * 100_000), "llm_config.json: nested too deep"), "a table that is a number": (table(torch.tensor(1.0)), r"'latent_pos_embed.pos_embed' is \(\); expected"),
    "an empty table": (table(torch.zeros(0, 64)), r"is \(0, 64\); expected"), "an empty index": (empty_index, "'weight_map' is no object of file names"), "a shard of none": (shard_of_none, "are shards of no one set"),
    "the words of another": (more_words, "tokenizer.json: 'added_tokens' gives '<.endoftext.>' the id 302, and with all files read it has 311"),
    "ids exchanged": (edit("tokenizer_config.json", added_tokens_decoder={str(i): dict(content=w, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True) for i, w in
                      ((302, "<|endoftext|>"), (303, "<|im_end|>"), (304, "<|im_start|>"), (305, "<|vision_start|>"), (306, "<|vision_end|>"))}), "'added_tokens(_decoder)?' gives '<.im_(start|end).>' the id 30[34], and with all files read it has 30[34]"),
    "no special words": (no_special_words, r"bagel-tiny: the tokenizer of \d+ tokens lacks"),
    "an index of exchanged shards": (index_of_others, "index.json: places 'connector.fc1.bias' in ema-00002-of-00003.safetensors, and it stands in ema-00001-of-00003.safetensors; .*; and 137 more; .*two savings"),
    "an index that lacks a tensor": (index_lacks_one, "index.json: does not name 'llm2vae.bias' of ema-0000"), "an index of a tensor that is nowhere": (index_of_nothing, "places 'llm2vae.scale' in ema-00002-of-00003.safetensors, where it is not"),
    "an index that lacks a shard": (index_lacks_a_shard, "names no tensor of ema-00002-of-00003.safetensors, beside it"), "a shard of another set": (a_fourth_shard, "names no tensor of ema-00004-of-00004.safetensors, beside it"),
    "a fourth shard of three": (a_fourth_of_three, "ema-00004-of-00003.safetensors beside 3 shards; expected one set"), "a tensor twice, no index": (twice_without_index, "stands in ema-00001-of-00003.safetensors, too"),
    "a folder for weights": (folder_for("ema.safetensors"), "ema.safetensors: is a folder; expected the file itself"), "a folder for sizes": (folder_for("llm_config.json"), "llm_config.json: is a folder"),
    "weights that are a link to nothing": (link_for("ema.safetensors"), "ema.safetensors: is a link to '../blobs/ema.safetensors', which is not there"), "extras that are a link to nothing": (link_for("vae_config.json"), "vae_config.json: is a link to"),
    "float8": (weights(float8), "'connector.fc1.weight' is F8_E4M3; expected BF16, F16 or F32"), "a long head": (lambda f: (f/"ema.safetensors").write_bytes((2**60).to_bytes(8, "little") + bytes(99)), "cannot be read as safetensors"),
    "NaN in JSON": (number("llm_config.json", "rms_norm_eps", "NaN"), "llm_config.json: holds NaN, which is no JSON"), "infinity in JSON": (number("vae_config.json", "shift_factor", "-Infinity"), "vae_config.json: holds -Infinity"),
    "a million layers": (edit("llm_config.json", num_hidden_layers=10**6), "llm_config.json: 'num_hidden_layers' is 1,000,000, and the weights are 139 tensors; they are of two"), "sizes exchanged": (exchanged_sizes, "latent_pos_embed.pos_embed' is|missing"),
    "words in another order": (permuted_words, "vocab.json: '.' is .* in tokenizer.json; they are of two tokenizers"), "half of the merges": (half_the_merges, "merges.txt: no merge makes 24 of 46 words"),
    "an autoencoder of two programs": (weights(two_programs, "ae.safetensors"), "ae.safetensors: 'encoder.mid_block.attentions.0.group_norm.weight' and another tensor are both"),
    "an autoencoder of wider latents": (edit("vae_config.json", z_channels=8), "the autoencoder is not of the sizes that vae_config states"), "no sizes of the autoencoder": (lambda f: (f/"vae_config.json").unlink(), "without a vae_config.json: FLUX's"),
    "levels of words": (edit("vae_config.json", ch_mult="1,2"), "vae_config.json: 'ch' is 32 and 'ch_mult' '1,2'"), "a word for a small number": (edit("vit_config.json", layer_norm_eps="a"), "vit_config.json: no sound values .*layer_norm_eps"),
    "a tokenizer without its words": (put("tokenizer.json", b'{"version": "1.0"}'), "tokenizer.json: cannot be read as a tokenizer"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoints_are_refused(folder, what):
    damage, words = BROKEN[what]
    damage(folder)
    with pytest.raises(ValueError, match=words) as e: cooper.load(folder, show=False)
    assert str(folder) in str(e.value), "the message names the folder or file"


def test_a_file_that_may_not_be_read(folder, monkeypatch):
    "The tests may run as one who may read everything, so the disk refuses here by hand."
    read = Path.read_text
    def refuse(self, *a, **k):
        if self.name == "vit_config.json": raise PermissionError(13, "Permission denied", str(self))
        return read(self, *a, **k)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ValueError, match=r"vit_config.json: cannot be read \(Permission denied\)"): load_model(folder)


BESIDE = { # what lies beside ema.safetensors -> what is said
    "an index of shards that are not there": (lambda f: index(f, {"a.b": "ema-00001-of-00002.safetensors"}), "ema.safetensors.index.json places 'a.b' in ema-00001-of-00002.safetensors, where it is not; .*; ema.safetensors is read"),
    "an index that lacks a tensor": (lambda f: index(f, {n: "ema.safetensors" for n in load_file(f/"ema.safetensors") if n != "llm2vae.bias"}), "does not name 'llm2vae.bias' of ema.safetensors; ema.safetensors is read"),
    "another's index under model": (lambda f: index(f, {"a.b": "ema.safetensors"}, "model.safetensors.index.json"), "model.safetensors.index.json places 'a.b' in ema.safetensors, where it is not"),
    "a damaged index": (put("ema.safetensors.index.json", b'{"weight_map": {'), "ema.safetensors.index.json:1: not JSON .*; ema.safetensors is read"), "an index of no text": (put("ema.safetensors.index.json", b"\xff\x00"), "ema.safetensors.index.json: not text"),
    "a damaged index under model": (put("model.safetensors.index.json", b""), "model.safetensors.index.json:1: not JSON .*; ema.safetensors is read"), "an index under model that is a list": (put("model.safetensors.index.json", b"[]"), "model.safetensors.index.json: holds a list"),
    "an index under model of nothing": (put("model.safetensors.index.json", b'{"weight_map": 3}'), "'weight_map' is no object of file names; .*; ema.safetensors is read"),
    "a damaged index, and shards": (lambda f: [shards(f, stem="ema"), put("model.safetensors.index.json", b"{")(f)], "model.safetensors.index.json:1: not JSON .*; ema is read"),
    "an index of model shards, gone": (lambda f: index(f, {"a.b": "model-00001-of-00001.safetensors"}, "model.safetensors.index.json"), "index.json names model-00001-of-00001.safetensors, not there; ema is read"),
    "shards": (lambda f: [shutil.copy(f/"ema.safetensors", f/"whole"), shards(f), (f/"whole").rename(f/"ema.safetensors")], "holds ema.safetensors, and ema-00001-of-00003.safetensors, .* beside it; ema.safetensors is read"),
}


def test_a_stand_in_of_zeros_is_loaded_with_a_warning(tmp_path):
    folder = shutil.copytree(GOLDEN, tmp_path/"zeros"); weights(zeros_in(""))(folder)
    with pytest.warns(UserWarning, match="ema.safetensors: nothing but zeros"): model, _ = load_model(folder)
    assert not model.language_model.lm_head.weight.any() and model.vae.decoder.conv_in.weight.any()


@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_beside_a_single_file_and_differs_is_said(golden, folder, what):
    put, words = BESIDE[what]
    put(folder)
    with pytest.warns(UserWarning, match=words) as said: assert loss(load_model(folder)[0]) == loss(golden[0])
    assert len(said) == 1 and str(folder) in str(said[0].message)


@pytest.mark.parametrize("with_ae", [False, True])
def test_an_index_as_bagel_has_it_is_no_second_set_of_weights(golden, folder, with_ae):
    "`model.safetensors.index.json` for `ema.safetensors`, for programs that insist on an index."
    names = {n: file for file in ["ema.safetensors"] + ["ae.safetensors"] * with_ae for n in load_file(folder/file)}
    index(folder, names, "model.safetensors.index.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss(load_model(folder)[0]) == loss(golden[0])
    (folder/"ema.safetensors").unlink()
    with pytest.raises(ValueError, match="ema.safetensors missing"): load_model(folder)


def test_a_damaged_index_beside_a_whole_file_of_ours_is_said(golden, tmp_path):
    folder = save_model(*golden, tmp_path/"own")
    put("model.safetensors.index.json", b"{")(folder)
    with pytest.warns(UserWarning, match="own: model.safetensors.index.json:1: not JSON .*; model.safetensors is read"): assert loss(load_model(folder)[0]) == loss(golden[0])
    shards_of = save_model(*golden, tmp_path/"cut", max_shard_size="1MB")
    put("model.safetensors.index.json", b"{")(shards_of)
    with pytest.raises(ValueError, match="cut/model.safetensors.index.json:1: not JSON"): load_model(shards_of)


def test_what_is_broken_in_bagel_and_not_needed_takes_nobody_with_it(golden, folder, tmp_path):
    "COOPER beside a BAGEL whose own weights are half there: configuration, words and autoencoder are what is taken from it."
    mine = tmp_path/"COOPER"; mine.mkdir(); shutil.copy(folder/"ema.safetensors", mine)
    for damage in (cut("ema.safetensors", 900), link_for("ema.safetensors"), put("model.safetensors.index.json", b"{")):
        damage(folder)
        model, _ = load_model(mine)
        assert loss(model) == loss(golden[0]) and model.origin.kind == "cooper" and Path(model.origin.base) == folder


def protocol(change):
    def damage(f):
        stored = json.loads((f/"processor_config.json").read_text())
        change(stored["protocol"]); (f/"processor_config.json").write_text(json.dumps(stored))
    return damage


OWN = {
    "clean": (edit("processor_config.json", clean=[0, 0, 0]), r"'clean' is \[0, 0, 0\]; expected longest side, shortest side, and a multiple of 16"),
    "order": (edit("processor_config.json", clean=[32, 64, 16]), r"'clean' is \[32, 64, 16\]"), "stride": (edit("processor_config.json", vision=[112, 56, 10]), "a multiple of 14 as stride"),
    "larger": (edit("processor_config.json", clean=[4096, 2048, 16]), "'clean' allows sides of 4096 pixels, 256 cells; the position table of the model has 8"),
    "another's ids": (edit("config.json", start_of_image=10), "'start_of_image' is 10 in the configuration and 305 in the tokenizer"),
    "not a number": (weights(number_in("language_model.model.embed_tokens.weight", float("nan")), "model.safetensors"), "model.safetensors: 1 tensors damaged: 'language_model.model.embed_tokens.weight' holds infinities"),
    "zeros": (weights(zeros_in("vit_model"), "model.safetensors"), "(?s)is all zeros.*nothing but zeros in the vision tower"), "an autoencoder of zeros": (weights(zeros_in("vae."), "model.safetensors"), "nothing but zeros in the autoencoder"),
    "words that are gone": (edit("processor_config.json", vocabulary=309), "the tokenizer has 307 words, and 'vocabulary' in processor_config.json is 309"),
    "generation": (put("generation_config.json", b"{"), "generation_config.json:1: not JSON"), "generation list": (put("generation_config.json", b"[]"), "generation_config.json: holds a list"),
    "generation of another": (edit("generation_config.json", eos_token_id=[304, 151645]), r"generation_config.json: 'eos_token_id' is \[304, 151645\]; expected ids of the tokenizer, which has 307 words"),
    "scale": (lambda f: edit("config.json", vae_config=json.loads((f/"config.json").read_text())["vae_config"] | dict(scaling_factor=0))(f), "'scale_factor' is 0"),
    "sampler": (protocol(lambda p: p.update(sampler=None)), "protocol: 'sampler' is None; expected an object"), "more": (protocol(lambda p: p["sampler"].update(speed=1)), "'sampler' has speed; expected num_timesteps"),
    **{f"sampler {k} {v}": (protocol(lambda p, k=k, v=v: p["sampler"].update({k: v})), rf"processor_config.json: protocol: 'sampler.{k}(\[.\])?' is .*; expected {words}") for k, v, words in (
        ("num_timesteps", 1, "a whole number, 2 or more"), ("num_timesteps", 7.5, "a whole number"), ("shift", 0, "a number, above 0"), ("cfg_text", 0.5, "a number, 1 or more"),
        ("cfg_img", "two", "a number, 1 or more"), ("interval", [0.5], "two timesteps"), ("interval", [0.9, 0.1], "a number, 0.9 or more, at most 1"), ("renorm", "local", "one of global, channel"), ("renorm_min", 2, "a number, 0 or more, at most 1"))},
    "samplers": (protocol(lambda p: p.update(samplers=dict(ask=p["sampler"] | dict(cfg_text=0)))), "protocol: 'samplers.ask.cfg_text' is 0; expected a number, 1 or more"), "a list of samplers": (protocol(lambda p: p.update(samplers=[])), "'samplers' is .*; expected an object"),
    "a mode": (protocol(lambda p: p["prefix"].update(percieve="<answer>")), r"'prefix' has \['percieve'\]; expected some of direct, reason"), "views": (protocol(lambda p: p["views"].update(reason=5)), "'views.reason' is 5; expected some of"),
    "views of a map": (protocol(lambda p: p.update(modalities=[["depth", dict(views=["latents"])]])), r"'modalities.depth.views' is \['latents'\]; expected some of"), "NaN": (protocol(lambda p: p["sampler"].update(shift=float("nan"))), "processor_config.json: holds NaN, which is no JSON"),
    "system": (protocol(lambda p: p["system"].update(direct=5)), "'system.direct' is 5; expected words"), "systems": (protocol(lambda p: p.update(system=list(p["system"]))), "'system' is .*; expected an object"),
    "turns": (protocol(lambda p: p.update(max_turns="three")), "'max_turns' is 'three'; expected a whole number above 0"), "reflection": (protocol(lambda p: p.update(reflection=7)), "'reflection' is 7; expected words"),
    "depth": (protocol(lambda p: p.update(modalities=[["depth", dict(near=5.0, far=1.0)]])), "has near 5.0 and far 1.0; expected two numbers, the smaller one first"),
    "palette": (protocol(lambda p: p.update(modalities=[["segmentation", dict(palette=[["a", [1, 2]]])]])), r"gives 'a' the colour \[1, 2\]"),
    **{f"codec {codec} from {near}": (protocol(lambda p, o=dict(near=near, far=9.0, codec=codec): p.update(modalities=[["depth", o]])), f"processor_config.json: protocol: 'modalities.depth': depth codec {re.escape(repr(codec))}.*{words}")
       for codec, near, words in (("lgo", 1.0, "expected one of linear, log, affine"), ("log", 0.0, "near is 0.0; expected above 0 m"), (["log"], 1.0, "expected one of linear, log, affine"))},
}


@pytest.mark.parametrize("what", OWN)
def test_broken_folders_of_ours_are_refused(golden, tmp_path, what):
    folder = save_model(*golden, tmp_path/"own")
    damage, words = OWN[what]
    damage(folder)
    with pytest.raises(ValueError, match=words) as e: cooper.load(folder, show=False)
    assert str(folder) in str(e.value), "the message names the folder or file"


def test_what_is_refused_is_refused_before_it_is_read(folder, monkeypatch):
    "A wrong file of 29 GB is refused by its head."
    weights(lambda s: s | {"stranger": torch.ones(2)})(folder)
    monkeypatch.setattr("cooper.model.checkpoint.fill", lambda *a: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="stranger"): load_model(folder)


# Which one is it?


def test_bagel_that_is_asked_for_depth(golden, folder, tmp_path):
    room, said = Image.new("RGB", (64, 64)), "this is BAGEL, which was never trained to draw depth"
    fast = dict(sampler=dict(num_timesteps=2, cfg_text=1.0))
    with pytest.warns(UserWarning, match=said): cooper.load(folder, show=False).perceive(room, "depth", **fast)
    fake = tmp_path/"COOPER"; shutil.copytree(folder, fake); (fake/"llm_config.json").unlink()
    with pytest.warns(UserWarning, match="what is called COOPER here is BAGEL"): co = cooper.load(fake, show=False)
    with pytest.warns(UserWarning, match=said): co.perceive(room, "depth", **fast)
    weights(lambda s: s["llm2vae.weight"].mul_(2))(fake)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        co = cooper.load(fake, show=False); co.perceive(room, "depth", **fast)
    assert co.model.origin.kind == "cooper"


def test_a_model_that_never_learned_to_draw_is_noticed(folder):
    weights(lambda s: s["llm2vae.weight"].zero_())(folder)
    with pytest.warns(UserWarning, match="'llm2vae.weight' is all zeros"): model, processor = load_model(folder)
    with pytest.warns(UserWarning, match="'llm2vae.weight' is all zeros, as before any training: this checkpoint cannot draw"): load_model(save_model(model, processor, folder/"own"))


def test_a_drawing_expert_that_is_a_copy_is_noticed(folder):
    weights(lambda s: s | {n: s[n.replace("_moe_gen", "")].clone() for n in s if "_moe_gen" in n})(folder)
    with pytest.warns(UserWarning, match="the drawing expert is the understanding expert, bit for bit, as before any training"): load_model(folder)


def test_two_sets_of_weights_are_noticed(golden, folder):
    "COOPER's GRPO loads ema and writes model: beside each other, one of them is meant."
    shutil.copy(folder/"ema.safetensors", folder/"model.safetensors"); weights(lambda s: s["llm2vae.weight"].mul_(3), "model.safetensors")(folder)
    with pytest.warns(UserWarning, match="holds ema and model weights; ema is read"): assert loss(load_model(folder)[0]) == loss(golden[0])


# Types, devices, memory


def test_dtypes(golden):
    found, cpu = heads(weight_files(GOLDEN, "ema")), torch.device("cpu")
    co = cooper.load(GOLDEN, "bfloat16", "cpu", show=False)
    assert co.model.dtype == torch.bfloat16 and co.model.vae.dtype == torch.float32
    assert abs(loss(co.model) - loss(golden[0])) < 0.1
    assert cooper.load(GOLDEN, device="cpu", show=False).model.dtype == torch.float32 == choose_dtype(None, cpu, found)
    with pytest.raises(ValueError, match="dtype 'int8' is unknown; expected one of float32, bfloat16, float16"): cooper.load(GOLDEN, "int8")
    with pytest.raises(ValueError, match="has no revisions"): cooper.load(GOLDEN, revision="main")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("package, gpu, device, words", [
    (False, False, "cpu", "needs the package bitsandbytes, which is not installed; and a CUDA GPU, and torch sees none here"), (True, False, "cpu", "needs a CUDA GPU, and torch sees none here"),
    (False, True, "cuda", "needs the package bitsandbytes, which is not installed"), (True, True, "cpu", "needs a CUDA GPU as its device, and it is 'cpu'"), (True, True, "cuda", None)])
def test_quantization_says_what_it_needs_and_lacks(monkeypatch, kind, package, gpu, device, words):
    monkeypatch.setattr("cooper.model.checkpoint.importlib.util.find_spec", lambda name: object() if package and name == "bitsandbytes" else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if words is None: return check_quantization(kind, torch.device(device))
    with pytest.raises(RuntimeError, match=f"^quantization '{kind}' {words}$"): check_quantization(kind, torch.device(device))


def test_quantization_says_what_it_needs():
    with pytest.raises(ValueError, match="quantization 'int4' is unknown; expected None or one of int8, nf4"): cooper.load(GOLDEN, quantization="int4")
    if torch.cuda.is_available(): pytest.skip("there is a GPU")
    for kind in ("int8", "nf4"):
        with pytest.raises(RuntimeError, match=f"quantization '{kind}' needs .*a CUDA GPU, and torch sees none here"): cooper.load(GOLDEN, quantization=kind)
    with pytest.raises(RuntimeError, match="device_map 'auto' needs CUDA GPUs"): cooper.load(GOLDEN, device_map="auto", show=False)


def test_a_quantized_model_is_not_written(golden, tmp_path):
    golden[0].hf_quantizer = object()
    try:
        with pytest.raises(NotBuilt, match="save: a quantized model"): save_model(*golden, tmp_path/"a")
        with pytest.raises(NotBuilt, match="export: a quantized model"): export_released(*golden, tmp_path/"a")
    finally: del golden[0].hf_quantizer


def test_layers_over_devices_change_no_number(golden):
    room, fast = Image.effect_noise((64, 64), 60).convert("RGB"), dict(sampler=dict(num_timesteps=3), max_new_tokens=8)
    spread = cooper.load(GOLDEN, "float32", device_map=["cpu", "cpu"], show=False)
    one = cooper.load(GOLDEN, "float32", "cpu", show=False)
    assert spread.model.devices == [torch.device("cpu")] * 3 and loss(spread.model) == loss(one.model)
    a, b = (x.ask(room, "What is in front?", "perceive", **fast) for x in (spread, one))
    assert [s.ids for s in a.steps if s.kind == "write"] == [s.ids for s in b.steps if s.kind == "write"]


def test_everything_is_brought_to_where_its_layer_is(golden):
    "The later layers lie on the meta device: their inputs are there, too, whatever was asked of the first."
    from cooper.model.checkpoint import spread
    model, _ = load_model(GOLDEN)
    layers, seen = model.language_model.model.layers, []
    for layer in layers[1:]: layer.to("meta")
    spread(model, [torch.device(d) for d in ("cpu", "meta", "meta")])
    def devices(x): return {x.device.type} if isinstance(x, torch.Tensor) else set().union(*map(devices, x)) if isinstance(x, (list, tuple)) else \
        set().union(*map(devices, vars(x).values())) if hasattr(x, "__dict__") else set()
    for layer in layers: layer.register_forward_pre_hook(lambda layer, args: seen.append((devices(args[0]), devices(args[1]))))
    with pytest.raises(NotImplementedError, match="meta tensor"): loss(model) # what comes out of the last layer goes home, and on meta there is nothing
    assert seen == [({"cpu"}, {"cpu"}), ({"meta"}, {"meta"}), ({"meta"}, {"meta"})]


GIB = 2**30


@pytest.mark.parametrize("free, layers", [([80, 80], [12, 16]), ([40, 40], [12, 16]), ([24, 24, 24], [6, 11, 11]), ([80, 20], [22, 6]), ([4, 40], [0, 28]), ([80], [28])])
def test_auto_fills_gpus_alike(monkeypatch, free, layers):
    "28 layers of 0.9 GiB, and 4 GiB that stay with the first: GPUs that are only claimed."
    from cooper.model import checkpoint
    from cooper.model.checkpoint import Head, check_room, place, shares
    found = {f"language_model.model.layers.{i}.mlp.up_proj.weight": Head(Path("x"), "x", (round(0.45 * GIB),), "BF16") for i in range(28)}
    found |= {"language_model.lm_head.weight": Head(Path("x"), "x", (GIB,), "BF16"), "vae.decoder.conv_in.weight": Head(Path("x"), "x", (GIB // 2,), "F32")}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free)); monkeypatch.setattr(checkpoint, "_free", lambda d: free[d.index] * GIB)
    devices = deal(28, "auto", found)
    assert [devices.count(torch.device(f"cuda:{i}")) for i in range(len(free))] == layers and [d.index for d in devices] == sorted(d.index for d in devices)


def test_what_does_not_fit_is_said_before_it_is_read(monkeypatch, folder):
    from cooper.model import checkpoint
    from cooper.model.checkpoint import place, shares
    found, two = heads(weight_files(GOLDEN, "ema")), ["cuda:0", "cuda:0", "cuda:1"]
    share = shares(found, place([torch.device(d) for d in two]), torch.bfloat16)
    last = sum(h.shape.numel() if hasattr(h.shape, "numel") else torch.Size(h.shape).numel() for n, h in found.items() if ".layers.2." in n and n.startswith("language_model"))
    assert share[torch.device("cuda:1")] == 2 * last and share.total() == 2 * sum(torch.Size(h.shape).numel() for n, h in found.items() if n not in TABLES.values())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2); monkeypatch.setattr(checkpoint, "fill", lambda *a: pytest.fail("weights were read"))
    monkeypatch.setattr(checkpoint, "_free", lambda d: None if d.type == "cpu" else 2**40 if d.index == 0 else 2 * last - 1)
    with pytest.raises(RuntimeError, match=r"^cuda:1 has 0.0 GiB free for 0.0 GiB of weights; expected more or other GPUs in device_map"): load_model(folder, torch.bfloat16, device_map=two)
    with pytest.raises(ValueError, match="device_map has 'cuda:2', and torch sees 2 CUDA GPUs here"): load_model(folder, device_map=["cuda:0", "cuda:2"])
    for wrong, words in ((["meta"], "has 'meta', where tensors have no numbers"), (["cpu", "gpu:1"], "has 'gpu:1'; expected devices such as"), ({0: "cpu", "1": "cpu", 2: "cpu", "vae": "cpu"}, "has vae; expected the numbers of 3 layers"),
                         ({}, "names no device for layers|is {}"), ("balanced", "is 'balanced'; expected 'auto'")):
        with pytest.raises(ValueError, match=f"device_map {words}"): load_model(folder, device_map=wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_layers_over_a_cpu_and_a_gpu(golden):
    room, fast = Image.effect_noise((64, 64), 60).convert("RGB"), dict(sampler=dict(num_timesteps=3), max_new_tokens=8)
    for devices in (["cpu", "cuda:0"], ["cuda:0", "cpu"], "auto"):
        spread = cooper.load(GOLDEN, "float32", device_map=devices, show=False)
        a, b = (x.ask(room, "What is in front?", "perceive", **fast) for x in (spread, cooper.load(GOLDEN, "float32", "cpu", show=False)))
        assert [s.ids for s in a.steps if s.kind == "write"] == [s.ids for s in b.steps if s.kind == "write"]


MEMORY = """
    import sys, cooper, cooper.model.engine
    def anonymous(): return int(next(l for l in open("/proc/self/smaps_rollup") if l.startswith("Anonymous:")).split()[1]) * 1024
    import threading, time
    before, peak, go = anonymous(), [0], [True]
    def watch():
        while go[0]: peak[0] = max(peak[0], anonymous() - before); time.sleep(0.005)
    thread = threading.Thread(target=watch, daemon=True); thread.start()
    co = cooper.load(sys.argv[1], "bfloat16", "cpu", show=False)
    go[0] = False; thread.join()
    print(max(peak[0], anonymous() - before))
"""


def synthetic(folder, layers, width=512):
    "A released checkpoint of some size. Its weights are one block of numbers, again and again."
    for n in ("tokenizer.json", "tokenizer_config.json", "vit_config.json", "config.json", "vae_config.json", "ae.safetensors"): shutil.copy(GOLDEN/n, folder)
    llm = json.loads((GOLDEN/"llm_config.json").read_text())
    (folder/"llm_config.json").write_text(json.dumps(llm | dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)))
    with torch.device("meta"): model = CooperForConditionalGeneration(released_config(folder, {}, 305, 306))
    head, at = {}, 0
    for name, t in model.state_dict().items():
        if name.startswith("vae."): continue
        head[name] = dict(dtype="BF16", shape=list(t.shape), data_offsets=[at, at := at + 2 * t.numel()])
    text = json.dumps(head).encode(); text += b" " * (-len(text) % 8)
    block = (0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0))).bfloat16().view(torch.uint8).numpy().tobytes()
    with open(folder/"ema.safetensors", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, at, len(block)): f.write(block[:at - begin])
    return 8 + len(text) + at


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc")
def test_memory(tmp_path):
    size = synthetic(tmp_path, layers=24)
    assert size > 2**28
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(MEMORY), tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 0.2 * size, f"{int(done.stdout) / size:.2f} times the file; the law is 1.15, and views of the file need next to nothing"


# What we write


AUTO = """
    import json, sys, torch
    from transformers import AutoConfig, AutoModel, AutoProcessor, GenerationConfig
    folder = sys.argv[1]
    config, processor = (c.from_pretrained(folder, trust_remote_code=True) for c in (AutoConfig, AutoProcessor))
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert "cooper" in type(model).__module__ and type(config).__name__ == "CooperConfig" and type(processor).__name__ == "CooperProcessor"
    from cooper.model.sequence import Sequence, TextSegment, pack
    batch = pack([Sequence([TextSegment((303, 40, 41, 42, 304), (False, True, True, True, True))])], config.geometry)
    with torch.no_grad(): print(json.dumps([model.eval()(batch).loss.item(), processor.clean, GenerationConfig.from_pretrained(folder).eos_token_id]))
"""


def test_a_saved_folder_opens_in_a_fresh_process(golden, tmp_path):
    model, processor = golden
    card = dict(base_model="ByteDance-Seed/BAGEL-7B-MoT", datasets=["Starrrrrry/COOPER_Train_Set"], license="apache-2.0")
    folder = save_model(model, processor, tmp_path/"own", max_shard_size="1MB", card=card)
    index = json.loads((folder/"model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and set(index["weight_map"]) == set(model.state_dict())
    head = (folder/"README.md").read_text().split("---")[1]
    for words in ("base_model: ByteDance-Seed/BAGEL-7B-MoT", "- Starrrrrry/COOPER_Train_Set", "license: apache-2.0"): assert words in head
    again, words = load_model(folder)
    assert loss(again) == loss(model) and again.generation_config.eos_token_id == processor.eos and words.protocol == processor.protocol
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(AUTO), folder], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    batch = pack([Sequence([TextSegment(IDS, (False, *[True] * 4))])], model.config.geometry)
    with torch.no_grad(): assert json.loads(done.stdout.splitlines()[-1]) == [pytest.approx(model(batch).loss.item(), abs=1e-6), list(processor.clean), processor.eos]


def test_a_shard_of_ours_that_is_lost_is_named(golden, tmp_path):
    folder = save_model(*golden, tmp_path/"own", max_shard_size="1MB")
    (folder/"model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00004.safetensors: missing; model.safetensors.index.json places"): load_model(folder)
    with pytest.raises(ValueError, match="card has owner; expected some of base_model"): save_model(*golden, tmp_path/"b", card=dict(owner="x"))
    assert not (tmp_path/"b").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_gives_back_names_types_and_bytes(tmp_path, dtype):
    export_released(*load_model(GOLDEN, dtype), tmp_path/"back")
    for name in ("ema.safetensors", "ae.safetensors"):
        a, b = (load_file(f/name) for f in (GOLDEN, tmp_path/"back"))
        assert a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape for n in a)
        assert all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a), "to the last bit"
    assert load_model(tmp_path/"back")[0].origin.layout == "released"


@pytest.mark.parametrize("file, change, message", [
    ("config.json", lambda c: c.pop("position_base"), "'position_base'"), ("config.json", lambda c: c.update(position_base=0), "'position_base' is 0; expected a number above 0"),
    ("config.json", lambda c: c.update(position_base="10"), "'position_base' is '10'"),
    ("tokenizer.json", lambda c: c.update(added_tokens=[]), "the tokenizer has 499 words, and 'vocabulary' in processor_config.json is 508")])
def test_what_would_load_and_answer_nonsense_is_refused(tmp_path, file, change, message):
    folder = Path(shutil.copytree(ROOT/"data/tiny-cooper", tmp_path/"tiny"))
    values = json.loads((folder/file).read_text()); change(values); (folder/file).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message): load_model(folder)


def in_words(path, value): # a field of tokenizer.json
    def change(c):
        *way, last = path.split(".")
        for k in way: c = c[k]
        c[last] = value
    return change
def added(what): return lambda c: [what(t) for t in c["added_tokens"]]
def without(*words): return lambda c: c.update(added_tokens=[t for t in c["added_tokens"] if t["content"] not in words])
BYTES = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)


@pytest.mark.parametrize("change, message", [
    (in_words("pre_tokenizer", None), "'pre_tokenizer' is null: .* comes back as .The"), (in_words("pre_tokenizer", dict(type="Whitespace")), "'pre_tokenizer' is .*Whitespace.*comes back as"),
    (in_words("pre_tokenizer", BYTES), "'pre_tokenizer' cuts .*, as Qwen2 does"), (in_words("pre_tokenizer", BYTES | dict(use_regex=True)), "'pre_tokenizer' cuts .*, as Qwen2 does"),
    (in_words("pre_tokenizer", BYTES | dict(add_prefix_space=True, use_regex=True)), "'pre_tokenizer' is .*comes back as . The"), (in_words("decoder", None), "'decoder' is null"), (in_words("decoder", dict(type="Fuse")), "'decoder' is .*Fuse"),
    (in_words("normalizer", dict(type="Lowercase")), "'normalizer' is .*Lowercase"), (in_words("normalizer", dict(type="Prepend", prepend="_")), "'normalizer' is .*Prepend"), (in_words("model.dropout", 0.1), "'model.dropout' is 0.1"),
    (in_words("model.end_of_word_suffix", "</w>"), "'model': .* comes back as"), (in_words("model.continuing_subword_prefix", "##"), "cannot be read as a tokenizer"), (in_words("model.type", "WordLevel"), "cannot be read as a tokenizer"),
    (added(lambda t: t.update(lstrip=True)), "'added_tokens' has '<|im_start|>', which eats spaces"), (added(lambda t: t.update(single_word=True)), "'added_tokens' has '<|im_start|>'"),
    (without("</think>"), "'added_tokens' has one of <think> and </think>"), (without("<depth-estimation>", "</depth-estimation>"), "tokenizer.json: 'added_tokens' gives '<segmentation>' the id 505, and with all files read it has 503")])
def test_a_tokenizer_that_cuts_words_wrongly_is_refused(tmp_path, change, message):
    folder = Path(shutil.copytree(ROOT/"data/tiny-cooper", tmp_path/"tiny"))
    values = json.loads((folder/"tokenizer.json").read_text()); change(values); (folder/"tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as e: load_model(folder)
    assert str(folder) in str(e.value)


def test_sound_tokenizers_are_taken(tmp_path):
    "Ours, the golden one by each way of reading it, and one made as Qwen2's are, whose words end with padding of the table."
    from transformers import AutoTokenizer, Qwen2TokenizerFast
    from cooper.model.processor import TOKENS, check_tokenizer, train_tokenizer
    for read, folder in ((AutoTokenizer, ROOT/"data/tiny-cooper"), (AutoTokenizer, GOLDEN), (Qwen2TokenizerFast, GOLDEN)): check_tokenizer(read.from_pretrained(folder))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"): shutil.copy(GOLDEN/name, tmp_path)
    check_tokenizer(Qwen2TokenizerFast.from_pretrained(tmp_path))
    model = json.loads(train_tokenizer(["the red cube is 12 m away from the ball\n"] * 9, 330).backend_tokenizer.to_str())["model"]
    vocab = {w: i for i, w in enumerate(w for w in model["vocab"] if not w.startswith("<|"))}
    qwen = Qwen2TokenizerFast(vocab=vocab, merges=[tuple(m) for m in model["merges"]])
    qwen.add_special_tokens(dict(additional_special_tokens=[*TOKENS.values(), "<|box_start|>", "<tool_call>"]))
    check_tokenizer(qwen); qwen.save_pretrained(tmp_path/"qwen"); check_tokenizer(AutoTokenizer.from_pretrained(tmp_path/"qwen"))


def test_export_of_our_own_layout(golden, tmp_path):
    save_model(*golden, tmp_path/"own")
    export_released(*load_model(tmp_path/"own"), tmp_path/"back", "model.safetensors")
    state = load_file(tmp_path/"back/model.safetensors")
    assert Counter(t.dtype for t in state.values()) == {torch.bfloat16: len(state) - 2, torch.float32: 2}
    assert loss(load_model(tmp_path/"back")[0]) == loss(golden[0]), "its values were bfloat16 from the beginning"


# As released


def test_the_preset_as_released(golden, monkeypatch):
    from cooper.model.engine import Engine
    co, plain = (cooper.load(GOLDEN, "float32", "cpu", show=False, as_released=x) for x in (True, False))
    assert plain.processor.protocol == golden[1].protocol and co.processor.protocol["system"] == RELEASED_PROTOCOL["system"]
    assert all(m["views"] == ["vision"] for m in co.processor.protocol["modalities"].values())
    used, init = [], Engine.__init__
    def spy(self, *a, **k): init(self, *a, **k); used.append(self.sampler)
    monkeypatch.setattr(Engine, "__init__", spy); monkeypatch.setattr(Engine, "run", lambda self, r: [None]); monkeypatch.setattr(Engine, "perceive", lambda self, *a: [None])
    room = Image.new("RGB", (64, 64))
    co.ask(room, "?"); co.perceive(room, "depth"); co.engine(); co.ask(room, "?", sampler=dict(num_timesteps=4)) # what is asked for goes before
    seen = [(s.num_timesteps, s.cfg_text, s.cfg_img, s.interval[0], s.renorm) for s in used]
    assert seen == [(50, 4.0, 2.0, 0.0, "text_channel"), (50, 3.0, 1.5, 0.4, "global"), (30, 4.0, 2.0, 0.4, "global"), (4, 4.0, 2.0, 0.4, "global")]


def test_defaults_of_the_released_sizes(golden):
    _, processor = golden
    assert r"\boxed{{}}" in processor.protocol["system"]["cooperate"], "the doubled braces are what the model was trained on"
    c = golden[0].config
    assert c.vision_config.num_hidden_layers == json.loads((GOLDEN/"vit_config.json").read_text())["num_hidden_layers"] - 1
    assert not re.search("pos_embed", " ".join(golden[0].state_dict())), "tables are computed, not stored"
