"""Drives the explorer in a real JupyterLab with a headless Chromium, and leaves a picture of every step.

    python tests/browser_explorer.py                                   # pictures below outputs/browser
    python tests/browser_explorer.py --chromium /path/to/chromium --out some/folder

It needs JupyterLab (installed with cooper) and a Chromium or Chrome; it speaks the DevTools protocol itself. The tests do not run it:
a browser is more than they may ask for. `test_explorer.py` turns the same controls without one."""
import argparse, base64, json, os, shutil, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

import nbformat
import numpy as np
import websocket # comes with JupyterLab's server
from PIL import Image

from house import ROOT


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def patiently(what, seconds=60, every=.1, told=""):
    "The first true value of a function."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what(): return found
        time.sleep(every)
    raise TimeoutError(f"{told or what} did not come in {seconds} s")


class Page:
    "A page of a headless browser."
    def __init__(self, chromium, folder, width=1280, height=1000):
        port = free_port()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={folder}/profile", f"--remote-debugging-port={port}",
                   "--remote-allow-origins=*", f"--window-size={width},{height}", "about:blank"]
        self.process = subprocess.Popen([chromium, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        def pages():
            try: return [p for p in json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json")) if p["type"] == "page"]
            except OSError: return None
        self.socket = websocket.create_connection(patiently(pages, told="the browser")[0]["webSocketDebuggerUrl"], timeout=60, max_size=None)
        self.n, self.errors, self.chooser = 0, [], None
        for name in ("Page", "Runtime", "DOM"): self.do(f"{name}.enable")
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def do(self, method, **what):
        self.n += 1
        self.socket.send(json.dumps(dict(id=self.n, method=method, params=what)))
        while True:
            reply = json.loads(self.socket.recv())
            if reply.get("method") == "Runtime.exceptionThrown": self.errors.append(reply["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
            if reply.get("method") == "Page.fileChooserOpened": self.chooser = reply["params"]["backendNodeId"]
            if reply.get("id") == self.n:
                if "error" in reply: raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]

    def js(self, code):
        found = self.do("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found: raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", str(found)))
        return found["result"].get("value")

    def text(self): return self.js("document.querySelector('.jp-NotebookPanel')?.innerText||''")
    def wait(self, code, seconds=60): return patiently(lambda: self.js(code), seconds, told=code)

    def middle(self, element, x=.5, y=.5): # of an element, as an expression; scrolled into view
        at = self.js(f"(()=>{{let e={element}; e.scrollIntoView({{block:'nearest'}}); let r=e.getBoundingClientRect(); return [r.left+r.width*{x}, r.top+r.height*{y}]}})()")
        return dict(x=at[0], y=at[1])

    def move(self, element, x=.5, y=.5): self.do("Input.dispatchMouseEvent", type="mouseMoved", **self.middle(element, x, y))
    def click(self, element, x=.5, y=.5):
        at = self.middle(element, x, y)
        self.do("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in ("mousePressed", "mouseReleased"): self.do("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)
    def key(self, name, code, **more):
        for kind in ("keyDown", "keyUp"): self.do("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **(more if kind == "keyDown" else {}))
    def write(self, element, text):
        self.click(element)
        self.js(f"{element}.select()")
        self.do("Input.insertText", text=text)
    def upload(self, element, files):
        "Choose files in the dialog that a button opens."
        self.chooser = None
        self.do("Page.setInterceptFileChooserDialog", enabled=True)
        self.click(element)
        patiently(lambda: self.js("1") and self.chooser, 10, told="the dialog for files")
        self.do("DOM.setFileInputFiles", files=[str(f) for f in files], backendNodeId=self.chooser)
    def shot(self, path, clip=None):
        data = self.do("Page.captureScreenshot", format="png", **({"clip": dict(zip(("x", "y", "width", "height"), clip), scale=1)} if clip else {}))["data"]
        Path(path).write_bytes(base64.b64decode(data))
    def close(self):
        self.socket.close()
        self.process.terminate(); self.process.wait(20)


SETTINGS = { # no questions at the start, and no cell is taken from the page when it is out of sight
    "notebook-extension/tracker": dict(windowingMode="none"), "apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False, doNotDisturbMode=True)}


class Lab:
    "A JupyterLab of its own."
    def __init__(self, folder):
        self.port, self.token = free_port(), os.urandom(8).hex()
        for name, values in SETTINGS.items():
            at = Path(folder, ".settings", "@jupyterlab", f"{name}.jupyterlab-settings")
            at.parent.mkdir(parents=True, exist_ok=True); at.write_text(json.dumps(values))
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={self.port}", f"--IdentityProvider.token={self.token}",
                   f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True", f"--LabApp.user_settings_dir={folder}/.settings"]
        env = os.environ | dict(PYTHONPATH=str(ROOT), COOPER_QUIET="1", JUPYTER_CONFIG_DIR=f"{folder}/.config", JUPYTER_DATA_DIR=f"{folder}/.data", IPYTHONDIR=f"{folder}/.ipython")
        self.log = open(f"{folder}/lab.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=env, cwd=folder)
        def up():
            try: return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token={self.token}").status == 200
            except OSError: return False
        patiently(up, 90, told="JupyterLab")
    def at(self, notebook): return f"http://127.0.0.1:{self.port}/lab/tree/{notebook}?token={self.token}"
    def close(self): self.process.terminate(); self.process.wait(30); self.log.close()


CELLS = ('''import cooper
from cooper.core import resolve
from cooper.present.explorer import Browser, Explorer
co = cooper.load(resolve("data/tiny-cooper"))
Explorer(co)''',
'''import json
from pathlib import Path
from cooper.cooperate.grpo import _write_rollouts, rollout_row
out = Path("run"); asked = "How many cubes are there?"
room = resolve("data/scenes/test/rgb/000003.png")
rows = [rollout_row(co.ask(room, asked, m), dict(data_id="cubes", question=asked, answer="1", picture=room.name), step=4, group=0, seed="[0]", reward=r, advantage=r - 1)
        for m, r in (("reason", .5), ("cooperate", 1.5))]
_write_rollouts(out.absolute()/"rollouts"/"step-000004.parquet", rows)
Browser(out.absolute(), co.processor.protocol)''')
EXPLORER, BROWSER = (f"document.querySelectorAll('.jp-NotebookPanel .cooper-explorer.jupyter-widgets')[{i}]" for i in (0, 1))
QUESTION, MENU = f"{EXPLORER}.querySelector('input[placeholder^=\"Ask about\"]')", f"{EXPLORER}.querySelector('select')"


def button(name): return f"[...{EXPLORER}.querySelectorAll('button')].find(b=>b.innerText.trim()=='{name}')"
def handle(i): return f"[...{EXPLORER}.querySelectorAll('.noUi-handle')].at({i})"


def pictures(folder):
    "What people upload: a telephone's, a depth camera's, one that is cut off, one that is no picture, a large one, one that is more than JupyterLab takes."
    room, turned = Image.open(ROOT/"data/scenes/test/rgb/000005.png").convert("RGB"), Image.Exif()
    turned[0x0112] = 6
    room.resize((200, 150)).rotate(90, expand=True).save(folder/"phone.jpg", exif=turned)
    Image.fromarray(np.asarray(room.convert("L")).astype(np.uint16) * 257).save(folder/"deep.png")
    (folder/"cut.png").write_bytes((ROOT/"data/scenes/test/rgb/000005.png").read_bytes()[:3000])
    (folder/"words.png").write_text("no picture")
    room.resize((6000, 4000)).save(folder/"large.jpg", quality=60)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8)).save(folder/"heavy.png")


class Drive:
    "The explorer on a page: what a person does, and what must be seen then."
    def __init__(self, page, out): self.page, self.out, self.n = page, out, 0
    def look(self, name):
        time.sleep(.3)
        self.n += 1
        self.page.shot(self.out/f"{self.n:02d}-{name}.png")
        print(f"{self.n:02d} {name}", flush=True)
    def text(self): return self.page.js(f"{EXPLORER}.innerText")
    def said(self): return self.page.js(f"[...{EXPLORER}.querySelectorAll('.cooper-said')].map(e=>e.innerText)")
    def sees(self, words, seconds=40): self.page.wait(f"{EXPLORER}.innerText.includes({json.dumps(words)})", seconds)
    def ended(self, columns=1): self.page.wait(f"{EXPLORER}.innerText.split('first word').length>{columns} && {button('stop')}.disabled")
    def pick(self, i, name):
        self.page.js(f"(()=>{{let s={MENU}; s.selectedIndex={i}; s.dispatchEvent(new Event('change',{{bubbles:true}}))}})()")
        self.sees(name)

    def asks(self):
        self.pick(3, "000003.png, 128")
        self.page.write(QUESTION, "How many cubes are there?")
        start, seen = time.monotonic(), []
        self.page.key("Enter", 13, text="\r")
        while "first word" not in (now := self.text()) and time.monotonic() - start < 60:
            if not seen or now != seen[-1][1]: seen.append((time.monotonic() - start, now))
        growing = [t for t, v in seen if "▌" in v]
        drawn = [v for _, v in seen if "draws segmentation: step" in v]
        assert len(growing) > 2 and drawn, "words and the map are seen to grow"
        print(f"   the first word was on the page after {growing[0]:.2f} s, {len(growing)} states of words, {len(drawn)} of the map, the answer after {time.monotonic() - start:.2f} s")
        self.ended()
        self.look("cooperate")

    def steps(self):
        self.page.js(f"{handle(-1)}.focus()")
        for _ in range(2): self.page.key("ArrowLeft", 37)
        self.page.wait(f"!{EXPLORER}.innerText.includes('drew segmentation')", 10)
        self.look("first-step")
        self.page.click(f"{EXPLORER}.querySelector('.widget-play button')")
        self.sees("first word", 15) # it plays to the end

    def compares(self):
        start = time.monotonic()
        self.page.click(button("all four"))
        time.sleep(.3)
        self.ended(4)
        print(f"   four modes after {time.monotonic() - start:.2f} s")
        self.look("all-four")

    def reads(self):
        self.page.click(f"{EXPLORER}.querySelector('.cooper-map img')", .8, .65) # the cylinder, in the photograph
        time.sleep(.2)
        depth, *classes = self.said()
        assert " m at column 51, row 41" in depth and 4 < float(depth.split()[0]) < 5 and all(c.startswith("cylinder, ") for c in classes), (depth, classes)
        self.page.move(f"[...{EXPLORER}.querySelectorAll('img[data-map]')].at(-1)", .1, .1)
        time.sleep(.2)
        assert self.said()[-1].startswith("background, ") or self.said()[-1].startswith("wall"), self.said()
        self.page.move(button("ask"))
        time.sleep(.2)
        assert self.said()[0] == depth, "what was pinned is said again"
        self.look("metres-and-classes")

    def moves_and_stops(self):
        self.page.click(button("cooperate"))
        time.sleep(.3)
        self.ended()
        self.page.js(f"{handle(0)}.focus()")
        for _ in range(12): self.page.key("PageUp", 33) # 50 steps; each key asks again
        self.page.js(f"{handle(1)}.focus()")
        for _ in range(3): self.page.key("PageUp", 33)
        self.sees("draws segmentation: step")
        self.look("drawing")
        start = time.monotonic()
        self.page.click(button("stop"))
        self.page.wait(f"{button('stop')}.disabled", 20)
        print(f"   stopped after {time.monotonic() - start:.2f} s")
        self.sees("stopped")
        self.look("stopped")
        self.page.click(button("ask"))
        self.page.write(QUESTION, "How many spheres are there?") # while it asks
        self.page.click(button("ask"))
        self.ended()

    def uploads(self, folder):
        def up(*names, said): self.page.upload(f"{EXPLORER}.querySelector('.jupyter-widget-upload, .widget-upload')", [folder/n for n in names]); self.sees(said, 20)
        up("phone.jpg", said="phone.jpg, 200 × 150")
        self.look("phone")
        up("deep.png", said="deep.png, 128 × 128")
        up("cut.png", "words.png", said="words.png: cannot be read as a picture")
        self.look("broken")
        up("large.jpg", said="large.jpg, 6000 × 4000, looked at as 2048 × 1365")
        self.page.click(button("direct")); self.page.click(button("ask"))
        self.ended()
        try: up("heavy.png", said="heavy.png, 2000")
        except TimeoutError: print("   JupyterLab dropped an upload of 12 MB, as the page says")
        self.pick(3, "000003.png, 128") # and it lives

    def browses(self):
        self.page.js(f"{BROWSER}.scrollIntoView()")
        seen = self.page.js(f"{BROWSER}.innerText")
        assert "advantage +0.50" in seen and "advantage -0.50" in seen and "drew segmentation" in seen, seen
        self.page.write(f"{BROWSER}.querySelector('input[placeholder=search]')", "reason")
        self.page.wait(f"{BROWSER}.innerText.includes('1 trace')", 10)
        self.look("rollouts")


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--chromium", default=next((c for c in ("chromium", "chromium-browser", "google-chrome") if shutil.which(c)), "chromium"))
    parse.add_argument("--out", default="outputs/browser", help="folder for the pictures")
    parse.add_argument("--gallery", default="", help="a file: the four modes, as the README shows them")
    args = parse.parse_args()
    out = (ROOT/args.out).resolve(); out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")),
                                                cells=[nbformat.v4.new_code_cell(c) for c in CELLS]), f"{folder}/explore.ipynb")
        (Path(folder)/"pictures").mkdir(); pictures(Path(folder)/"pictures")
        lab = Lab(folder)
        page = Page(args.chromium, folder)
        try:
            page.do("Page.navigate", url=lab.at("explore.ipynb"))
            page.wait("""(()=>{let w=window.jupyterapp&&[...jupyterapp.shell.widgets('main')].find(w=>w.sessionContext);
                if(w) jupyterapp.shell.activateById(w.id); return w?.sessionContext.session?.kernel?.status=='idle'})()""", 90)
            page.js("void jupyterapp.commands.execute('notebook:run-all-cells')")
            page.wait(f"!!{BROWSER} && {EXPLORER}.innerText.includes('000000.png, 128')", 180)
            d = Drive(page, out)
            d.asks(); d.steps(); d.compares(); d.reads()
            if args.gallery: gallery(page, ROOT/args.gallery)
            d.moves_and_stops(); d.uploads(Path(folder)/"pictures"); d.browses()
            page.js("void jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"); time.sleep(2); d.look("dark")
            assert not page.errors, page.errors
        finally: page.shot(out/"last.png"); page.close(); lab.close()


def gallery(page, path):
    "A small picture of the explorer alone."
    r = page.js(f"(()=>{{let r={EXPLORER}.getBoundingClientRect(); return [r.left-6,r.top-6,r.width+12,r.height+12]}})()")
    page.shot(path, r)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"   {path.name}: {Image.open(path).size}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__": main()
