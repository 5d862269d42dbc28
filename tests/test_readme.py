"The README is the home page, and its script runs."
import os, re, subprocess, sys

import nbformat

import cooper
from cooper.perceive.scenes import load_facts, sample_scene
from house import ROOT

README = ROOT/"README.md"


def test_readme_is_the_index(tmp_path):
    subprocess.run(["make", "-s", "readme", f"README={tmp_path/'README.md'}"], cwd=ROOT, check=True, timeout=300)
    assert (tmp_path/"README.md").read_text(encoding="utf-8") == README.read_text(encoding="utf-8"), "run `make readme` and commit README.md"


def test_readme_pictures_and_links_are_there():
    links = re.findall(r"\]\(([^)#\s]+)", README.read_text(encoding="utf-8"))
    missing = [name for name in links if not re.match(r"https?:", name) and not (ROOT/name).exists()]
    assert links and not missing, f"README.md points to {missing}"


def test_links_of_kept_notebooks_are_there():
    "They were written for nbs/, and are read in outputs/gallery."
    for path in (ROOT/"outputs/gallery").glob("*.ipynb"):
        words = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        links = [l for l in re.findall(r"\]\(([^)#\s]+)", words) if not re.match(r"https?:", l)]
        missing = [l for l in links if not (path.parent/l).exists()]
        assert links and not missing, f"{path.name} points to {missing}"


def test_readme_script_runs():
    script = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)[0]
    lines = [line for line in script.splitlines() if line.strip()]
    assert "import cooper" in lines and len(lines) <= 10
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"COOPER_QUIET": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    scene = sample_scene(int(re.search(r"sample_scene\((\d+), \"test\"\)", script)[1]), "test")
    away = {f"{s.colour} {s.shape}": scene.camera.project([s.x, s.y, s.half_height])[2] for s in scene.solids} # metres along the camera's axis
    nearer = min(re.search(r"closer to the camera, the (.+) or the (.+)\?", script).groups(), key=away.__getitem__)
    assert nearer == "orange cylinder" and done.stdout.splitlines()[-1].startswith(f"{nearer} ['depth']"), f"README.md says that the orange cylinder is nearer and the model says so: {done.stdout}"


def test_the_caption_of_the_case_says_what_the_model_says():
    "Numbers of the thought as the weights that are here think it, and the truth as the scene has it."
    words = r"The thought says column (\d+) of 64 and ([\d.]+) m, column (\d+) and ([\d.]+) m; the truth is (\d+) and ([\d.]+) m, (\d+) and ([\d.]+) m"
    said = re.search(words, README.read_text(encoding="utf-8")).groups()
    facts = next(f for f in load_facts(ROOT/"data/scenes/test") if f["image"] == "rgb/000013.png")
    things = {f"{o['colour']} {o['shape']}": o for o in facts["objects"]}
    trace = cooper.load(ROOT/"data/tiny-cooper", show=False).ask(ROOT/"data/scenes/test/rgb/000013.png", "Which is closer to the camera, the gray ball or the cyan cylinder?", mode="cooperate")
    for k, thing in enumerate(("gray ball", "cyan cylinder")):
        column, depth, true_column, true_depth = *said[2*k:2*k + 2], *said[2*k + 4:2*k + 6]
        assert f"{thing}: {column}, {depth} m" in trace.steps[-2].text + trace.steps[-1].text, trace
        o = things[thing]
        assert (int(64*o["pixel"][0]), f"{o['depth_m']:.1f}") == (int(true_column), true_depth)
