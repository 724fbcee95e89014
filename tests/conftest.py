"""What tests share: `store` and `tokenizer` of the sample world, `smallest` and `export_folder`: a CMT of a few thousand
weights, stores of the tasks, and `run_ranks`: real DeepSpeed processes on this machine's CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.paths import HELPERS, REPOSITORY

from cromic_ds.ranks.launcher import free_port

SMALLEST = {
    **{"d_model": 32, "n_heads": 4, "ffn": 48, "image_size": 96},  # 2×2 image tokens
    "resnet": {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"},
    "embedding_std": 0.3,  # large enough for untrained logits to differ
}


@pytest.fixture(autouse=True)
def signal_mask() -> Iterator[None]:
    """Restore the blocked signals: a training blocks SIGTERM until it handles it, and processes started later inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with reference values and real posts that may not be copied into it."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        reason = f"{folder} is absent: it holds reference values and posts that are not part of the repository"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of the sample world: 54 training posts, 10 validation posts."""
    from cromic_ds.world.sample import sample
    from cromic_ds.world.settings import SampleSettings

    out = tmp_path_factory.mktemp("world") / "store"
    sample(SampleSettings(out=str(out), posts=64, seed=3, val_fraction=10 / 64))
    return out


@pytest.fixture(scope="session")
def tokenizer(store: Path):
    """The one of the sample store."""
    from cromic_ds.data.tokenizer import load_tokenizer

    return load_tokenizer(store / "tokenizer")


@pytest.fixture(scope="session")
def smallest(tokenizer) -> Callable:
    """smallest(field=value, …): a model in evaluation mode, the same weights each time."""
    import torch

    from cromic_ds.models.registry import build_config, build_model

    special = {
        **{"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        **{"bos_token_id": tokenizer.cls_token_id, "decoder_start_token_id": tokenizer.cls_token_id},
        "eos_token_id": tokenizer.sep_token_id,
    }

    def build(**overrides):
        torch.manual_seed(0)
        return build_model(build_config("cmt", "tiny", **{**SMALLEST, **special, **overrides})).eval()

    return build


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory: pytest.TempPathFactory, smallest, tokenizer) -> Path:
    """An export of `smallest()`; not to be changed."""
    from cromic_ds.data.tokenizer import tokenizer_fingerprint
    from cromic_ds.inference.exports import write_export

    facts = {"max_post_tokens": 40, "max_comment_tokens": 25, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    return write_export(smallest(), tokenizer, facts, tmp_path_factory.mktemp("exports") / "smallest")


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[dict]]:
    """`run_ranks(jobs, world_size=2)` runs `ds_worker.py` in so many processes and returns rank 0's answer to each job."""

    def start(jobs: list[dict], world_size: int = 2, timeout: float = 300) -> list[dict]:
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        environment = {
            **os.environ,
            **{"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_LOG_LEVEL": "ERROR"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)},
            "LOCAL_SIZE": str(world_size),
            "PYTHONPATH": str(REPOSITORY),
        }
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(REPOSITORY / ".cache" / "torch_extensions"))
        command = [sys.executable, str(HELPERS / "ds_worker.py"), "jobs.json", "answers.json"]
        ranks = []
        for rank in range(world_size):
            with (tmp_path / f"rank{rank}.log").open("w") as log:
                env = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        logs = "\n".join((tmp_path / f"rank{rank}.log").read_text()[-3000:] for rank in range(world_size))
        assert codes == [0] * world_size, logs
        return json.loads((tmp_path / "answers.json").read_text())

    return start


@pytest.fixture(scope="session")
def task_store(tmp_path_factory: pytest.TempPathFactory, store: Path, tokenizer) -> Callable[..., Path]:
    """task_store("muge", {"val": [Record(…), …]}, answers=…): a store; each record's picture is one of the sample store,
    and follows from its image id, but for "broken", which is no picture."""
    from cromic_ds.data.open_dataset import open_dataset
    from cromic_ds.data.tokenizer import encode
    from cromic_ds.prepare.store_writer import StoreWriter

    pictures = open_dataset(store, "train")

    def write(task: str, splits: dict[str, list], **about) -> Path:
        out = tmp_path_factory.mktemp(task) / "store"
        with StoreWriter(out, tokenizer, task=task, **about) as writer:
            for split, records in splits.items():
                for record in records:
                    record.post_tokens = encode(tokenizer, [record.post], 40)[0] if record.post else record.post_tokens
                    record.comment_tokens = encode(tokenizer, record.comments, 25)
                    number = sum(record.image_id.encode())
                    jpeg = b"broken" if record.image_id == "broken" else pictures.image(number % len(pictures))
                    writer.add(split, record, jpeg)
        return out

    return write


@pytest.fixture(scope="session")
def caption_store(task_store) -> Path:
    """Task muge: 5 pictures with two captions each in `val`, 7 without in `test`."""
    from cromic_ds.data.record import Record

    captions = ["红色圆形在左边", "蓝色方形", "黑色星形在右边", "绿色圆形", "红色方形在上边", "蓝色星形"]

    def record(id: str, comments: list[str]) -> Record:
        return Record(id, comments=comments, extras={"image_id": id}, image_id=id)

    val = [record(f"v{i}", captions[i : i + 2]) for i in range(5)]
    return task_store("muge", {"val": val, "test": [record(f"t{i}", []) for i in range(7)]})


@pytest.fixture(scope="session")
def question_store(task_store) -> Path:
    """Task vqa2, answers 红色, 左边, 2: in `val` 6 questions on 3 pictures, in `test` 5 questions on 2, unanswered."""
    import numpy as np

    from cromic_ds.data.record import Record

    questions = ["左边的图形是什么颜色？", "红色的图形在哪里？"]
    given = ["红色"] * 4 + ["左边"] * 3 + ["右边"] * 2 + ["2"]

    def record(id: int, answered: bool) -> Record:
        extras = {"image_id": id // 1000}
        if answered:
            extras |= {"answers": given, "answer_type": "other", "question_type": "what"}
        answers = (np.array([0, 1, 2], np.int32), np.array([1, 0.9, 0.3], np.float32))
        return Record(
            str(id),
            post=questions[id % 2],
            comments=["红色"] if answered else [],
            extras=extras,
            image_id=str(id // 1000),
            answers=answers if answered else (np.empty(0, np.int32), np.empty(0, np.float32)),
        )

    val = [record(image * 1000 + k, True) for image in (5, 6, 7) for k in range(2)]
    test = [record(image * 1000 + k, False) for image, n in ((8, 3), (9, 2)) for k in range(n)]
    return task_store("vqa2", {"val": val, "test": test}, answers=["红色", "左边", "2"])


@pytest.fixture
def make_store(tmp_path, tokenizer) -> Callable[..., Path]:
    """make_store(task, split=[(id, references, extras), …], …): a store without tokens, for scoring."""

    from cromic_ds.data.record import Record
    from cromic_ds.prepare.store_writer import StoreWriter

    def make(task: str, name: str = "store", **splits: list[tuple[str, list[str], dict]]) -> Path:
        with StoreWriter(tmp_path / name, tokenizer, task=task) as store:
            for split, records in splits.items():
                for id, comments, extras in records:
                    store.add(split, Record(id, "", comments, extras=extras))
        return tmp_path / name

    return make
