"""Two ranks of which rank 0 waits in a collective for rank 1, which sleeps; both write their stacks on SIGUSR2."""

import faulthandler
import json
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cromic_ds.engine import process_group
from cromic_ds.engine.waiting import waiting_code
from cromic_ds.ranks.collectives import sum_over_ranks

faulthandler.register(signal.SIGUSR2, all_threads=True)
ranks = process_group.start()
print("places", json.dumps(waiting_code()), flush=True)
if ranks.is_main:
    sum_over_ranks([1.0])
else:
    time.sleep(300)
