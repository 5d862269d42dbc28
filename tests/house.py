"How the tests see the repository: its notebooks, its modules and its floors."
import ast, re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("core", "model", "perceive", "reason", "cooperate", "measure", "present")
NOTEBOOKS = {p.stem: p for p in sorted((ROOT/"nbs").glob("[!_.]*.ipynb"))}


def cells(name, kind="code"): return [c for c in nbformat.read(NOTEBOOKS[name], 4).cells if c.cell_type == kind]


def tags(name): return [t for c in cells(name) for t in c.metadata.get("tags", ())]


def is_run(name): # RUN notebooks are those the Makefile and DESIGN call so by their number
    return re.match(r"([1-8]0|45|5\d)_", name) is not None


RUN = [n for n in NOTEBOOKS if is_run(n)]
DEFINE = [n for n in NOTEBOOKS if not is_run(n) and n != "index" and not n.startswith("90_")]


def module(name): # the module a notebook defines, or None
    found = re.findall(r"^#\| *default_exp +(\S+)", "\n".join(c.source for c in cells(name)), re.M)
    return found[0] if found else None


def tree(source): # magics and shell lines are not Python
    return ast.parse("\n".join("pass" if line.lstrip()[:1] in "%!" and line.strip() else line for line in source.splitlines()))


def imported(source, package=()): # absolute names of the cooper modules that some code imports; `package`: where it stands, for relative imports
    names = set()
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import): names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[:len(package) - node.level + 1], *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            base = ".".join(b for b in base if b)
            names |= {base} | ({f"{base}.{a.name}" for a in node.names} if base == "cooper" else set())
    return {n for n in names if n.split(".")[0] == "cooper"}


def floor(name): # "cooper.perceive.scenes" -> 2; a bare "cooper" has no floor
    parts = name.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else None
