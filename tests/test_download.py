"Fetching and unpacking: a hub on this machine that breaks off, rots and lies, and archives that nobody should trust."
import gzip, hashlib, io, json, os, random, re, subprocess, sys, tarfile, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

import cooper
from cooper.model import checkpoint
from cooper.model.checkpoint import BAGEL, SOURCES, Limits, download, find_parts, main, survey, unpack

from house import ROOT

GOLDEN = ROOT/"tests/golden/bagel-tiny/checkpoint"
SET = SOURCES["train-set"][0]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# A hub


class Hub:
    "Serves `repos`: (kind, id) -> {file: bytes}. `faults`: file -> what is done to its bytes. `log`: (file, first byte asked for)."
    def __init__(self):
        self.repos, self.faults, self.log = {}, {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *args): pass
            def do_GET(self): hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        for (kind, repo), files in self.repos.items():
            prefix = "" if kind == "model" else "datasets/"
            if path.startswith(f"/api/{kind}s/{repo}"): return self.send(request, json.dumps(listing(repo, files)).encode())
            if path.startswith(f"/{prefix}{repo}/resolve/{COMMIT}/"): return self.file(request, path.split(COMMIT + "/", 1)[1], files)
        self.send(request, b"{}", 404)

    def file(self, request, name, files):
        start = int((re.match(r"bytes=(\d+)-", request.headers.get("Range", "")) or [0, 0])[1])
        self.log.append((name, start))
        data, fault = files[name], self.faults.get(name)
        if fault == "cut": # half of it, then nothing more
            self.faults[name] = "down"
            return self.send(request, data[:len(data) // 2], length=len(data))
        if fault == "down": return self.send(request, b"", 503)
        if fault in ("rot", "rot once"):
            data = data[:-1] + bytes([data[-1] ^ 255])
            if fault == "rot once": del self.faults[name]
        self.send(request, data[start:], 206 if start else 200, start=start, total=len(data))

    def send(self, request, data, status=200, length=None, start=0, total=0):
        request.send_response(status)
        request.send_header("Content-Length", str(length or len(data)))
        request.send_header("X-Repo-Commit", COMMIT)
        if start: request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        request.end_headers(); request.wfile.write(data)
        if length: request.wfile.flush(); request.close_connection = True


def listing(repo, files):
    def row(name, data):
        small = name.endswith((".json", ".txt"))
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        lfs = {} if small else dict(lfs=dict(sha256=hashlib.sha256(data).hexdigest(), size=len(data), pointerSize=130))
        return dict(rfilename=name, size=len(data), blobId=git) | lfs
    return dict(id=repo, sha=COMMIT, siblings=[row(n, d) for n, d in files.items()])


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1"); monkeypatch.setenv("no_proxy", "127.0.0.1")
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    yield hub
    hub.server.shutdown(); hub.server.server_close(); huggingface_hub.close_session()


def tar(*entries, mode="w:gz", **options):
    "The bytes of an archive of (name, kind or TarInfo fields, bytes or target)."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as t:
        for name, kind, what in entries:
            info = tarfile.TarInfo(name); info.type = kind
            if isinstance(what, bytes): info.size = len(what)
            else: info.linkname = what
            t.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return out.getvalue()


FILE, FOLDER, SYM, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
PICTURES = {f"images/{i}.png": random.Random(i).randbytes(900) for i in range(6)} | {"RL_data.jsonl": b'{"flag": "positive"}\n'} # the same every time: where a damaged stream breaks depends on its bytes


def split(data, size=2000, name="COOPER_Train_Set.tar.gz.part.a"):
    return {f"{name}{'abcdefgh'[i // size]}": data[i:i + size] for i in range(0, len(data), size)}


def train_set(hub):
    parts = split(tar(*[(n, FILE, d) for n, d in PICTURES.items()]))
    assert len(parts) == 3
    hub.repos["dataset", SET] = {"README.json": b"{}"} | parts
    return parts


def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Fetching


def test_the_training_set_is_fetched_joined_and_unpacked(hub, tmp_path):
    parts = train_set(hub)
    files = cooper.download("train-set", tmp_path/"set")
    assert contents(files) == PICTURES
    assert sorted(hub.log) == sorted((n, 0) for n in [*parts, "README.json"])
    hub.log.clear()
    assert download("train-set", tmp_path/"set") == files and hub.log == [], "what is there is not fetched again"


def test_a_broken_download_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    parts = train_set(hub)
    middle = list(parts)[1]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100) # what is written at once
    hub.faults[middle] = "cut"
    with pytest.raises(ValueError, match=f"{SET}: the download stopped at {middle}.*run it again to go on"): download("train-set", tmp_path)
    assert not (tmp_path/"files").exists() and not (tmp_path/"parts"/middle).exists()
    hub.faults.clear(); hub.log.clear()
    assert contents(download("train-set", tmp_path)) == PICTURES
    assert (middle, len(parts[middle]) // 2) in hub.log, "the second call asks for the second half only"
    assert list(parts)[0] not in [n for n, _ in hub.log] and not (tmp_path/"parts/.partial").exists()


def test_a_damaged_part_is_fetched_again_and_named_if_it_stays_so(hub, tmp_path):
    last = list(train_set(hub))[-1]
    hub.faults[last] = "rot once"
    assert contents(download("train-set", tmp_path/"a")) == PICTURES and hub.log.count((last, 0)) == 2
    hub.faults[last] = "rot"
    with pytest.raises(ValueError, match=f"{last}: other contents than the hub's.*fetched twice"): download("train-set", tmp_path/"b")
    assert not (tmp_path/"b/files").exists()


def test_a_part_that_rots_on_disk_is_fetched_again(hub, tmp_path):
    parts = train_set(hub)
    download("train-set", tmp_path, unpacked=False)
    first = tmp_path/"parts"/list(parts)[0]
    first.write_bytes(first.read_bytes()[:-1] + b"?"); hub.log.clear()
    assert contents(download("train-set", tmp_path)) == PICTURES and hub.log == [(first.name, 0)]


@pytest.mark.parametrize("lose, words", [(1, "part 'ab' is missing between 'aa' and 'ac'"), (2, "parts after this one are missing"),
                                         (0, "the first part is 'ab'; what comes before it is missing")])
def test_a_part_the_hub_lost_is_named(hub, tmp_path, lose, words):
    lost = list(train_set(hub))[lose]
    del hub.repos["dataset", SET][lost]
    with pytest.raises(ValueError, match=words): download("train-set", tmp_path)
    assert not (tmp_path/"files").exists()


def test_a_part_the_hub_holds_cut_off_is_named(hub, tmp_path):
    middle = list(train_set(hub))[1]
    hub.repos["dataset", SET][middle] = hub.repos["dataset", SET][middle][:-7]
    with pytest.raises(ValueError, match=f"{middle}: 1,993 bytes; expected 2,000, as the other parts"): download("train-set", tmp_path)
    assert not (tmp_path/"files").exists()


def test_cooper_comes_with_the_small_files_of_bagel(hub, tmp_path):
    files = {p.name: p.read_bytes() for p in GOLDEN.iterdir()}
    hub.repos["model", BAGEL], hub.repos["model", SOURCES["cooper"][0]] = files, {"ema.safetensors": files["ema.safetensors"]}
    folder = download("cooper", tmp_path/"COOPER")
    assert [n for n, _ in hub.log].count("ema.safetensors") == 1, "BAGEL's 29 GB are not fetched"
    assert (tmp_path/"BAGEL-7B-MoT/llm_config.json").is_file()
    (tmp_path/"BAGEL-7B-MoT/vae_config.json").write_bytes(files["vae_config.json"]) # the released autoencoder has no such file
    co = cooper.load(folder)
    assert co.model.origin.kind == "cooper" and co.model.origin.coverage.complete


@pytest.mark.parametrize("name", ["../outside.json", "/outside.json", "a/../../outside.json"])
def test_a_hub_cannot_write_outside(hub, tmp_path, name):
    hub.repos["model", "some/body"] = {name: b"{}"}
    with pytest.raises(ValueError, match="some/body: file '.*outside.json'"): download("some/body", tmp_path/"in/side")
    assert contents(tmp_path) == {} and hub.log == []


def test_what_cannot_be_had_is_said(hub, tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="'coper' is unknown; expected one of bagel, cooper-amg, cooper, train-set"): download("coper")
    assert main(["no/body", "--into", str(tmp_path)]) == 1
    assert "cooper_download: no/body: the Hugging Face hub does not give it" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="offline"): download("bagel", tmp_path)


def test_folders_of_the_repository_are_not_asked_for_on_the_hub(hub, tmp_path, monkeypatch):
    "An installed cooper that runs elsewhere has no data folder: the default checkpoint is missing, and is no name on the hub."
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(checkpoint, "resolve", lambda p: tmp_path/"nowhere"/str(p))
    for where in ("data/tiny-cooper", "outputs/sft"):
        with pytest.raises(ValueError, match=f"{where}: there is no such folder"): cooper.load(where)
    assert not hub.log


def test_too_little_room_is_said_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    train_set(hub)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda p: type("Usage", (), dict(free=1000)))
    with pytest.raises(ValueError, match="bytes more, and 1,000 are free"): download("train-set", tmp_path)
    assert hub.log == []


def test_the_console_script(tmp_path):
    done = subprocess.run([sys.executable, "-m", "cooper.model.checkpoint", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage: cooper_download") and "cooper-amg" in done.stdout and not done.stderr
    line, = re.findall(r"^console_scripts = (.*)$", (ROOT/"settings.ini").read_text(), re.M)
    assert "cooper_download=cooper.model.checkpoint:main" in line.split()


# Parts


def archive(folder, data, name="set.tar.gz", size=None):
    folder.mkdir(parents=True, exist_ok=True)
    for n, d in (split(data, size, f"{name}.part.a") if size else {name: data}).items(): (folder/n).write_bytes(d)
    return folder


@pytest.mark.parametrize("names", [["s.tar.00", "s.tar.01"], ["s.tar.part1", "s.tar.part2"], ["s.tgz.part-001", "s.tgz.part-002"], ["s.tar.gz.aa", "s.tar.gz.ab"],
                                   [f"s.tar.part.{i}" for i in range(1, 12)], [f"s.tar.{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(30)]])
def test_parts_are_put_in_order(tmp_path, names):
    for n in names: (tmp_path/n).touch()
    (tmp_path/"README.md").touch()
    (parts,) = find_parts(tmp_path).values()
    assert [p.name for p in parts] == names


def test_parts_on_this_machine(tmp_path, capsys):
    archive(tmp_path/"parts", tar(*[(n, FILE, d) for n, d in PICTURES.items()]), size=2000)
    assert main([str(tmp_path/"parts"), "--parts", "--into", str(tmp_path/"files")]) == 0
    assert contents(tmp_path/"files") == PICTURES and capsys.readouterr().out.strip() == str(tmp_path/"files")
    assert unpack(tmp_path/"parts", tmp_path/"files") == tmp_path/"files", "unpacked already"
    (tmp_path/"other").mkdir(); (tmp_path/"other/mine").write_text("x")
    with pytest.raises(ValueError, match="other: exists, and was not unpacked from these parts"): unpack(tmp_path/"parts", tmp_path/"other")
    assert contents(tmp_path/"other") == {"mine": b"x"}


def test_a_killed_unpacking_goes_on(tmp_path, monkeypatch):
    archive(tmp_path/"parts", tar(*[(n, FILE, d) for n, d in PICTURES.items()], ("link", SYM, "images")), size=2000)
    written, chunks = [], checkpoint._Archive.chunks
    def killed(self, entry):
        if len(written) == 3: raise KeyboardInterrupt
        written.append(entry.name)
        yield from chunks(self, entry)
    monkeypatch.setattr(checkpoint._Archive, "chunks", killed)
    with pytest.raises(KeyboardInterrupt): unpack(tmp_path/"parts", tmp_path/"files")
    assert not (tmp_path/"files").exists(), "nothing half-unpacked looks complete"
    def counted(self, entry): written.append(entry.name); yield from chunks(self, entry)
    monkeypatch.setattr(checkpoint._Archive, "chunks", counted)
    assert contents(unpack(tmp_path/"parts", tmp_path/"files"))["images/5.png"] == PICTURES["images/5.png"]
    assert sorted(written) == sorted(PICTURES), "each file is written once"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".unpacked-files.json", "files", "parts"]


def test_other_parts_do_not_go_on_with_what_these_began(tmp_path, monkeypatch):
    archive(tmp_path/"a", tar(("x", FILE, b"1" * 50), ("y", FILE, b"1" * 50))); archive(tmp_path/"b", tar(("x", FILE, b"2" * 50), ("y", FILE, b"2" * 50)))
    link = os.replace
    def killed(a, b):
        if Path(b).name == "y": raise KeyboardInterrupt
        link(a, b)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt): unpack(tmp_path/"a", tmp_path/"files")
    monkeypatch.setattr(os, "replace", link)
    assert contents(unpack(tmp_path/"b", tmp_path/"files")) == {"x": b"2" * 50, "y": b"2" * 50}


# Archives that nobody should trust


def sparse(pax):
    "A file that claims a gigabyte."
    if not pax:
        head = bytearray(tarfile.TarInfo("big").tobuf(tarfile.GNU_FORMAT)); head[156:157] = tarfile.GNUTYPE_SPARSE
        head[386:398], head[483:495] = b"00000000000\0", b"07777777777\0"
    else:
        info = tarfile.TarInfo("big"); info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**30), "GNU.sparse.name": "big"}
        head = bytearray(info.tobuf(tarfile.PAX_FORMAT))
    at = len(head) - 512
    head[at + 148:at + 156] = b" " * 8
    head[at + 148:at + 156] = b"%06o\0 " % sum(head[at:])
    return bytes(head) + bytes(1024)


def long_header():
    info = tarfile.TarInfo("x"); info.pax_headers = {"comment": "c" * 200_000}
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def pax(name, kind=FILE, **headers): # an entry, and what an extended header says of it
    info = tarfile.TarInfo(name); info.type, info.pax_headers = kind, headers
    if kind == FILE: info.size = 1
    else: info.linkname = name
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as t: t.addfile(info, io.BytesIO(b"x"))
    return out.getvalue()


def pax_lie(size, mode="w:gz"): # an entry of three bytes that says it is of others
    info = tarfile.TarInfo("big"); info.size = 3; info.pax_headers = {"size": size}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as t: t.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def header(name="big", size=b"00000000003", kind=b"0", more=b""): # an entry of 512 bytes, whatever it says of its size, and an end
    head = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    head[124:136], head[156:157], head[148:156] = size.ljust(12, b"\0")[:12], kind, b" " * 8
    head[345:345 + len(more)] = more
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def base256(n): return bytes([255 if n < 0 else 128]) + (n % 2**88).to_bytes(11, "big") # as GNU tar writes what eight octal digits cannot


def global_pax(**headers): # an extended header for all entries
    rows = [f" {k}={v}\n".encode() for k, v in headers.items()]
    data = b"".join(next(b"%d" % n + r for n in range(len(r), len(r) + 9) if len(b"%d" % n + r) == n) for r in rows)
    return header("pax", b"%011o" % len(data), b"g") + data.ljust(-(-len(data) // 512) * 512, b"\0")


END = b"abc".ljust(512, b"\0") + bytes(1024)
LIES = { # a size that is a lie -> what is said
    "in a header": (pax_lie("99000000000"), "'big' says it is of 99,000,000,000 bytes, and at most 4,2"), "in a header, plain": (pax_lie("99000000000", "w"), "'big' says it is of 99,000,000,000 bytes, and at most 10,240"),
    "negative, in a header": (pax_lie("-5"), "'big' says it is of -5 bytes"), "far negative, in a header": (pax_lie("-99999999"), "'big' says it is of -99,999,999 bytes"),
    "octal": (header(size=b"77777777777") + END, "'big' says it is of 8,589,934,591 bytes, and at most 2,048"), "octal, gzip": (gzip.compress(header(size=b"77777777777") + END), "'big' says it is of 8,589,934,591 bytes"),
    "base 256": (gzip.compress(header(size=base256(2**80)) + END), "'big' says it is of 1,208,925,819,614,629,174,706,176 bytes"), "base 256, negative": (gzip.compress(header(size=base256(-2**40)) + END), "'big' says it is of -1,099,511,627,776 bytes"),
    "for all": (gzip.compress(global_pax(size="99000000000") + header() + END), "'big' says it is of 99,000,000,000 bytes|damaged here"), "of an unknown kind": (gzip.compress(header(size=b"77777777777", kind=b"Z") + END), "'big' says it is of 8,589,934,591 bytes|of type b'Z'"),
    "of a link": (gzip.compress(header(size=b"77777777777", kind=b"2") + END), "'big' says it is of|symlink 'big' leads"), "of a folder": (gzip.compress(header(size=b"77777777777", kind=b"5") + END), "'big' says it is of"),
    "of a long name": (gzip.compress(header("././@LongLink", base256(2**40), b"L") + END), "an extended header of 1,099,511,627,776 bytes"), "of a long name, negative": (gzip.compress(header("././@LongLink", base256(-1), b"L") + END), "an extended header of -1 bytes"),
    "sparse, old GNU": (gzip.compress(header(kind=b"S", more=bytes(41) + b"\0" * 97 + b"77777777777\0") + END), "'big' is a sparse file"),
    "sparse, pax 0.0": (pax("big", **{"GNU.sparse.size": "99000000000", "GNU.sparse.numblocks": "1", "GNU.sparse.offset": "0", "GNU.sparse.numbytes": "1"}), "'big' is a sparse file"),
    "sparse, pax 0.1": (pax("big", **{"GNU.sparse.size": "99000000000", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1", "GNU.sparse.name": "big"}), "is a sparse file"),
    "sparse, pax 1.0": (pax("big", **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99000000000", "GNU.sparse.name": "big"}), "is a sparse file"),
    "sparse, one word of it": (pax("big", **{"GNU.sparse.realsize": "99000000000"}), "says it is of 99,000,000,000 bytes"), "sparse, a small word": (pax("big", **{"GNU.sparse.realsize": "9000"}), "is a sparse file"), "sparse, star": (pax("big", **{"SCHILY.realsize": "99000000000"}), "is a sparse file"),
    "sparse, Solaris": (pax("big", **{"SUN.holesdata": " 0 99000000000"}), "is a sparse file"), "sparse, for all": (gzip.compress(global_pax(**{"GNU.sparse.realsize": "99000000000"}) + header() + END), "says it is of 99,000,000,000 bytes"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_size_that_is_a_lie_is_refused_at_once(tmp_path, what):
    data, words = LIES[what]
    archive(tmp_path/"parts", data)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=words) as e: unpack(tmp_path/"parts", tmp_path/"files")
    assert time.perf_counter() - start < 20 and "set.tar.gz: " in str(e.value) and not (tmp_path/"files").exists()


def test_a_size_that_could_be_is_not_waited_for(tmp_path):
    "Parts so large that 40 GB could come out of them, and one entry that says so: the stream ends, and that is noticed when it does."
    for i, data in enumerate((header(size=base256(4 * 10**10)) + b"abc", bytes(10**6), b"\0" * 10**5)): (tmp_path/f"set.tar.part.a{'abc'[i]}").write_bytes(data)
    start = time.perf_counter()
    archive_ = checkpoint._Archive(sorted(tmp_path.glob("set*")), Limits()); archive_.most = 10**12
    with pytest.raises(ValueError, match="part.ac: the stream ends inside an entry; the archive is damaged here, or parts after this one are missing"): list(archive_)
    assert time.perf_counter() - start < 20


def rotten(data, at): return data[:at] + bytes([data[at] ^ 255]) + data[at + 1:]


GOOD = tar(*[(n, FILE, d) for n, d in PICTURES.items()])
PLAIN = tar(("a", FILE, b"x" * 2000), ("b", FILE, b"y"), mode="w")
BAD = {
    "traversal": (tar(("../evil", FILE, b"x")), "'../evil' climbs out"), "traversal inside": (tar(("a/../../evil", FILE, b"x")), "climbs out"),
    "a folder outside": (tar(("../evil", FOLDER, b"")), "climbs out"),
    "absolute": (tar(("/evil", FILE, b"x")), "is absolute"), "a drive": (tar(("C:evil", FILE, b"x")), "is absolute"),
    "backslash": (tar(("a\\..\\..\\evil", FILE, b"x")), "backslash"), "control": (tar(("a\nb", FILE, b"x")), "control character"),
    "long path": (tar(("/".join(["d"] * 1500), FILE, b"x")), "is a path of 2,999 bytes; expected at most 2,048"), "long name": (tar(("n" * 300, FILE, b"x")), "more than 255 bytes"),
    "symlink out": (tar(("a", SYM, "../../evil")), "symlink 'a' leads out"), "symlink absolute": (tar(("a", SYM, "/etc/passwd")), "leads out, to '/etc/passwd'"),
    "symlink out from below": (tar(("d/e/a", SYM, "../../../evil")), "leads out"),
    "written through a link": (tar(("d", FOLDER, b""), ("a", SYM, "d"), ("a/evil", FILE, b"x")), "'a' is a symlink and a folder at once"),
    "a link behind its file": (tar(("a/evil", FILE, b"x"), ("a", SYM, "b"), ("b", FOLDER, b"")), "'a' is a symlink and a folder"),
    "link to a link": (tar(("f", FILE, b"x"), ("a", SYM, "f"), ("b", SYM, "a")), "symlink 'b' leads to 'a', which is no file or folder"),
    "link to nothing": (tar(("a", SYM, "b")), "symlink 'a' leads to 'b'"), "link to itself": (tar(("a", SYM, "a")), "leads to 'a'"),
    "hard link out": (tar(("a", HARD, "/etc/passwd")), "hardlink 'a' leads out"), "hard link up": (tar(("a", HARD, "../evil")), "leads out"),
    "hard link to a link": (tar(("f", FILE, b"x"), ("s", SYM, "f"), ("a", HARD, "s")), "hardlink 'a' leads to 's', which is no file"),
    "device": (tar(("a", tarfile.CHRTYPE, "")), "a character device"), "block device": (tar(("a", tarfile.BLKTYPE, "")), "a block device"),
    "pipe": (tar(("a", tarfile.FIFOTYPE, "")), "a pipe"), "socket": (tar(("a", b"9", "")), "of type b'9'"),
    "twice": (tar(("a", FILE, b"x"), ("a", FILE, b"y")), "is there twice"), "twice in disguise": (tar(("a/b", FILE, b"x"), ("./a//b", FILE, b"y")), "'./a//b' is there twice"),
    "twice on some disks": (tar(("Images/Caf\u00e9.png", FILE, b"x"), ("images/cafe\u0301.PNG", FILE, b"y")), "is there twice, as 'Images/Caf\u00e9.png': one name where capitals and forms of Unicode"),
    "two folders on one name": (tar(("A", FOLDER, b""), ("a", FOLDER, b"")), "'a' is there twice, as 'A'"), "sharp s": (tar(("stra\u00dfe", FILE, b"x"), ("STRASSE", FILE, b"y")), "'STRASSE' is there twice"),
    "file and folder on some disks": (tar(("A", FILE, b"x"), ("a/b", FILE, b"y")), "'A' is a file and a folder at once: one name"),
    "written through a link on some disks": (tar(("d", FOLDER, b""), ("A", SYM, "d"), ("a/evil", FILE, b"x")), "'A' is a symlink and a folder at once: one name"),
    "hard link to another case": (tar(("File", FILE, b"x"), ("h", HARD, "file")), "hardlink 'h' leads to 'file', which is no file"),
    "traversal in a long name": (tar(("d/" * 60 + "../" * 61 + "evil", FILE, b"x"), format=tarfile.GNU_FORMAT), "climbs out"), "traversal in a header": (pax("ok", path="../evil"), "'../evil' climbs out"),
    "link in a header": (pax("ok", SYM, linkpath="/etc/passwd"), "leads out, to '/etc/passwd'"), "size in a header": (pax("ok", size="999999"), "damaged here"),
    "sparse by an older header": (pax("ok", **{"GNU.sparse.size": "1000000000", "GNU.sparse.map": "0,1", "GNU.sparse.numblocks": "1"}), "'ok' is a sparse file"),
    "of many volumes": (tar(("a", b"M", b"xx"), mode="w"), "'a' is of type b'M'"), "a tar in a tar's clothes": (gzip.compress(GOOD), "unreadable header"), "two archives": (gzip.compress(PLAIN * 2), "data behind the end"),
    "file and folder": (tar(("a", FILE, b"x"), ("a/b", FILE, b"y")), "'a' is a file and a folder at once"), "a file for the folder": (tar((".", FILE, b"x")), "in the place of the folder"),
    "sparse": (sparse(False), "sparse"), "sparse by its headers": (sparse(True), "sparse"), "long header": (long_header(), "an extended header of 200"),
    "bomb": (tar(("zeros", FILE, bytes(2**23))), "a bomb"), "nothing": (tar(), "holds nothing"), "empty": (b"", "0 bytes"),
    "no archive": (b"<html>404</html>" * 99, "unreadable header|not a tar|bad checksum|invalid header|truncated"), "bzip2": (tar(("a", FILE, b"x"), mode="w:bz2"), "is bzip2"),
    "cut off": (GOOD[:-300], "damaged here"), "rotten": (rotten(GOOD, len(GOOD) // 2), "damaged|unreadable|checksum|header"), "rotten checksum": (rotten(GOOD, -6), "damaged"),
    "cut off, plain": (PLAIN[:1500], "damaged|ends without"), "cut off between files": (PLAIN[:2560], "ends without the end marker"),
    "rotten header, plain": (rotten(PLAIN, 2570), "unreadable header"), "more behind": (PLAIN + b"evil" * 200, "data behind the end"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_archives_are_refused_and_write_nothing(tmp_path, what):
    data, words = BAD[what]
    archive(tmp_path/"home/parts", data)
    (tmp_path/"evil").write_text("canary")
    with pytest.raises(ValueError, match=words) as e: unpack(tmp_path/"home/parts", tmp_path/"home/files")
    assert "set.tar.gz" in str(e.value), "the message names the archive"
    assert contents(tmp_path) == {"home/parts/set.tar.gz": data, "evil": b"canary"} and not (tmp_path/"home/files").exists()


def test_limits(tmp_path):
    archive(tmp_path/"parts", GOOD)
    for limits, words in ((Limits(files=3), "more than 3 entries"), (Limits(bytes=4000), "brings the total to 4,500 bytes; expected at most 4,000"),
                          (Limits(ratio=0.5, slack=10), "a bomb")):
        with pytest.raises(ValueError, match=words): unpack(tmp_path/"parts", tmp_path/"files", limits)


def test_no_room_is_said_before_anything_is_unpacked(tmp_path, monkeypatch):
    archive(tmp_path/"parts", GOOD)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda p: type("Usage", (), dict(free=5000)))
    with pytest.raises(ValueError, match="5,421 bytes are to be unpacked, and 5,000 are free"): unpack(tmp_path/"parts", tmp_path/"files")
    assert not (tmp_path/"files").exists()


def test_good_archives_are_unpacked_whole(tmp_path):
    name = "Bilder/größe " + "é" * 60 + ".png"
    entries = [("d", FOLDER, b""), ("d/empty", FILE, b""), (name, FILE, b"x"), ("d/s", SYM, f"../{name}"), ("h", HARD, name), ("e/up", SYM, "../d"), ("./f", FILE, b"y")]
    for mode in ("w", "w:gz"):
        folder = unpack(archive(tmp_path/mode[2:] / "parts", tar(*entries, mode=mode)), tmp_path/mode[2:]/"files")
        assert (folder/"d/s").read_bytes() == (folder/"h").read_bytes() == b"x" and (folder/"d/empty").read_bytes() == b"" and (folder/"e/up").is_dir()
        assert (folder/"f").read_bytes() == b"y" and not (folder/"f").stat().st_mode & 0o7000


MIXED = { # what is done to the parts -> the part that is named, and what is said
    "rotten": (lambda parts: parts | {1: rotten(parts[1], 900)}, "part.a[bc]: ", ""), "the first twice": (lambda parts: parts | {1: parts[0]}, "part.ab: ", "its parts are not of one cut"),
    "exchanged": (lambda parts: parts | {0: parts[1], 1: parts[0]}, "part.aa: ", "its parts are not of one cut"), "of another archive": (lambda parts: parts | {1: PLAIN[:2000]}, "part.ab: ", "unreadable header"),
    "another archive itself": (lambda parts: parts | {1: GOOD[:2000]}, "part.ab: ", "unreadable header"), "zero bytes": (lambda parts: parts | {1: b""}, "part.ab: ", "0 bytes; expected 2,000"),
    "zero bytes at the end": (lambda parts: parts | {2: b""}, "part.ac: ", "0 bytes; expected at most 2,000"), "gone": (lambda parts: {k: v for k, v in parts.items() if k != 1}, "parts: ", "part 'ab' is missing between 'aa' and 'ac'"),
    "one more": (lambda parts: parts | {3: b"junk"}, "part.ac: ", "expected 2,000, as the other parts"),
}


@pytest.mark.parametrize("what", MIXED)
def test_the_part_that_is_wrong_is_named(tmp_path, what):
    change, part, words = MIXED[what]
    (tmp_path/"parts").mkdir()
    for i, data in change({i: GOOD[at:at + 2000] for i, at in enumerate(range(0, len(GOOD), 2000))}).items(): (tmp_path/f"parts/set.tar.gz.part.a{'abcd'[i]}").write_bytes(data)
    with pytest.raises(ValueError, match=f"{part}.*{words}"): unpack(tmp_path/"parts", tmp_path/"files")
    assert not (tmp_path/"files").exists() and not list(tmp_path.glob(".unpack*/files"))
