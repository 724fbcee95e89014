"""DeepSpeed. What its import reads from the environment is set here, before any module of this room imports it."""

import os
import warnings

import torch

from cromic_ds.shipped import extensions_folder

os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no GPU
# DeepSpeed calls these, and a user cannot change that.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
