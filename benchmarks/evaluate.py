"""A whole evaluation of 1,000 images: which share of its time does scoring take?

The data are captions of the sample world for MUGE, whose ten references per image make scoring the most expensive; the model is
preset paper with random weights, on a CPU. Decoding reads the images and uses beam 5, up to the mean length of the references.
Scoring starts from the texts and ends with the result file with its 1,000 resamples, imports included. METEOR is left out, as
without Java. A small model decodes faster but is not scored faster, so preset tiny exceeds the limit.

    python benchmarks/evaluate.py [--task muge] [--preset paper] [--images 1000] [--threads 2] [--precision auto]
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from common import exit_with

from cromic_ds.data.dataset import Dataset
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.order import example_seed
from cromic_ds.data.record import Record
from cromic_ds.data.tokenizer import encode, load_tokenizer, train_tokenizer
from cromic_ds.inference.exports import write_export
from cromic_ds.inference.job import InferenceJob
from cromic_ds.inference.loaded import load
from cromic_ds.inference.settings import EvaluateSettings
from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.registry import build_config, build_model, vocabulary_of
from cromic_ds.prepare.store_writer import StoreWriter
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.results import describe_data, result_json, write_result
from cromic_ds.world import language
from cromic_ds.world.pictures import draw_jpeg
from cromic_ds.world.scenes import nth_scene

FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "evaluate"
CAPTIONS = {"aic_icc": 5, "flickr30k_cn": 5, "muge": 10}  # per image
MOST = 0.10


def write_store(out: Path, task: str, images: int) -> None:
    tokenizer = train_tokenizer(language.vocabulary_texts(), 512)
    with StoreWriter(out, tokenizer, task=task) as store:
        for i in range(images):
            scene, rng = nth_scene(i, 0), np.random.default_rng(example_seed(0, 0, i))
            captions = [language.without_spaces(words) for words in language.write_captions(scene, rng, CAPTIONS[task])]
            tokens = encode(tokenizer, captions, 72)
            record = Record(f"{i}", comments=captions, comment_tokens=tokens, extras={"image_id": f"{i}"})
            record.image_id = record.id
            store.add("val", record, draw_jpeg(scene, rng, 128))


def write_model(out: Path, preset: str, tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    torch.manual_seed(0)
    write_export(build_model(build_config("cmt", preset, **vocabulary_of(tokenizer, CMTConfig))), tokenizer, {}, out)


def mean_length(dataset: Dataset) -> int:
    """Return the mean number of tokens of the references, [SEP] included."""
    return round(np.mean([len(c) - 1 for i in range(len(dataset)) for c in dataset.tokens(i).comments]))


def measure(args: argparse.Namespace) -> float:
    """Return the share of scoring in the time of one evaluation."""
    task = args.task
    folder = FOLDER / task
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_store(folder / "store", task, args.images)
    write_model(folder / "export", args.preset, folder / "store" / "tokenizer")
    dataset = open_dataset(folder / "store", "val")
    settings = EvaluateSettings(
        export=str(folder / "export"),
        task=task,
        data=str(folder / "store"),
        max_new_tokens=mean_length(dataset),
        precision=args.precision,
    )
    job = InferenceJob(load(settings.export, settings.precision), dataset, settings)

    start = time.perf_counter()
    predictions = [record.text for record in itertools.chain.from_iterable(job.answer_records())]
    decoded = time.perf_counter()
    texts = [dataset.texts(i) for i in range(len(dataset))]
    measured = TASKS[task].measure(predictions, texts, TASKS[task].tokenization, meteor=False, resamples=1000)
    data = describe_data(settings.data, dataset)
    result = result_json(TASKS[task], measured, data=data, decoding=asdict(job.decoding), model=job.export.identity())
    write_result(folder / "result.json", result)
    scored = time.perf_counter()
    share = (scored - decoded) / (scored - start)
    print(
        f"{job.decoding.max_new_tokens} tokens; decoding {decoded - start:.2f} s in {job.export.precision}, "
        f"scoring {scored - decoded:.2f} s",
        flush=True,
    )
    return share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="muge", choices=CAPTIONS)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto", help="bf16, fp32, or auto as in every command")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.task}: {args.images} images, preset {args.preset}, beam 5, {args.threads} threads")
    share = measure(args)
    passed = share <= MOST
    print(f"evaluate: {share:.1%} of the time in scoring (limit {MOST:.0%}): {'pass' if passed else 'FAIL'}")
    return 0 if passed else 1


if __name__ == "__main__":
    exit_with(main)
