"A pretend COOPER that knows the truth of `data/scenes/test`: it draws it a little wrong and answers as it is told to. No weights, no time."
import hashlib

import numpy as np
import torch
from PIL import Image

from cooper.core import generator, resolve
from cooper.model.modalities import DepthMap, SegmentMap, modality
from cooper.model.processor import read_picture, tiny_protocol
from cooper.model.traces import Step, Trace
from cooper.perceive.data import load_classes, load_depth_png, read_amg
from cooper.perceive.scenes import CLASSES, FAR, NEAR


def known(picture): return hashlib.sha256(np.asarray(picture.convert("RGB")).tobytes()).hexdigest()


ROWS = {known(r.picture()): r for r in read_amg(resolve("data/scenes/test/amg.jsonl"))}


class Engine:
    def __init__(self, cooper, batch_size=32, **options): self.cooper, self.batch_size = cooper, batch_size
    def request(self, picture, question, mode, seed=(0,)): return dict(picture=read_picture(picture), question=question, mode=mode, seed=seed)
    def run(self, requests):
        self.cooper.asked += [(r["mode"], r["seed"][-1]) for r in requests]
        if self.cooper.dies_after is not None and len(self.cooper.asked) > self.cooper.dies_after: raise KeyboardInterrupt
        return [self.trace(**r) for r in requests]
    def trace(self, picture, question, mode, seed):
        answer = f"<answer>\\boxed{{{self.cooper.answer(question, seed)}}}</answer>"
        write = lambda text: Step("write", text, (7,) * 3, (-.1,) * 3, (True,) * 3)
        drawn = self.drawing(picture, "depth", seed)
        draw = [Step("draw", modality="depth", picture=drawn.picture, map=drawn)]
        asks = write(f"<think>A map helps.</think>{modality('depth').request}")
        steps = {"direct": [write(answer)], "reason": [write("<think>So be it.</think>" + answer)],
                 "perceive": [Step("write", modality("depth").request, ids=(7,) * 3)] + draw + [write(answer)],
                 "cooperate": [asks] + draw + [write("<think>I see.</think>" + answer)]}[mode]
        return Trace(mode, question, [picture], steps, tokens=3 * sum(any(s.sampled) for s in steps), seconds=.1, finished=True)
    def drawing(self, picture, name, seed):
        row = ROWS[known(picture)]
        if name == "segmentation": return SegmentMap(load_classes(row.seg, CLASSES)[::2, ::2], CLASSES)
        metres = np.asarray(Image.fromarray(load_depth_png(row.depth)).resize((64, 64), Image.BILINEAR))
        return DepthMap(metres * self.cooper.factor + .02 * torch.randn(64, 64, generator=generator(*seed)).numpy(), NEAR, FAR)
    def perceive(self, pictures, name, seeds):
        self.cooper.drawn += [(name, *s) for s in seeds]
        return [self.drawing(p, name, s) for p, s in zip(pictures, seeds)]


class Cooper:
    def __init__(self, answer=lambda question, seed: "left", factor=1.0, dies_after=None, weight=0.0):
        self.answer, self.factor, self.dies_after, self.asked, self.drawn = answer, factor, dies_after, [], []
        self.model, self.processor = torch.nn.Linear(2, 2), type("Processor", (), dict(protocol=tiny_protocol(NEAR, FAR, CLASSES)))
        with torch.no_grad(): [p.fill_(weight) for p in self.model.parameters()]
    def engine(self, **options): return Engine(self, **options)
    def ask(self, picture, question, mode="cooperate", seed=0, **options):
        engine = self.engine(**options)
        return engine.run([engine.request(picture, question, mode, (seed,))])[0]
