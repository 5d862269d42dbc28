"""Stands in for VLMEvalKit's run.py where that is not at hand: the same order of imports, the same options, the same files, for multiple choice in a TSV of one's own.
Contracts as of commit e8e78f05; `COOPER_VLMEVALKIT=CLONE pytest tests/test_harnesses.py` runs the same tests on a real clone."""
import argparse, json, logging, os, sys, time
from pathlib import Path

from vlmeval.api import LMDeployAPI
from vlmeval.config import supported_VLM
from vlmeval.dataset import build_dataset
from vlmeval.smp import FAIL_MSG, dump, load, load_env, pred_format

logger = logging.getLogger("RUN")


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--data", nargs="+"); p.add_argument("--model", nargs="+"); p.add_argument("--config")
    p.add_argument("--work-dir", default="./outputs"); p.add_argument("--mode", default="all", choices=["all", "infer", "eval"])
    p.add_argument("--judge"); p.add_argument("--judge-base-url"); p.add_argument("--judge-retry", type=int); p.add_argument("--retry", type=int, default=6)
    p.add_argument("--base-url"); p.add_argument("--local-media", action="store_true"); p.add_argument("--max-tokens", type=int, default=2**15)
    p.add_argument("--reuse", action="store_true"); p.add_argument("--api-nproc", type=int, default=32); p.add_argument("--verbose", action="store_true")
    return p.parse_args()


def build_model(args, name, cfg):
    import vlmeval.vlm
    if cfg is not None:
        given = dict(cfg["model"][name])
        return getattr(vlmeval.vlm, given.pop("class"))(**given)
    if args.base_url: return LMDeployAPI(name, f"{args.base_url.rstrip('/')}/chat/completions", args.max_tokens, args.retry, args.local_media)
    return supported_VLM[name]()


def answers(model, dataset, known):
    for row in dataset.rows:
        if row["index"] in known: yield row["index"], known[row["index"]]
        else: yield row["index"], model.generate(message=dataset.build_prompt(row), dataset=dataset.dataset_name)


def infer(model, dataset, file, before):
    known = {}
    if before is not None: known = {i: p for i, p in zip(before["index"], before["prediction"]) if FAIL_MSG not in str(p)}
    found = dict(answers(model, dataset, known))
    data = dataset.data.drop(columns="image", errors="ignore")
    if all(isinstance(v, dict) and "prediction" in v and "extra_records" in v for v in found.values()):
        data["prediction"] = [found[i]["prediction"] for i in data["index"]]
        data["extra_records"] = [found[i]["extra_records"] for i in data["index"]]
    else: data["prediction"] = [str(found[i]) for i in data["index"]]
    dump(data, file)


def one(args, name, data, folder, status, cfg):
    status["datasets"][data] = dict(status="pending")
    model = build_model(args, name, cfg) # the real one builds a model of supported_VLM as late, and inside the same try
    dataset = build_dataset(data)
    file = folder/f"{name}_{data}.{pred_format()}"
    old = max(folder.parent.glob(f"T*/{file.name}"), default=None, key=lambda p: p.stat().st_mtime) if args.reuse else None
    infer(model, dataset, file, load(old) if old else None)
    if args.mode != "infer": status["datasets"][data]["metrics"] = dataset.evaluate(str(file), model=args.judge or "gpt-4o-mini", retry=args.judge_retry).to_dict("records")[0]
    status["datasets"][data]["status"] = "done"
    for f in folder.glob(f"{name}_{data}*"):
        link = folder.parent/f.name
        link.unlink(missing_ok=True); link.symlink_to(f.relative_to(folder.parent))


def main():
    args = parse_args()
    cfg = json.loads(Path(args.config).read_text()) if args.config else None
    if cfg is not None: args.model, args.data = list(cfg["model"]), list(cfg["data"])
    log = Path(args.work_dir)/"logs"/"run.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger().addHandler(logging.FileHandler(log)); logging.getLogger().setLevel("INFO")
    for name in args.model:
        folder = Path(args.work_dir)/name/time.strftime("T%Y%m%d-%H%M%S")
        while folder.exists(): folder = folder.with_name(folder.name + "x")
        folder.mkdir(parents=True)
        status = dict(datasets={}, argv=sys.argv, model_name=name)
        for data in args.data:
            try: one(args, name, data, folder, status, cfg)
            except Exception as e:
                logger.exception(f"Model {name} x Dataset {data} combination failed: {e}, skipping this combination.")
                status["datasets"][data] |= dict(status="done", error_message=str(e))
            (folder/"status.json").write_text(json.dumps(status, default=float))


if __name__ == "__main__":
    load_env()
    main()
