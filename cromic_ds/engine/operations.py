"""DeepSpeed's operations that are compiled at their first use, into `shipped.extensions_folder()`."""

import os
import sys

from cromic_ds.shipped import extensions_folder

COLLECTIVES = "deepspeed_shm_comm"  # ShareMemCommBuilder: collectives of CPU ranks; every start on a CPU needs it
CPU_ADAM = "cpu_adam"  # CPUAdamBuilder: the optimizer when it is offloaded


def announce_compilation(operation: str) -> None:
    """Explain the silent minute that follows if `operation` is not compiled yet. The first rank of each host prints it."""
    compiled = extensions_folder() / operation / f"{operation}.so"
    if not compiled.exists() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"compiling one operation of DeepSpeed ({operation}), about a minute …", file=sys.stderr, flush=True)


def works(builder: str) -> bool:
    """Return whether DeepSpeed's operation with this builder, such as CPUAdamBuilder, can be compiled and used here."""
    from deepspeed.ops import op_builder  # defines the builders of the machine's accelerator

    return getattr(op_builder, builder)().is_compatible(verbose=False)
