"A process for each run of a harness, forked from one that has imported what all of them need: importing it anew takes most of the time."
import multiprocessing, os, sys
from types import SimpleNamespace

PRELOAD = ["torch", "pandas", "datasets", "transformers", "cooper.model.engine", "cooper.measure.records", "cooper.reason.hosted"]


def _child(args, code, cwd, paths, env, out):
    for n, name in ((1, "out"), (2, "err")): os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT), n)
    os.chdir(cwd); os.environ.clear(); os.environ.update(env)
    sys.path[:0] = paths
    sys.argv = ["run", *args]
    if code: exec(compile(code, "a run", "exec"), dict(__name__="__main__"))
    else:
        from cooper.measure import harnesses
        raise SystemExit(harnesses.main(list(args)))


def child(args, code, cwd, paths, env, out, seconds):
    "Runs `code`, or `cooper.measure.harnesses`, as `subprocess.run` would."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_child, args=(args, code, str(cwd), paths, env, str(out)))
    process.start(); process.join(seconds)
    if process.exitcode is None: process.kill(); process.join()
    read = lambda name: open(f"{out}.{name}", encoding="utf-8", errors="replace").read() if os.path.exists(f"{out}.{name}") else ""
    return SimpleNamespace(returncode=process.exitcode, stdout=read("out"), stderr=read("err"))
