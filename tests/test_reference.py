"""Where the reference is wrong, its number stands beside ours (spec/cooper_reference.md, section 8: models, processors and engines).

A1 and A2 are in test_golden.py, the three samplers (B11) and the doubled braces (C27) in test_checkpoint.py, the rewards (A3 to A5, B30) in
test_rewards.py. What the reference does is done here by hand, in a line or two.
"""
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from cooper.model.checkpoint import load_model
from cooper.model.engine import Engine, guide
from cooper.model.modalities import DepthMap, colour, modality
from cooper.model.processor import MAX_AREA, RELEASED_PROTOCOL, TINY_PROTOCOL, Resize, to_pixels
from cooper.model.sequence import PictureSegment, Sequence, TextSegment, pack
from cooper.model.traces import parse_turn, read_answer

from house import ROOT

GOLDEN = ROOT/"tests/golden/bagel-tiny"
ROOM = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def golden(): return load_model(GOLDEN/"checkpoint")


@pytest.fixture(scope="module")
def trace(golden):
    "An answer of twelve sampled words, cut off."
    engine = Engine(*golden, temperature=1.0, max_new_tokens=12)
    return engine.run([engine.request(ROOM, "What is in front?", "direct")])[0]


def scores(golden, sequence, vocabulary):
    with torch.no_grad(): return golden[0].score(pack([sequence], golden[0].config.geometry), 1.0, vocabulary)[0]


def tokens(picture): return (picture.width // 14) * (picture.height // 14)


def test_A7_an_answer_of_several_lines():
    text = "<think>It is <b>near</b>.</think><answer>Two:\n\\boxed{2}</answer>"
    theirs = (re.search("<answer>(.*?)</answer>", text) or ["", text])[1] # without DOTALL nothing is found, and all of it goes to the judge
    assert (len(theirs), len(read_answer(text, "cooperate")[0])) == (len(text), len("Two:\n\\boxed{2}"))


def test_B1_B2_a_drawing_is_scored_as_it_was_seen(golden, trace):
    "Sampled with the vision patches alone; the reference scores with latents beside them."
    _, processor = golden
    recorded = torch.tensor(trace.logprobs)
    assert modality("depth", RELEASED_PROTOCOL).views == ("vision",)
    at = next(i for i, s in enumerate(trace.sequence.segments) if isinstance(s, PictureSegment))
    both = Sequence([*trace.sequence.segments[:at], *processor.picture(ROOM, ("clean", "vision")), *trace.sequence.segments[at + 1:]])
    ours, theirs = (scores(golden, s, processor.vocabulary) for s in (trace.sequence, both))
    assert (ours - recorded).abs().max() < 1e-4 and (theirs - recorded).abs().max() > 1e-2


def test_B3_words_are_scored_over_the_ids_they_were_sampled_from(golden, trace):
    model, processor = golden
    recorded, rows = torch.tensor(trace.logprobs), model.config.text_config.vocab_size
    ours, theirs = scores(golden, trace.sequence, processor.vocabulary), scores(golden, trace.sequence, None)
    assert processor.vocabulary < rows and (ours - recorded).abs().max() < 1e-4
    assert (theirs - recorded).max() < -1e-3 and (theirs - recorded).mean() < -1e-2, f"over all {rows} rows each word is less likely than it was"


def test_B4_what_was_not_sampled_is_not_scored(trace):
    turn = trace.steps[-1]
    assert turn.truncated and (len(turn.ids), sum(turn.sampled)) == (14, 12), "the reference scores the begin token and the inserted end, too"


def test_B5_the_ids_that_were_sampled_are_the_ids_that_are_scored(golden, trace):
    _, processor = golden
    turn = trace.steps[-1]
    scored = [i for s in trace.sequence.segments if isinstance(s, TextSegment) for i, learned in zip(s.ids, s.learn) if learned]
    theirs = processor.tokenizer.encode(processor.decode(turn.ids), add_special_tokens=False)
    assert scored == list(turn.ids[1:-1]) and theirs != scored, f"decoded and encoded again: {len(theirs)} ids in the place of {len(scored)}"


def test_B6_a_turn_that_asks_for_nothing_ends(golden, monkeypatch):
    "The reference samples again from the old context: the same turn three times over, when decoding is greedy."
    engine, said = Engine(*golden, max_turns=3, max_new_tokens=64), []
    def write(self, writers):
        for r in writers:
            ids = self.processor.text("<think>Hm.</think>").ids[1:]
            said.append(ids); r.ids, r.logprobs = [*r.ids, *ids], [*r.logprobs, *[0.0] * len(ids)]
            self._close(r)
    monkeypatch.setattr(Engine, "_write", write)
    trace, = engine.run([engine.request(ROOM, "What is in front?", "cooperate")])
    assert (len(said), engine.max_turns) == (1, 3) and not trace.finished


def test_B7_a_picture_has_one_latent(golden):
    t, model = load_file(GOLDEN/"expected/vae.safetensors"), golden[0]
    with torch.no_grad(): ours, again = model.encode_pictures(t["image"]), model.encode_pictures(t["image"])
    assert torch.equal(ours, again) and (ours - t["latent_mean"]).abs().max() < 1e-4
    assert (ours - t["latent_sampled"]).abs().max() > 1e-2, "theirs, with the noise of one look"


def test_B8_latents_do_not_depend_on_neighbours(golden):
    "A picture of 64 x 64 beside one of 128 x 128: the reference pads it with zeros."
    model, pixels = golden[0], to_pixels(ROOM.resize((64, 64)))[None]
    with torch.no_grad():
        alone = model.encode_pictures(pixels)
        together = model.encode_pictures(torch.cat([pixels, pixels.flip(-1)]))[:1]
        theirs = model.encode_pictures(F.pad(pixels, (0, 64, 0, 64)))[..., :alone.shape[-2], :alone.shape[-1]]
    assert (together - alone).abs().max() < 1e-4 and (theirs - alone).abs().max() > 1e-2


def test_B9_one_size_for_the_vision_tower():
    "256 x 256, at the released sizes: the tower was trained on the picture itself, and samples from its enlargement. Ours is the latter, everywhere."
    clean, vision, picture = Resize(1024, 512, 16), Resize(518, 224, 14), Image.new("RGB", (256, 256))
    assert (tokens(vision(picture)), tokens(vision(clean(picture)))) == (324, 1369)


def test_B12_B16_colours_of_depth():
    "A room of 1 to 5 m. The released range goes to 65 or 80 m; a picture of the truth is coloured as if metres were on 0 to 1."
    metres = np.linspace(1, 5, 400, dtype=np.float32)[None]
    colours = lambda rgb: len(np.unique(np.asarray(rgb).reshape(-1, 3), axis=0))
    assert [colours(DepthMap(metres, 0, far).show()) for far in (80, 12)] == [14, 86], "of 256; 12 m is the range of the small world"
    assert (colours(colour(metres)), colours(DepthMap(metres, 1, 5).show())) == (1, 256)


def test_B20_a_prefix_is_written_on(golden):
    processor = golden[1]
    theirs, ours = processor.text("<answer>"), processor.text("<answer>", open=True)
    assert theirs.ids == (*ours.ids, processor.eos), "the reference's is one token longer: it is over"
    assert [p["opening"].get("perceive") or p["prefix"].get("perceive") for p in (RELEASED_PROTOCOL, TINY_PROTOCOL)] == ["<answer>"] * 2
    assert (RELEASED_PROTOCOL["opening"], TINY_PROTOCOL["prefix"]) == ({"perceive": "<answer>"},) * 2


def test_C15_a_ratio_of_areas_shrinks_sides():
    "Two pictures of 1024 x 1024 share the budget. Checkpoints saw the reference's size, so it is ours; the root would use the budget."
    side, most = Resize(1024, 512, 16).size(1024, 1024, 2)[0], MAX_AREA / 2
    root = round(1024 * (most / 1024 ** 2) ** 0.5 / 16) * 16
    assert (side, root) == (880, 944) and side ** 2 < 0.86 * most and root ** 2 < most


def test_C22_pictures_and_requests_that_compete(golden):
    "Kept as it is: drawings have the size of the last picture, depth goes before segmentation, whose tag stays in the context."
    engine = Engine(*golden)
    request = engine.request([Image.new("RGB", (64, 64)), Image.new("RGB", (96, 64))], "Which?", "cooperate")
    assert [engine._shape(request)[1:], engine._shape(engine.request(request.pictures[0], "Which?", "cooperate"))[1:]] == [(8, 12), (8, 8)]
    text = "<segmentation>a</segmentation><depth-estimation>b</depth-estimation>"
    assert parse_turn(text).request == "depth" and modality("depth", RELEASED_PROTOCOL).without_tag(text) == "<segmentation>a</segmentation>"


def test_C23_guidance_of_a_drawing_does_not_see_the_others():
    "Two drawings, one ten times larger. The reference's global norm is one number for a batch; ours is one for each drawing."
    g = torch.Generator().manual_seed(0)
    vs = [torch.randn(3, 16, 8, generator=g) * scale for scale in (1.0, 10.0)]
    ours = [guide(*v, 4.0, 2.0) for v in vs]
    theirs = guide(*torch.cat(vs, 1), 4.0, 2.0).split(16)
    for a, v in zip(ours, vs): torch.testing.assert_close(a.norm(), v[0].norm())
    assert (theirs[0].norm() / ours[0].norm() - 1).abs() > 1e-3
    assert torch.equal(guide(*vs[0], 1.0, 2.0), vs[0][0]), "no text scale, no picture scale: kept, and said in the notebook of the engine"
