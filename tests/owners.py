"Small data sets in the layouts of their owners, for tests: what the archives unpack to."
import json, struct, zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cooper.perceive.data import VKITTI_CLASSES

SIZE = (24, 40) # height, width


def put(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def photo(seed, size=SIZE): return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def hdf5(path, **arrays):
    import h5py
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        for key, value in arrays.items(): f.create_dataset(key, data=value)
    return path


UV = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
LENS = np.array([[.577, .01, .06], [0., .433, -.08], [.02, .03, -1.]]) # tilted and shifted


def rays(depth, lens): # the length of the ray of each pixel, worked out pixel by pixel
    H, W = depth.shape
    out = np.empty(depth.shape)
    for y in range(H):
        for x in range(W):
            direction = lens @ [(2*x + 1)/W - 1, 1 - (2*y + 1)/H, 1]
            out[y, x] = depth[y, x]*np.linalg.norm(direction)/-direction[2]
    return out


def hypersim(folder, scenes=(("ai_001_001", "train"), ("ai_003_010", "val")), frames=(0, 7)):
    "Two scenes of two frames and a hole; the second camera is no pinhole. Returns the true depth."
    depth = np.linspace(2, 6, SIZE[0]*SIZE[1]).reshape(SIZE)
    lenses = dict(zip((s for s, _ in scenes), (np.diag([.577, .433, -1.]), LENS)))
    rows = [f"{s},cam_00,{n},True,,{split}" for s, split in scenes for n in frames] + ["ai_001_001,cam_00,9,False,bad,"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder/"metadata_images_split_scene_v1.csv").write_text("\n".join(["scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name", *rows]) + "\n")
    (folder/"metadata_camera_parameters.csv").write_text("\n".join([",".join(["scene_name", "settings_camera_fov", *UV]), *(",".join([s, "1.047", *map(str, m.ravel())]) for s, m in lenses.items())]) + "\n")
    for s, _ in scenes:
        length = rays(depth, lenses[s]).astype(np.float16)
        length[3, 4] = np.nan
        for n in frames:
            at = folder/s/"images"
            hdf5(at/f"scene_cam_00_geometry_hdf5/frame.{n:04d}.depth_meters.hdf5", dataset=length)
            hdf5(at/f"scene_cam_00_geometry_hdf5/frame.{n:04d}.render_entity_id.hdf5", dataset=np.full(SIZE, 5, np.int32))
            hdf5(at/f"scene_cam_00_final_hdf5/frame.{n:04d}.color.hdf5", dataset=(photo(n)/100).astype(np.float16))
            put(at/f"scene_cam_00_final_preview/frame.{n:04d}.tonemap.jpg", photo(n))
    return depth


def vkitti(folder, scenes=("Scene01", "Scene02"), frames=2, size=SIZE):
    "Both cameras, one weather. Returns the true class numbers."
    numbers = np.random.default_rng(1).integers(0, len(VKITTI_CLASSES), size)
    for scene in scenes:
        for camera in (0, 1):
            for n in range(frames):
                at = folder/scene/"fog/frames"
                put(at/f"rgb/Camera_{camera}/rgb_{n:05d}.jpg", photo(n, size))
                put(at/f"depth/Camera_{camera}/depth_{n:05d}.png", np.where(numbers == 2, 65535, 1234 + n).astype(np.uint16))
                put(at/f"classSegmentation/Camera_{camera}/classgt_{n:05d}.png", np.array(list(VKITTI_CLASSES.values()), np.uint8)[numbers])
                put(at/f"instanceSegmentation/Camera_{camera}/instancegt_{n:05d}.png", (numbers > 12).astype(np.uint8))
    return numbers


def kitti(folder, splits=("train", "val"), size=(375, 1242)):
    "One drive for each split, one frame, both cameras. Returns raw values, 0 where no point fell."
    raw = np.zeros(size, np.uint16)
    raw[::7, ::11] = 2560 # 10 m
    for k, split in enumerate(splits):
        drive = f"2011_09_26_drive_{k + 1:04d}_sync"
        for camera in ("image_02", "image_03"):
            put(folder/split/drive/"proj_depth/groundtruth"/camera/"0000000005.png", raw)
            put(folder/"2011_09_26"/drive/camera/"data/0000000005.png", photo(k, size), compress_level=1)
    return raw


def mat5(path, compressed=True, **arrays):
    "MATLAB's format 5: double arrays."
    def part(kind, data): return struct.pack("<II", kind, len(data)) + data + b"\0"*(-len(data) % 8)
    def small(kind, data): return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0") if len(data) <= 4 else part(kind, data)
    body = b"MATLAB 5.0 MAT-file".ljust(124, b" ") + struct.pack("<H", 0x0100) + b"IM"
    for name, values in arrays.items():
        matrix = part(6, struct.pack("<II", 6, 0)) + part(5, struct.pack("<ii", len(values), 1)) + small(1, name.encode()) + part(9, np.asarray(values, "<f8").tobytes())
        whole = struct.pack("<II", 14, len(matrix)) + matrix
        body += (lambda z: struct.pack("<II", 15, len(z)) + z)(zlib.compress(whole)) if compressed else whole
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def nyu(folder, count=5, size=SIZE):
    "The labelled set, transposed as MATLAB stores it. Returns photographs, measured and filled depth, labels."
    import h5py
    H, W = size
    rng = np.random.default_rng(3)
    images, filled, labels = rng.integers(0, 256, (count, H, W, 3)).astype(np.uint8), rng.uniform(1, 9, (count, H, W)).astype(np.float32), rng.integers(0, 4, (count, H, W))
    measured = np.where(rng.random((count, H, W)) < .2, 0, filled).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder/"nyu_depth_v2_labeled.mat", "w") as f:
        f["images"] = images.transpose(0, 3, 2, 1)
        for key, value in dict(depths=filled, rawDepths=measured, labels=labels.astype(np.uint16), instances=labels.astype(np.uint8)).items(): f[key] = value.transpose(0, 2, 1)
        names = f.create_dataset("names", (1, 3), h5py.ref_dtype)
        for k, name in enumerate(("book", "bottle", "cabinet")):
            f[f"#refs#/{k}"] = np.array([[ord(c)] for c in name], np.uint16)
            names[0, k] = f[f"#refs#/{k}"].ref
    mat5(folder/"splits.mat", trainNdxs=[1, 2, 4], testNdxs=[3, 5])
    return images, measured, filled, labels


def ade20k(folder, split="training", name="ADE_train_00000001", classes=((1, "wall"), (2978, "wall clock"), (471, "chair"), (471, "chair")), size=SIZE):
    "Class numbers in red and green, objects in blue, names in JSON. Returns both numberings."
    number, thing = np.zeros(size, int), np.zeros(size, int)
    for k, (n, _) in enumerate(classes): number[:, 2 + k*8:8 + k*8], thing[:, 2 + k*8:8 + k*8] = n, k + 1
    at = folder/"images/ADE"/split/"home_or_hotel/kitchen"
    put(at/f"{name}_seg.png", np.stack([number//256*10, number % 256, thing*17], -1).astype(np.uint8))
    put(at/f"{name}_parts_1.png", np.zeros((*size, 3), np.uint8))
    put(at/f"{name}.jpg", photo(4, size))
    objects = [dict(id=k, name=n, name_ndx=i, parts=dict(hasparts=[], ispartof=[], part_level=0), instance_mask=f"{name}/instance_{k:03d}_{name}.png") for k, (i, n) in enumerate(classes)]
    (at/f"{name}.json").write_text(json.dumps(dict(annotation=dict(filename=f"{name}.jpg", object=objects))))
    return number, thing


def ade150(folder, split="validation", name="ADE_val_00000001", size=SIZE):
    numbers = np.random.default_rng(5).integers(0, 151, size)
    put(folder/f"annotations/{split}/{name}.png", numbers.astype(np.uint8))
    put(folder/f"images/{split}/{name}.jpg", photo(6, size))
    return numbers


def cut(path, keep=.6):
    "What a download leaves that broke off."
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:int(len(data)*keep)])
    return path
