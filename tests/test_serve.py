"The server: OpenAI's own client, clients that vanish or send rubbish, limits, paths, tokens, faults and stops."
import base64, contextlib, io, json, os, socket, struct, threading, time, zlib
from concurrent.futures import ThreadPoolExecutor

import httpx, openai, pytest
from PIL import Image

import cooper
from cooper.core import resolve
from cooper.present import serve
from cooper.present.serve import Refused, ServeSettings, Shelf, _bytes_below, from_path, main, required_token, serving

ROOM, QUESTION = resolve("data/scenes/test/rgb/000014.png"), "How many cubes are there?"
WEB = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)) # certificates, read anew for every call, would take longer than the server
JSON = {"Content-Type": "application/json"}
URL = "data:image/png;base64," + base64.b64encode(ROOM.read_bytes()).decode()


@pytest.fixture(scope="module")
def co(): return cooper.load("data/tiny-cooper", dtype="float32", show=False)


@pytest.fixture(scope="module")
def house(co):
    services, create = [], serve.Service
    class Seen(create):
        def __init__(self, *args): super().__init__(*args); services.append(self)
    serve.Service = Seen
    try:
        with serving(co, max_body_mb=1, read_seconds=1, batch_size=8, max_queue=16, max_choices=4, keep_traces=40, max_pixels=10 ** 6) as url: yield url, services[0]
    finally: serve.Service = create


def ask(url=URL, words=QUESTION, **more):
    return dict(model="cooper-direct", messages=[dict(role="user", content=[dict(type="text", text=words), dict(type="image_url", image_url=dict(url=url))])]) | more

def post(house, body, **more): return WEB.post(f"{house[0]}/chat/completions", json=body, timeout=120, **more)

def quiet(service, seconds=30):
    "Waits until nothing is on its way, and says whether all was given back."
    end = time.monotonic() + seconds
    while time.monotonic() < end and (service.worker.jobs or service.worker.engine.cache is not None): time.sleep(.02)
    return not service.worker.jobs and service.worker.held == service.arriving == 0 and service.worker.engine.cache is None and not service.worker.engine.queue


def test_the_official_client(house, co):
    client = openai.OpenAI(base_url=house[0], api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()][:2] == ["cooper", "cooper-direct"]
    said = client.chat.completions.create(**ask(model="cooper", n=2, temperature=.7, seed=5))
    alone = co.ask(ROOM, QUESTION, seed=5, temperature=.7)
    assert said.choices[0].message.content == (alone.answer or "") and len(said.choices) == 2 and said.usage.completion_tokens >= alone.tokens
    kept = [WEB.get(f"{house[0]}/traces/{c.trace['id']}").json() for c in said.choices]
    assert QUESTION in WEB.get(house[0].removesuffix("/v1") + said.choices[0].trace["url"]).text
    assert [s["text"] for s in kept[0]["steps"] if s["kind"] == "write"] == [s.text for s in alone.written]
    drawn = [s for s in kept[0]["steps"] if s["kind"] == "draw"]
    assert [s["modality"] for s in drawn] == alone.drawn
    for row, step in zip(drawn, (s for s in alone.steps if s.kind == "draw")):
        assert Image.open(io.BytesIO(base64.b64decode(row["picture"].partition(",")[2]))).size == step.picture.size and ("near" in row) == (step.modality == "depth")
    for kind, body in ((openai.BadRequestError, ask(n=5)), (openai.NotFoundError, ask(model="gpt")), (openai.BadRequestError, ask(stop=["."]))):
        with pytest.raises(kind): client.chat.completions.create(**body)


def test_a_stream_says_the_words_the_steps_and_then_the_answer(house, co):
    client = openai.OpenAI(base_url=house[0], api_key="none", max_retries=0)
    chunks = list(client.chat.completions.create(**ask(model="cooper-perceive", stream=True, stream_options={"include_usage": True})))
    alone = co.ask(ROOM, QUESTION, mode="perceive")
    choices = [c.choices[0] for c in chunks if c.choices]
    assert "".join(c.delta.content or "" for c in choices) == (alone.answer or "") and choices[-1].finish_reason in ("stop", "length")
    steps = [c.drawing for c in choices if getattr(c, "drawing", None)]
    assert [s["modality"] for s in steps if s["step"] == s["of"]] == alone.drawn == ["depth", "segmentation"]
    assert chunks[-1].usage.completion_tokens == alone.tokens
    whole = post(house, ask(model="cooper-perceive")).json()["choices"][0]
    assert whole["message"]["content"] == (alone.answer or "") and whole["trace"]["drawn"] == alone.drawn


def wide_png(width, height):
    "A small file of a huge picture."
    part = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + part(b"IDAT", rows) + part(b"IEND", b"")

def data_url(data): return "data:image/png;base64," + base64.b64encode(data).decode()

RUBBISH = {
    "no JSON": b"{", "a list": b"[]", "NaN": b'{"seed": NaN}', "nested": b"[" * 200_000, "not UTF-8": b"\xff\xfe\x00", "empty": b"",
    "no model": dict(messages=[]), "no messages": dict(model="cooper"), "messages of strings": dict(model="cooper", messages=["hello"]),
    "system words": ask() | dict(messages=[dict(role="system", content="x")]), "two messages": ask() | dict(messages=ask()["messages"]*2),
    "no words": ask(words=" "), "many words": ask(words="x" * 30_000), "wide picture": ask(data_url(wide_png(20_000, 200))), "bomb": ask(data_url(wide_png(20_000, 19_000))),
    "no picture data": ask("data:image/png;base64,AAAA"), "half a picture": ask(data_url(ROOM.read_bytes()[:2000])), "no base64": ask("data:image/png;base64,***"),
    "a text file": ask("data:text/plain;base64,AAAA"), "http": ask("http://169.254.169.254/latest"), "file": ask("file:///etc/passwd"), "url of a list": ask(["x"]),
    "nine pictures": dict(model="cooper", messages=[dict(role="user", content=[*ask()["messages"][0]["content"]]*9)]), "a seed in words": ask(seed="one"),
    "true for a number": ask(n=True), "negative": ask(temperature=-1), "no mode": ask(mode="dream"), "more turns": ask(max_turns=10 ** 6), "zero tokens": ask(max_tokens=0),
    "a list for a model": ask(model=["cooper"]), "half a letter": ask(words="\ud800?"), "half a letter for a field": ask() | {"\ud800": 1}, "a long number": b'{"seed": ' + b"9" * 5000 + b"}",
    "unknown field": ask(best_of=3), "tools": ask(tools=[{}]), "stream of stones": ask(stream="yes")}

@pytest.mark.parametrize("what", RUBBISH)
def test_rubbish_is_refused_with_a_sentence(house, what):
    body = RUBBISH[what]
    answer = WEB.post(f"{house[0]}/chat/completions", timeout=60, headers=JSON, content=body if isinstance(body, bytes) else json.dumps(body).encode())
    error = answer.json()["error"]
    assert answer.status_code in (400, 404, 413) and len(error["message"]) > 10 and "Traceback" not in answer.text, answer.text
    assert not house[1].worker.jobs


def test_a_jpeg_of_many_scans_is_refused_and_slow_pictures_keep_nobody_out(co, monkeypatch, capfd):
    out = io.BytesIO(); Image.open(ROOM).convert("RGB").save(out, "JPEG", progressive=True)
    honest, scan = out.getvalue(), out.getvalue().rindex(b"\xff\xda")
    assert serve.from_data_url(data_url(honest), ServeSettings()).size == (128, 128)
    with pytest.raises(Refused, match="scans; expected at most 100"): serve.from_data_url(data_url(honest[:-2] + honest[scan:-2] * 100 + honest[-2:]), ServeSettings())
    stuck, decoding, picture = threading.Event(), [], serve.from_data_url
    monkeypatch.setattr(serve, "from_data_url", lambda *a: (decoding.append(1), stuck.wait(60), picture(*a))[-1])
    with ThreadPoolExecutor(8) as pool:
        with serving(co, max_readers=6, grace_seconds=1) as url:
            stay = [pool.submit(WEB.post, f"{url}/chat/completions", json=ask(), timeout=60) for _ in range(8)]
            while len(decoding) < 6: time.sleep(.01)
            words = dict(model="cooper-direct", messages=[dict(role="user", content=QUESTION)])
            assert WEB.post(f"{url}/chat/completions", json=words, timeout=20).status_code == 200 and len(decoding) == 6
            began = time.monotonic()
        assert time.monotonic() - began < 15, "it does not wait for them"
        stuck.set()
        answers = [s.result() for s in stay]
    assert all(r.status_code == 503 and int(r.headers["retry-after"]) >= 1 and "stopping" in r.json()["error"]["message"] for r in answers)
    said = capfd.readouterr().err
    assert "Traceback" not in said, said


def test_what_is_too_large_or_too_slow_is_not_waited_for(house):
    assert WEB.post(f"{house[0]}/chat/completions", content=b" " * 2 ** 21, headers=JSON).status_code == 413
    host, port = house[0].removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
        assert b" 408 " in s.recv(200), "a body that never comes"
    slow = [socket.create_connection((host, int(port)), timeout=20) for _ in range(40)]
    for s in slow: s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    assert post(house, ask()).status_code == 200, "others need not wait for them"
    for s in slow: s.close()
    with socket.create_connection((host, int(port)), timeout=20) as s: # no length given: counted as it comes
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError): # it may hang up before all of it is sent
            for _ in range(200): s.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        assert b" 413 " in s.recv(200)


def test_a_body_of_many_small_things_is_refused_before_it_is_read(co):
    "Small as text, large as objects; the pictures of a body count apart."
    with serving(co, max_json_mb=.01) as url:
        for body in (b"[" + b"[]," * 5000 + b"[]]", json.dumps(ask()).encode()[:-1] + b',"metadata":[' + b"{}," * 5000 + b"{}]}", json.dumps(ask()).encode("utf-16")):
            r = WEB.post(f"{url}/chat/completions", content=body, headers=JSON, timeout=20)
            assert r.status_code == 413 and "larger than 0.01 MB without its pictures" in r.json()["error"]["message"]
        assert len(URL) > 2 ** 14 and WEB.post(f"{url}/chat/completions", json=ask(), timeout=60).status_code == 200


def opened(url, said=b"", count=1):
    "Raw connections, and what each of them says first."
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    found = [socket.create_connection((host, int(port)), timeout=20) for _ in range(count)]
    for s in found: s.sendall(said)
    return found

def hung_up(s, seconds=10):
    s.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        while s.recv(4096): pass
    return True # else a timeout is raised

def test_connections_that_ask_for_nothing_keep_nobody_out(co):
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    with serving(co, max_connections=12, idle_seconds=2) as url:
        start, idle = time.monotonic(), opened(url, half, 20) + opened(url, b"", 20)
        assert WEB.post(f"{url}/chat/completions", json=ask(), timeout=60).status_code == 200 and all(map(hung_up, idle[:25])), "they made room"
        dribbling, = opened(url, half)
        with contextlib.suppress(OSError):
            for _ in range(40): time.sleep(.1); dribbling.sendall(b"x")
        assert all(map(hung_up, [*idle, dribbling])) and time.monotonic() - start < 20
        quiet_one, = opened(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in quiet_one.recv(1000)
        quiet_one.sendall(b"G"); assert hung_up(quiet_one), "half of a second request"
        for s in (*idle, dribbling, quiet_one): s.close()
        with httpx.Client(trust_env=False) as client: # a whole request may take longer than a connection may idle
            assert [client.get(url.removesuffix("/v1") + "/health").status_code for _ in range(3)] == [200]*3

def test_a_page_of_another_site_gets_nothing(house):
    "What a browser sends without asking first (a form's types, another host's name, another origin) is refused."
    url, body = f"{house[0]}/chat/completions", json.dumps(ask()).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None):
        r = WEB.post(url, content=body, headers={"Content-Type": kind} if kind else {})
        assert r.status_code == 415 and "expected Content-Type: application/json" in r.json()["error"]["message"]
    own = house[0].removesuffix("/v1")
    for origin, status in (("https://evil.example", 403), ("null", 403), (own.replace("http:", "https:"), 200), (own, 200)):
        assert WEB.post(url, content=body, headers=JSON | dict(Origin=origin), timeout=60).status_code == status, origin
    assert WEB.get(f"{house[0]}/models", headers=dict(Origin="https://evil.example")).status_code == 403
    assert WEB.get(f"{house[0]}/models", headers=dict(Host="evil.example")).status_code == 400, "its name was made to lead here"
    assert WEB.post(url, content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"}, timeout=60).status_code == 200

def test_help_says_what_the_options_mean(capsys):
    with pytest.raises(SystemExit) as e: main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert e.value.code == 0 and "answers that wait; the next one is told to come back (429) (default: 64)" in said and "open at once" in said


def test_two_hundred_clients_of_whom_some_vanish_and_some_send_rubbish(house):
    url, service = house
    def client(i):
        try:
            if i % 5 == 1: return WEB.post(f"{url}/chat/completions", json=ask(model="cooper"), timeout=.3).status_code # leaves
            if i % 5 == 2: return post(house, list(RUBBISH.values())[6 + i % 20]).status_code
            if i % 5 == 3:
                with WEB.stream("POST", f"{url}/chat/completions", json=ask(model="cooper", stream=True), timeout=120) as r:
                    next(r.iter_bytes(), None); return "left" if r.status_code == 200 else r.status_code # after the first word
            body, end = ask(n=1 + i % 2, seed=i), time.monotonic() + 100
            while (r := post(house, body)).status_code == 429 and time.monotonic() < end: time.sleep(.2 * float(r.headers["retry-after"]))
            return r.json() if r.status_code == 200 else r.status_code
        except httpx.TimeoutException: return "left"
    with ThreadPoolExecutor(50) as pool: said = list(pool.map(client, range(200)))
    answers = {i: said[i] for i in range(200) if i % 5 in (0, 4)}
    assert all(isinstance(a, dict) and len(a["choices"]) == 1 + i % 2 for i, a in answers.items()), "nobody who stayed is lost"
    assert len({a["choices"][0]["message"]["content"] for a in answers.values()}) == 1, "the same question, greedy: the same answer in any company"
    assert all(said[i] in (400, 404, 413, 429) for i in range(2, 200, 5)) and quiet(service)
    assert len(service.shelf) <= 40 and threading.active_count() < 150


def hang_up(url, body, cut=None, after=.1, when=lambda: True):
    "Sends a request, or a part of it, waits until `when`, and is gone."
    host, port, data = *url.removeprefix("http://").removesuffix("/v1").split(":"), json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=20) as s:
        s.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:cut])
        time.sleep(after)
        end = time.monotonic() + 60
        while not when(): assert time.monotonic() < end; time.sleep(.01)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

def test_a_client_that_leaves_takes_its_answer_along(house, monkeypatch):
    url, service = house
    assert quiet(service)
    seen, engine, submit, step = [], service.worker.engine, service.worker.engine.submit, service.worker.engine.step
    monkeypatch.setattr(engine, "submit", lambda r: seen.append(r) or submit(r))
    with WEB.stream("POST", f"{url}/chat/completions", json=ask(model="cooper-perceive", stream=True), timeout=60) as r:
        next(l for l in r.iter_lines() if l and '"role"' not in l) # roles are told before anything is asked of the engine
    monkeypatch.setattr(engine, "step", lambda: time.sleep(.5) or step()) # so none is done when the client goes
    hang_up(url, ask(model="cooper-perceive", n=4), when=lambda: len(seen) == 5)
    assert quiet(service)
    assert {r.ended for r in seen} == {"cancelled"} and len(seen) == 5, [r.ended for r in seen]


def test_whoever_leaves_is_noticed_at_any_moment(house, monkeypatch, capfd):
    "During the upload, while pictures are decoded, before the first byte of a stream, and while words come faster than anybody looks."
    url, service = house
    assert quiet(service)
    seen, submit, step, picture = [], service.worker.engine.submit, service.worker.engine.step, service._picture
    monkeypatch.setattr(service.worker.engine, "submit", lambda r: seen.append(r) or submit(r))
    for cut in (0, 9, 5000): hang_up(url, ask(), cut)
    monkeypatch.setattr(service, "_picture", lambda *a: time.sleep(.3) or picture(*a))
    for stream in (True, False): hang_up(url, ask(stream=stream))
    time.sleep(.5)
    assert quiet(service) and {(r.ended, r.tokens) for r in seen} <= {("cancelled", 0), ("cancelled", 1)}, [(r.ended, r.tokens) for r in seen]
    monkeypatch.undo(); seen.clear()
    monkeypatch.setattr(service.worker.engine, "submit", lambda r: seen.append(r) or submit(r))
    monkeypatch.setattr(service.worker.engine, "step", lambda: (time.sleep(.05), step())[1])
    hang_up(url, ask(model="cooper-reason"), after=.3)
    assert quiet(service) and [r.ended for r in seen] == ["cancelled"]
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_queue_says_come_back(co, monkeypatch):
    with serving(co, batch_size=1, max_queue=1, max_choices=4) as url:
        r = WEB.post(f"{url}/chat/completions", json=ask(n=3), timeout=60)
        assert r.status_code == 429 and int(r.headers["retry-after"]) >= 1 and "room for 2" in r.json()["error"]["message"]
        assert WEB.post(f"{url}/chat/completions", json=ask(n=2), timeout=60).status_code == 200
    picture = io.BytesIO(); Image.new("RGB", (500, 500)).save(picture, "PNG")
    body = ask(data_url(picture.getvalue()))
    body["messages"][0]["content"] *= 4
    decoded, real = [], serve.from_data_url
    monkeypatch.setattr(serve, "from_data_url", lambda *a: decoded.append(1) or real(*a))
    with serving(co, max_held_mb=1) as url: assert "memory" in WEB.post(f"{url}/chat/completions", json=body, timeout=60).json()["error"]["message"] and len(decoded) == 2, "it is counted as it is decoded"
    with serving(co, max_held_mb=.01) as url: assert "memory" in WEB.post(f"{url}/chat/completions", json=ask(), timeout=60).json()["error"]["message"]


def test_an_answer_has_a_deadline(co):
    with serving(co, max_seconds=.01) as url: assert WEB.post(f"{url}/chat/completions", json=ask(model="cooper-perceive"), timeout=60).status_code == 504


def test_a_fault_of_the_engine_is_told_and_survived(house, capfd):
    url, service = house
    assert quiet(service)
    step, service.worker.engine.step = service.worker.engine.step, lambda: (_ for _ in ()).throw(RuntimeError("secret of the inside"))
    try: r = post(house, ask())
    finally: del service.worker.engine.step
    assert r.status_code == 500 and "secret" not in r.text and "secret" in capfd.readouterr().err
    strokes = iter(range(3))
    def half_way(): next(strokes, None) is not None or (_ for _ in ()).throw(ValueError("secret of the inside")); return step()
    service.worker.engine.step = half_way
    try:
        with pytest.raises(openai.APIError, match="its own log says why"):
            for _ in openai.OpenAI(base_url=url, api_key="none", max_retries=0).chat.completions.create(**ask(model="cooper-reason", stream=True)): pass
    finally: del service.worker.engine.step
    assert post(house, ask()).status_code == 200 and quiet(service)


def test_a_server_that_is_told_to_stop_finishes_what_it_began(co):
    with ThreadPoolExecutor(1) as pool:
        with serving(co) as url:
            answer = pool.submit(WEB.post, f"{url}/chat/completions", json=ask(model="cooper-perceive"), timeout=60)
            while "cooper_answers 1.0" not in WEB.get(f"{url.removesuffix('/v1')}/metrics").text: time.sleep(.01)
        assert answer.result().status_code == 200
    with pytest.raises(httpx.ConnectError): WEB.get(f"{url}/models")
    assert not any(t.name == "cooper-engine" and t.is_alive() and not t.daemon for t in threading.enumerate())


def test_a_server_that_stops_says_so_to_whom_it_cannot_finish(co, capfd, monkeypatch):
    def streamed():
        with WEB.stream("POST", f"{url}/chat/completions", json=ask(model="cooper-perceive", stream=True), timeout=60) as r: return list(r.iter_lines())
    make = co.engine
    def slow(**more):
        engine = make(**more); step = engine.step
        engine.step = lambda: (time.sleep(.2), step())[1]
        return engine
    monkeypatch.setattr(co, "engine", slow, raising=False)
    with ThreadPoolExecutor(2) as pool:
        with serving(co, grace_seconds=.3) as url:
            whole, stream = pool.submit(WEB.post, f"{url}/chat/completions", json=ask(model="cooper-perceive"), timeout=60), pool.submit(streamed)
            while "cooper_answers 2.0" not in WEB.get(f"{url.removesuffix('/v1')}/metrics").text: time.sleep(.01)
    r, lines, said = whole.result(), [l for l in stream.result() if l], capfd.readouterr().err
    assert r.status_code == 503 and int(r.headers["retry-after"]) >= 1 and r.json()["error"]["type"] == "server_error"
    assert "stopping" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"] and "Traceback" not in said, said


def test_paths_stay_below_the_root(tmp_path):
    inside, outside = tmp_path/"in", tmp_path/"out"
    inside.mkdir(); outside.mkdir()
    for folder in (inside, outside): (folder/"room.png").write_bytes(ROOM.read_bytes())
    (inside/"link.png").symlink_to(outside/"room.png"); (inside/"up").symlink_to(outside); (inside/"own.png").symlink_to(inside/"room.png")
    (tmp_path/"inner").mkdir(); (tmp_path/"inner"/"room.png").write_bytes(ROOM.read_bytes()) # a name that begins alike
    os.mkfifo(inside/"pipe.png"); (outside/"back").symlink_to(inside) # would tell that there is such a link
    settings = ServeSettings(root=str(inside))
    (inside/"my room.png").write_bytes(ROOM.read_bytes())
    for good in ((inside/"my room.png").as_uri(), f"file://{inside}/r%6fom.png", "file://my%20room.png", "room.png", "own.png", "file://room.png", str(inside/"room.png"), f"file://{inside}/room.png", "./room.png"): assert from_path(good, settings).size == (128, 128)
    for bad in ("link.png", "up/room.png", "../out/room.png", str(outside/"room.png"), f"file://{outside}/room.png", "../inner/room.png", "pipe.png", "", ".", "room.png\0", "x" * 5000,
                "file://localhost/etc/passwd", "..%2fout%2froom.png", "FILE:///etc/passwd", "~/room.png", "file://%2e%2e/out/room.png", f"file://{tmp_path}%2fout%2froom.png", "file://room.png%00", "file://%ff%fe", "r%6fom.png", "file://r%256fom.png",
                f"/etc/passwd/../..{inside}/room.png", f"/etc/nothing/../..{inside}/room.png", f"{outside}/back/room.png", "./../in/room.png"):
        with pytest.raises(Refused, match="there is no picture at that path"): from_path(bad, settings)
    assert _bytes_below(inside, ("room.png",), 10 ** 6) == ROOM.read_bytes()
    for names in (("link.png",), ("up", "room.png"), ("pipe.png",), ()): # as if they had been put there after the check
        with pytest.raises(OSError): _bytes_below(inside, names, 10 ** 6)
    with pytest.raises(OSError, match="too large"): _bytes_below(inside, ("room.png",), 99)


def test_a_token_is_asked_for(co):
    with pytest.raises(ValueError, match="COOPER_SERVE_TOKEN"): required_token(ServeSettings(host="0.0.0.0"), {})
    assert required_token(ServeSettings(host="0.0.0.0"), {"COOPER_SERVE_TOKEN": "s3"}) == "s3"
    for token in ("", " "):
        with pytest.raises(ValueError, match="`token` of `serving`"), serving(co, token, host="0.0.0.0"): pass
    with serving(co, token="s3cret") as url:
        for shown in (None, "Bearer wrong", "Bearer s3crét", "s3cret", "Bearer s3cret"):
            headers = {"Authorization": shown.encode("latin-1")} if shown else {}
            for r in (WEB.get(f"{url}/models", headers=headers), WEB.get(f"{url}/traces/x", headers=headers), WEB.post(f"{url}/chat/completions", json=ask(), headers=headers, timeout=60)):
                assert (r.status_code == 401) == (shown != "Bearer s3cret") and "s3cret" not in r.text
        assert WEB.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_a_page_of_another_name_for_this_address_is_refused(house):
    assert WEB.get(f"{house[0]}/models", headers={"Host": "evil.example"}).status_code == 400
    assert WEB.get(f"{house[0]}/models", headers={"Host": "[::1]:8000"}).status_code == 200


def test_what_is_counted(house):
    assert post(house, ask()).status_code == 200
    text = WEB.get(f"{house[0].removesuffix('/v1')}/metrics").text
    assert 'cooper_requests_total{status="200"}' in text and "cooper_seconds_bucket" in text and "cooper_answers 0.0" in text
    assert WEB.get(f"{house[0]}/traces/none").status_code == 404 and WEB.get(f"{house[0]}/nothing").json()["error"]["message"] == "Not Found"


def test_the_command_says_what_is_wrong(capsys, monkeypatch):
    monkeypatch.delenv("COOPER_SERVE_TOKEN", raising=False)
    for args, words in ((["--checkpoint", "no/such/folder"], "no/such/folder"), (["--host", "0.0.0.0"], "COOPER_SERVE_TOKEN"), (["--max_queue", "0"], "'max_queue' is 0"), (["--root", "nowhere"], "expected a folder")):
        assert main(args) == 1
        assert words in capsys.readouterr().err, args


def test_the_command_says_where_it_listens(co, capfd, monkeypatch):
    monkeypatch.setattr(serve, "load", lambda _: co)
    with socket.create_server(("127.0.0.1", 0)) as taken: assert main(["--port", str(taken.getsockname()[1])]) == 1
    said = capfd.readouterr().err
    assert "in use" in said and "http://" not in said
    with pytest.raises(OSError, match="could not be taken"), socket.create_server(("127.0.0.1", 0)) as taken, serving(co, port=taken.getsockname()[1]): pass
    hosts = ["127.0.0.1"]
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6): hosts.append("::1")
    for host in hosts:
        told, server = [], serve._server(co, ServeSettings(host=host, port=0, idle_seconds=9), "", lambda address: (told.append(address), setattr(server, "should_exit", True)))
        server.run()
        assert told[0].startswith("http://[::1]:" if host == "::1" else "http://127.0.0.1:") and ":0/" not in told[0] and server.config.timeout_keep_alive == 9
    capfd.readouterr()


def test_the_shelf_is_bounded():
    shelf = Shelf(3, 1)
    for i in range(9): shelf.put(dict(id=str(i), x="." * 300_000), "page")
    assert list(shelf.rows) == ["6", "7", "8"] and shelf.size < 2 ** 20
