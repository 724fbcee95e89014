"""`run_ranks`: real DeepSpeed processes on this machine's CPU; `tokenizer`, `smallest`, `export_folder`: a CMT of a few
thousand weights with the vocabulary of the sample world."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALLEST = {
    **{"d_model": 32, "n_heads": 4, "ffn": 48, "image_size": 96},  # 2×2 image tokens
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8, 8, 16], "depths": [1] * 4, "layer_type": "basic"},
    "embedding_std": 0.3,  # large enough for untrained logits to differ
}


@pytest.fixture(scope="session")
def tokenizer(store: Path):
    """The one of the sample store."""
    from cromic_ds.data.tokenizer import load_tokenizer

    return load_tokenizer(store / "tokenizer")


@pytest.fixture(scope="session")
def smallest(tokenizer) -> Callable:
    """smallest(field=value, …): a model in evaluation mode, the same weights each time."""
    import torch

    from cromic_ds.models import build_config, build_model

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
    from cromic_ds.training.export import write_export

    facts = {"max_post_tokens": 40, "max_comment_tokens": 25, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    return write_export(smallest(), tokenizer, facts, tmp_path_factory.mktemp("exports") / "smallest")


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[dict]]:
    """`run_ranks(jobs, world_size=2)` runs `ds_worker.py` in so many processes and returns rank 0's answer to each job."""

    def start(jobs: list[dict], world_size: int = 2, timeout: float = 300) -> list[dict]:
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            **{"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_LOG_LEVEL": "ERROR"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)},
            "LOCAL_SIZE": str(world_size),
            "PYTHONPATH": str(REPOSITORY),
        }
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(REPOSITORY / ".cache" / "torch_extensions"))
        command = [sys.executable, str(Path(__file__).parent / "ds_worker.py"), "jobs.json", "answers.json"]
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
