"""Writes the ranks that we read from a launcher's environment, one file for each process."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from cromic_ds.ranks.launcher import ranks_from

ranks = ranks_from(os.environ)
about = asdict(ranks) | {"host": os.uname().nodename, "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}
Path(sys.argv[-1], f"{ranks.rank}.json").write_text(json.dumps(about))
