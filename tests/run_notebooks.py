"""Runs each RUN notebook through papermill with its smallest parameters.

    python tests/run_notebooks.py                      # all, in order; copies and artefacts below outputs/test
    python tests/run_notebooks.py 30_grpo --out /some/folder

`{out}` in a value is the folder of all runs, so that 20_sft can start from what 10_amg left in `{out}/10_amg`."""
import argparse, shutil, sys, time
from pathlib import Path

from house import NOTEBOOKS, ROOT, RUN

SMALLEST = { # notebook -> parameters that let it run in about a minute on two cores; `out` is added
    "10_amg": dict(checkpoint="", autoencoder_steps=2, steps=2, batch_size=1, scenes=6, evaluation_scenes=3, num_processes=2, strategy="cpu"), # from random weights, in two processes
    "20_sft": dict(steps=2, batch_size=2, scenes=4, questions=5, evaluation_scenes=3),
    "30_grpo": dict(steps=2, prompts_per_step=2, num_generations=2, eval_questions=2, questions=8, keep_every=1),
    "40_eval": dict(questions=5, perception_scenes=2, modes="direct,cooperate", maps="blank", edits="grey", cases=1, batch_size=8),
    "45_speed": dict(batches="1,8", contexts="200,400", turn_tokens=24, group=2, scenes=2, questions=5, repeats=1),
    "50_sat_paligemma": dict(eyes="", sizes=dict(picture=32, patch=16, width=32, layers=1, heads=2, vision_width=32, vision_layers=1, vocabulary=400), warmup_steps=4, warmup_batch=4, steps=2, batch_size=2,
        num_generations=2, examples=20, questions=10, unseen_rooms=2, samples=2, max_new_tokens=6),
    "51_prompting_study": dict(questions=5, prompts="bare,scene_graph", max_tokens=32),
    "52_grpo_study": dict(steps=1, seeds="0", common=dict(prompts_per_step=2, num_generations=2, keep_every=1, eval_questions=1), gain_questions=5, rollouts=2, questions=5, samples=1),
    "53_drawing_study": dict(drawing=dict(steps=1, batch_size=1, scenes=4), answering=dict(steps=1, batch_size=2, scenes=4), longer=1, questions=5, evaluation_scenes=2),
    "60_tour": dict(),
}


def parameters(name, out):
    "The parameters of one run. KeyError for a RUN notebook without an entry: a notebook that nobody runs rots."
    if name not in SMALLEST: raise KeyError(f"nbs/{name}.ipynb is a RUN notebook without an entry in SMALLEST of tests/run_notebooks.py")
    fill = lambda v: v.replace("{out}", str(out)) if isinstance(v, str) else v
    return {"out": str(out/name)} | {k: [fill(x) for x in v] if isinstance(v, list) else fill(v) for k, v in SMALLEST[name].items()}


def run(name, out):
    "Executes one notebook into `out/name.ipynb`; seconds. papermill raises if a cell does."
    import papermill
    shutil.rmtree(out/name, ignore_errors=True) # or it would resume the last run
    given, start = parameters(name, out), time.monotonic()
    papermill.execute_notebook(NOTEBOOKS[name], out/f"{name}.ipynb", given, progress_bar=False, kernel_name="python3", cwd=ROOT)
    return time.monotonic() - start


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("names", nargs="*", help="RUN notebooks, default all")
    parse.add_argument("--out", default="outputs/test", help="folder for executed copies and artefacts")
    args = parse.parse_args()
    out = (ROOT/args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in set(SMALLEST) - set(RUN): sys.exit(f"SMALLEST of tests/run_notebooks.py names {name}, but there is no nbs/{name}.ipynb")
    for name in args.names or RUN: parameters(name, out) # all entries are there before the first run starts
    for name in args.names or RUN: print(f"{name}: {run(name, out):.0f} s", flush=True)


if __name__ == "__main__": main()
