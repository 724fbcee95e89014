"""Training on DeepSpeed. The only package that imports it."""

import os
import warnings

import torch

if not torch.cuda.is_available():  # DeepSpeed warns, and probes for other accelerators, unless it is told
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# DeepSpeed calls torch's collectives by their old names, once for every parameter and step.
warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
