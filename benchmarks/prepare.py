"""Converting official files to a store: memory against the number of records, and images per second and core.

Memory: `cromic-ds prepare` on VQA v2.0 (joined questions and annotations, an answer vocabulary) and on MUGE (a TSV of
images), with n and with 10 n records, each in its own processes, whose memory is added up while they run.

Images: the second pass of a preparation (one process, five captions per image, tokens, checksums) against the shortest Pillow
loop that decodes, resizes, encodes and writes the same images to LMDB. Both read the same files, one image at a time.

    python benchmarks/prepare.py [--records 10000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MOST_MEMORY, LEAST_SPEED = 1.2, 1.5
QUESTIONS_AN_IMAGE, RECORDS_A_TSV_ROW = 5, 10  # a row of MUGE takes as long as several questions, so there are fewer
SHORT_SIDE, QUALITY = 256, 90
# Typical image sizes of the five tasks: two tasks use COCO; then Flickr30k, AIC-ICC, MUGE.
SIZES = ((640, 480), (480, 640), (500, 375), (1000, 667), (800, 800))
WORKERS = 2
DIFFERENT, IMAGES = 10, 300  # of each size; each file is used thirty times


def photograph(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG with the detail and the noise of a photograph: about 0.4 bytes per pixel, as in COCO."""
    random = np.random.default_rng(seed)
    pixels = random.normal(128, 9, (height, width, 1))
    for n in range(2, 9):
        layer = random.normal(0, 150 / 2**n, (2**n, 2**n, 3)).astype(np.float32)
        channels = [np.asarray(Image.fromarray(c).resize((width, height))) for c in layer.transpose(2, 0, 1)]
        pixels = pixels + np.stack(channels, 2)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def write_vqa2(root: Path, records: int) -> None:
    """Write `records` questions, five per image; all images are links to a few files."""
    (root / "train2014").mkdir(parents=True)
    random = np.random.default_rng(0)
    files = [root / f"{i}.jpg" for i in range(8)]
    for i, file in enumerate(files):
        file.write_bytes(photograph(341, SHORT_SIDE, i))
    images = random.permutation(600_000)[: records // QUESTIONS_AN_IMAGE].tolist()
    for i, image in enumerate(images):
        os.link(files[i % len(files)], root / "train2014" / f"COCO_train2014_{image:012d}.jpg")
    with (
        (root / "v2_OpenEnded_mscoco_train2014_questions.json").open("w") as questions,
        (root / "v2_mscoco_train2014_annotations.json").open("w") as annotations,
    ):
        questions.write('{"questions": [')
        annotations.write('{"annotations": [')
        for n in range(records):
            image = images[n % len(images)]
            id, answer = image * 1000 + n // len(images), f"answer {random.zipf(1.3) % 5000}"
            ten = [{"answer": answer, "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)]
            between = ", " if n else ""
            asked = {"image_id": image, "question": f"What is number {n % 997} here?", "question_id": id}
            about = {"question_type": "what is", "answer_type": "other", "image_id": image, "question_id": id}
            questions.write(between + json.dumps(asked))
            annotations.write(between + json.dumps({"multiple_choice_answer": answer, "answers": ten, **about}))
        questions.write("]}")
        annotations.write("]}")
    shutil.copy(root / "v2_mscoco_train2014_annotations.json", root / "v2_mscoco_val2014_annotations.json")


def write_muge(root: Path, records: int) -> None:
    root.mkdir(parents=True)
    rows = [base64.urlsafe_b64encode(photograph(341, SHORT_SIDE, i)) for i in range(8)]
    with (root / "IC_train.tsv").open("wb") as images, (root / "IC_train.jsonl").open("w") as captions:
        for n in range(records // RECORDS_A_TSV_ROW):
            images.write(b"%032x\t%s\n" % (n, rows[n % len(rows)]))
            text = [f"number {n} seen for the time {k}" for k in range(10)]
            captions.write(json.dumps({"image_id": f"{n:032x}", "text": text}) + "\n")


def write_tokenizer(folder: Path) -> Path:
    from cromic_ds.data.tokenizer import train_tokenizer

    texts = (f"What is number {n} here? answer seen for the time" for n in range(1000))
    train_tokenizer(texts, 2000).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def peak_of(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the peak memory in MB of its process and the children together."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            # pss counts shared memory once; at a fork, rss would count the parent twice
            held = sum(p.memory_full_info().pss for p in [process, *process.children(recursive=True)])
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
        peak = max(peak, held)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, peak / 2**20


def measure_memory(scratch: Path, records: int) -> bool:
    """Print records per second and peak memory for both tasks and sizes; return whether memory is flat."""
    tokenizer, flat = write_tokenizer(scratch), True
    for task, write in (("vqa2", write_vqa2), ("muge", write_muge)):
        peaks = []
        for n in (records, 10 * records):
            root = scratch / task
            write(root, n)
            arguments = {"task": task, "root": root, "tokenizer": tokenizer, "out": scratch / "store"}
            arguments |= {"workers": WORKERS, "records_per_shard": 250}  # so that both sizes keep all workers busy
            command = [sys.executable, "-m", "cromic_ds", "prepare"]
            seconds, peak = peak_of(command + [f"--{name}={value}" for name, value in arguments.items()])
            made = json.loads((scratch / "store" / "store.json").read_text())["splits"]["train"]["records"]
            size = sum(file.stat().st_size for file in root.iterdir() if file.is_file()) / 2**20
            print(
                f"{task:>5} {made:>8,} records ({size:5,.0f} MB of official files): {made / seconds:7,.0f} records/s, "
                f"peak memory {peak:6,.0f} MB",
                flush=True,
            )
            peaks.append(peak)
            shutil.rmtree(root)
            shutil.rmtree(scratch / "store")
        flat = flat and peaks[1] <= MOST_MEMORY * peaks[0]
        print(f"{task:>5} memory: {peaks[1] / peaks[0]:.2f}x for ten times the records (limit {MOST_MEMORY})")
    return flat


def write_aic(root: Path, size: tuple[int, int]) -> None:
    folder = root / "caption_train_images_20170902"
    folder.mkdir(parents=True)
    names = [f"{n:040x}.jpg" for n in range(IMAGES)]
    for n, name in enumerate(names):
        if n < DIFFERENT:
            (folder / name).write_bytes(photograph(*size, n))
        else:
            os.link(folder / names[n % DIFFERENT], folder / name)
    entries = [{"url": "", "image_id": name, "caption": [f"number {k} is here" for k in range(5)]} for name in names]
    (root / "caption_train_annotations_20170902.json").write_text(json.dumps(entries))


def pillow_loop(images: Path, out: Path) -> None:
    with lmdb.open(str(out), map_size=1 << 30, lock=False, sync=False) as env, env.begin(write=True) as txn:
        for path in sorted(images.iterdir()):
            image = Image.open(path).convert("RGB")
            scale = SHORT_SIDE / min(image.size)
            image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=QUALITY)
            txn.put(path.stem.encode(), file.getvalue())


def second_pass(root: Path, work: Path, tokenizer: Path) -> Callable[[Path], None]:
    """Return a function that makes one shard, after everything that comes before it."""
    from cromic_ds.prepare.official import OfficialCorpus, open_reader
    from cromic_ds.prepare.scan import scan
    from cromic_ds.prepare.shards import ShardJob, ShardMaker

    work.mkdir()
    corpus = OfficialCorpus(open_reader("aic_icc", str(root), ["train"], ""), None, work)
    scan(corpus, work / "scan", 0)

    def make(out: Path) -> None:
        settings = {"vocab_size": 2000, "short_side": SHORT_SIDE, "jpeg_quality": QUALITY}
        longest = {"max_post_tokens": 40, "max_comment_tokens": 72}
        file = tokenizer / "tokenizer.json"
        maker = ShardMaker(corpus=corpus, extras=None, tokenizer_file=file, out=out, work=work, **settings, **longest)
        maker.make(ShardJob("train", 0, 0, IMAGES), lambda records, rejected: None)
        assert maker.finished(ShardJob("train", 0, 0, IMAGES)).images == IMAGES

    return make


def measure_images(scratch: Path, rounds: int) -> float:
    """Print images per second and core by size of the images; return the ratio over all sizes."""
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the processes of a preparation
    tokenizer = write_tokenizer(scratch)
    total = {"Pillow loop": 0.0, "prepare": 0.0}
    for number, size in enumerate(SIZES):
        root = scratch / f"aic{number}"
        write_aic(root, size)
        make = second_pass(root, scratch / f"work{number}", tokenizer)
        candidates = {"Pillow loop": lambda out, r=root: pillow_loop(r / "caption_train_images_20170902", out)}
        candidates["prepare"] = make
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for round_ in range(rounds + 1):
            (scratch / "out").mkdir()
            for name, run in candidates.items():
                start = time.process_time()
                run(scratch / "out" / name)
                if round_:  # the first round warms up
                    seconds[name].append((time.process_time() - start) / IMAGES)
            shutil.rmtree(scratch / "out")
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        total = {name: total[name] + median for name, median in medians.items()}
        speeds = ", ".join(f"{name} {1 / median:5,.0f} images/s" for name, median in medians.items())
        print(f"{size[0]:>5} x {size[1]:3}: {speeds} ({medians['Pillow loop'] / medians['prepare']:.2f}x)", flush=True)
    return total["Pillow loop"] / total["prepare"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000, help="n of the memory measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of the images' speed")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        fast = measure_images(Path(scratch), args.rounds)
        flat = measure_memory(Path(scratch), args.records)
    print(f"prepare: {fast:.2f}x images/s per core over all sizes (target {LEAST_SPEED}), memory " + "flat" * flat)
    return 0 if flat and fast >= LEAST_SPEED else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
