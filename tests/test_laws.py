"The laws of the house that a notebook cannot check by itself: floors, idempotent export and clean, parameters, lazy imports."
import ast, filecmp, re, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest

from house import DEFINE, FLOORS, NOTEBOOKS, ROOT, RUN, cells, floor, imported, is_run, module, tags, tree

MODULES = sorted(p for p in (ROOT/"cooper").rglob("*.py") if p.name != "_modidx.py")


def test_imported_sees_what_python_sees():
    "A law is only as good as its eyes."
    assert imported("from ..core import root", ("cooper", "model")) == {"cooper.core"}
    assert imported("from .sequence import pack", ("cooper", "model")) == {"cooper.model.sequence"}
    assert imported("def f():\n    from cooper import core, load") == {"cooper", "cooper.core", "cooper.load"}
    assert imported("import torch, cooper.present.report as r") == {"cooper.present.report"}
    assert imported("%matplotlib inline\nimport cooper.core") == {"cooper.core"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_module_imports_upwards(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[:-1]
    own = FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else None
    above = {n for n in imported(path.read_text(encoding="utf-8"), package) if own is not None and (floor(n) or 0) > own}
    assert not above, f"{path.relative_to(ROOT)} stands on floor {own} ({FLOORS[own]}) and imports {sorted(above)}"


@pytest.mark.parametrize("name", DEFINE)
def test_no_definition_notebook_needs_a_floor_above(name):
    own = floor(f"cooper.{module(name)}")
    above = {n for c in cells(name) for n in imported(c.source) if own is not None and (floor(n) or 0) > own}
    assert not above, f"nbs/{name}.ipynb defines cooper.{module(name)} and imports {sorted(above)}"


@pytest.mark.parametrize("name", DEFINE)
def test_a_definition_notebook_defines_a_module(name):
    assert module(name), f"nbs/{name}.ipynb has no '#| default_exp'; only RUN notebooks, index and 90_log go without"
    assert "parameters" not in tags(name), f"nbs/{name}.ipynb has a parameters cell, but its number is not that of a RUN notebook"


@pytest.mark.parametrize("name", RUN)
def test_a_run_notebook_only_runs(name):
    source = "\n".join(c.source for c in cells(name))
    defined = [n.name for c in cells(name) for n in ast.walk(tree(c.source)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert not re.search(r"^#\| *(default_exp|export)", source, re.M), f"nbs/{name}.ipynb exports; definitions belong in another notebook"
    assert not defined, f"nbs/{name}.ipynb defines {defined}; a RUN notebook holds parameters, calls and figures"
    assert tags(name).count("parameters") == 1, f"nbs/{name}.ipynb needs one cell tagged 'parameters'"
    assert "checked(" in source, f"nbs/{name}.ipynb does not check its parameters"
    assert not [o for c in cells(name) for o in c.outputs], f"nbs/{name}.ipynb has outputs; RUN notebooks are committed clean"


@pytest.mark.parametrize("name", RUN)
def test_parameters_are_literals_with_a_comment(name):
    cell, = (c for c in cells(name) if "parameters" in c.metadata.get("tags", ()))
    for node in tree(cell.source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant): continue # a docstring
        line = cell.source.splitlines()[node.lineno - 1]
        assert isinstance(node, (ast.Assign, ast.AnnAssign)), f"nbs/{name}.ipynb: {line!r} in the parameters cell is no assignment"
        ast.literal_eval(node.value)
        span = cell.source.splitlines()[node.lineno - 1:node.end_lineno]
        assert any("#" in s for s in span), f"nbs/{name}.ipynb: {line!r} has no comment that says what it is"


@pytest.mark.parametrize("name", RUN)
def test_an_unknown_parameter_stops_a_run_notebook_at_once(name, tmp_path):
    import papermill
    with pytest.raises(papermill.PapermillExecutionError) as e:
        papermill.execute_notebook(NOTEBOOKS[name], tmp_path/"ran.ipynb", dict(stepz=3, out=str(tmp_path/"out")), progress_bar=False, kernel_name="python3", cwd=ROOT)
    assert e.value.ename == "ValueError" and "'stepz' is not a parameter of" in e.value.evalue, f"{e.value.ename}: {e.value.evalue}"
    assert not (tmp_path/"out").exists(), "something was written before the parameters were checked"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The parts that nbdev reads and writes, somewhere else."
    there = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "setup.py"): shutil.copy(ROOT/name, there)
    for name in ("nbs", "cooper"): shutil.copytree(ROOT/name, there/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return there


def differing(a, b):
    "Relative paths that are not byte for byte the same in both folders."
    names = {p.relative_to(d).as_posix() for d in (a, b) for p in d.rglob("*") if p.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}
    return sorted(n for n in names if not ((a/n).is_file() and (b/n).is_file() and filecmp.cmp(a/n, b/n, shallow=False)))


def nbdev(tool, there):
    subprocess.run([Path(sys.executable).with_name(tool)], cwd=there, check=True, capture_output=True, text=True, timeout=300)


def test_export_changes_nothing(copy):
    nbdev("nbdev_export", copy)
    assert differing(ROOT/"cooper", copy/"cooper") == [], "run nbdev_export and commit what it writes"


def test_clean_changes_nothing(copy):
    nbdev("nbdev_clean", copy)
    assert differing(ROOT/"nbs", copy/"nbs") == [], "run nbdev_clean and commit what it writes"
    for name in RUN: assert "parameters" in [t for c in nbformat.read(copy/"nbs"/f"{name}.ipynb", 4).cells for t in c.metadata.get("tags", ())]


def test_the_parameters_tag_survives_cleaning(copy):
    "The same with a notebook that is dirty, so that cleaning has something to do."
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(display_name="other", language="python", name="python3"), extra=1))
    nb.cells = [nbformat.v4.new_code_cell("steps = 3", metadata=dict(tags=["parameters"], scrolled=True), execution_count=4)]
    path = copy/"nbs"/"77_dirty.ipynb"
    nbformat.write(nb, path)
    nbdev("nbdev_clean", copy)
    cell, = nbformat.read(path, 4).cells
    path.unlink()
    assert cell.metadata == dict(tags=["parameters"]) and cell.execution_count is None


@pytest.mark.parametrize("name", ["cooper", "cooper.core"])
def test_importing_the_ground_costs_nothing(name):
    heavy = ("torch", "transformers", "diffusers", "trl", "matplotlib", "mitsuba", "pandas", "IPython")
    script = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_cooper_says_which_names_it_has():
    import cooper
    assert "load" in dir(cooper) and re.fullmatch(r"\d+\.\d+\.\d+", cooper.__version__)
    with pytest.raises(AttributeError, match="no attribute 'laod'; it has: load"): cooper.laod


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_light_and_names_its_language(name):
    path = NOTEBOOKS[name]
    assert path.stat().st_size < 500_000, f"{path.name} is {path.stat().st_size/1000:.0f} kB; committed notebooks stay below 500"
    metadata = nbformat.read(path, 4).metadata
    assert metadata.kernelspec.language == "python", "papermill needs metadata.kernelspec.language"
    assert "widgets" not in metadata, f"{path.name} keeps the progress bars of a run that is over; remove metadata.widgets"


TOP = "home Users root mnt media work workspace workspaces tmp scratch srv Volumes kaggle".split() # where machines keep people's files
HERE = "|".join(re.escape(str(p)) for p in {ROOT, Path.home()} if len(p.parts) > 1) # wherever this machine keeps them
MACHINE = re.compile(rf"(?<![\w.<>{{}}$*~-])(?:(?:/private)?/(?:{'|'.join(TOP)})|{HERE})/[\w.-]|[A-Z]:\\+Users\\")


def test_a_path_of_a_machine_is_seen():
    "The eyes of the next test."
    home = "/".join(["", "home", "ann", "x"])
    for text in (home, f"'{home}'", f"open({home})", f"file:{home}", "/" + "root/cooper", "/" + "Users/ann", "/" + "mnt/disk/data", "/private/" + "tmp/x", "C:\\" + "Users\\ann"):
        assert MACHINE.search(text), text
    for text in ("data/home/x", "~/work/x", "https://huggingface.co/home/x", "a/mnt/b", "the /tmp", "../work/x", "$HOME/work/x"):
        assert not MACHINE.search(text), text


def test_no_tracked_file_knows_a_machine():
    "Absolute paths of homes, mounts and work folders, of this machine or another, in any text that git keeps."
    git = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    names = git.stdout.split("\0")[:-1] if git.returncode == 0 else [p.relative_to(ROOT).as_posix() for d in ("nbs", "cooper", "tests") for p in (ROOT/d).rglob("*.*")]
    assert names
    found = []
    for name in names:
        try: text = (ROOT/name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError): continue # a picture, or removed and not committed yet
        text = re.sub(r"\\(?:n|t|u001b\[[\d;]*m)", " ", text) # escapes of JSON would look like letters before the slash
        found += [f"{name}:{text[:m.start()].count(chr(10)) + 1}: {text[m.start():m.end() + 30]!r}" for m in MACHINE.finditer(text)]
    assert not found, "\n".join(found)


def test_every_run_notebook_is_run_by_make_test():
    from run_notebooks import SMALLEST
    assert set(SMALLEST) == set(RUN), "tests/run_notebooks.py and the RUN notebooks below nbs/ differ"
    pattern = re.search(r"^RUN +:= (.+)$", (ROOT/"Makefile").read_text(encoding="utf-8"), re.M)[1]
    assert {n for n in NOTEBOOKS if re.search(pattern, f"{n}.ipynb")} == {n for n in NOTEBOOKS if is_run(n) or n == "index" or n.startswith("90_")}


def test_requirements_are_pinned():
    "Every requirement of settings.ini has its exact version in constraints.txt, without a local suffix."
    from configparser import ConfigParser
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini")
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    pins = {canonicalize_name(k): v for k, v in (line.split("==") for line in (ROOT/"constraints.txt").read_text().split())}
    assert not [v for v in pins.values() if "+" in v]
    for text in (config["DEFAULT"]["requirements"] + " " + config["DEFAULT"]["dev_requirements"]).split():
        r = Requirement(text)
        assert r.specifier.contains(pins[canonicalize_name(r.name)]), f"{text} against {pins[canonicalize_name(r.name)]}"


def test_a_run_notebook_that_nobody_runs_is_an_error(tmp_path):
    from run_notebooks import parameters
    with pytest.raises(KeyError, match="99_new.ipynb is a RUN notebook without an entry"): parameters("99_new", tmp_path)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_module_imports_what_it_does_not_use(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imports = [n for n in nodes if isinstance(n, ast.Import) or isinstance(n, ast.ImportFrom) and n.module != "__future__"]
    names = {(a.asname or a.name).split(".")[0] for n in imports for a in n.names}
    idle = sorted(names - {n.id for n in nodes if isinstance(n, ast.Name)})
    assert not idle, f"{path.relative_to(ROOT)} imports {', '.join(idle)} and uses none of it; what only example cells need belongs in a hidden cell"
