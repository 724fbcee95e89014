"""Images per second and core, from the bytes in LMDB to the normalized tensor that training uses.

The baseline is the usual way, one picture at a time: Pillow decodes and resizes the shorter side to 256, then center crop,
float, mean and standard deviation, and the batch is stacked. Ours is `training_image` (libjpeg-turbo directly from the bytes,
resizing only if needed), uint8 until the batch is stacked, and the model's own normalization of the whole batch.

    python benchmarks/images.py [--images LMDB] [--rounds 20]

Without `--images`: the seed posts' pictures if they are available, else generated ones of the same sizes.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import torch
from PIL import Image

from cromic_ds.data.images import reencode, training_image
from cromic_ds.models.common.image_encoder import IMAGENET_MEAN, IMAGENET_STD, normalize_imagenet

SIZE, BATCH, TARGET = 224, 16, 2.0
BATCHES_A_TURN = 5  # otherwise memory that one side frees causes page faults on the other side
SEED_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "seed_data" / "example_image_lmdb"
MEAN, STD = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))


def baseline(env: lmdb.Environment, keys: list[bytes]) -> torch.Tensor:
    """Return (P, 3, SIZE, SIZE) float32."""
    tensors = []
    with env.begin() as txn:
        for key in keys:
            image = Image.open(io.BytesIO(txn.get(key))).convert("RGB")
            scale = 256 / min(image.size)
            image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
            left, top = round((image.width - SIZE) / 2), round((image.height - SIZE) / 2)
            pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32)
            pixels /= 255
            pixels -= MEAN
            pixels /= STD
            tensors.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
    return torch.stack(tensors)


def ours(env: lmdb.Environment, keys: list[bytes]) -> torch.Tensor:
    """Return the same, stacked as in `collate`."""
    with env.begin() as txn:
        images = np.stack([training_image(txn.get(key), SIZE) for key in keys])
    return normalize_imagenet(torch.from_numpy(images).permute(0, 3, 1, 2))


def generate(folder: Path) -> None:
    """Write ten pictures with the detail of photographs, shorter side 256."""
    random = np.random.default_rng(0)
    with lmdb.open(str(folder), map_size=1 << 26, lock=False) as env, env.begin(write=True) as txn:
        for i, long in enumerate([341] * 8 + [256, 455]):
            layers = [random.normal(0, 128 / 2**n, (2**n, 2**n, 3)) for n in range(2, 8)]
            large = [
                np.stack(
                    [
                        np.asarray(Image.fromarray(c.astype(np.float32)).resize((long, 256)))
                        for c in layer.transpose(2, 0, 1)
                    ],
                    2,
                )
                for layer in layers
            ]
            file = io.BytesIO()
            Image.fromarray(np.clip(128 + sum(large), 0, 255).astype(np.uint8)).save(file, "PNG")
            txn.put(f"{i}".encode(), reencode(file.getvalue(), 256, 90))


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median processor seconds of a batch ("per core"). The functions take turns on the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(BATCHES_A_TURN):
                function()
            if round_:  # the first round warms up
                seconds[name].append((time.process_time() - start) / BATCHES_A_TURN)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="LMDB folder with JPEGs")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.images or (SEED_IMAGES if SEED_IMAGES.is_dir() else Path(scratch))
        if folder == Path(scratch):
            generate(folder)
        env = lmdb.open(str(folder), readonly=True, lock=False)
        with env.begin() as txn:
            known = [bytes(key) for key in txn.cursor().iternext(values=False)]
        keys = [known[i % len(known)] for i in range(BATCH)]
        difference = (baseline(env, keys) - ours(env, keys)).abs().amax(dim=(0, 2, 3)) * torch.from_numpy(STD) * 255
        print(
            f"{len(known)} pictures of {folder.parent.name}/{folder.name}, batches of {BATCH}, 1 thread, processor time"
        )
        print(f"largest difference of a pixel: {difference.max():.3f} of 255")
        seconds = measure({"baseline": lambda: baseline(env, keys), "ours": lambda: ours(env, keys)}, arguments.rounds)
        env.close()
    for name, median in seconds.items():
        print(f"{name:8}  {BATCH / median:7.0f} images/s")
    print(f"ratio {seconds['baseline'] / seconds['ours']:.2f} (target {TARGET})")
    if difference.max() > 2:
        raise SystemExit("the pixels differ by more than 2 of 255")


if __name__ == "__main__":
    main()
