"""From a plan to its end: what is ready is started, what is finished is shown, until nothing can go on."""

from __future__ import annotations

from collections.abc import Callable

from cromic_ds.tools.table.executor import Executor
from cromic_ds.tools.table.folder import Folder
from cromic_ds.tools.table.jobs import Stop
from cromic_ds.tools.table.progress import Progress


def run_plan(
    folder: Folder, executor: Executor, stop: Stop, progress: Progress, report: Callable[[], None] = lambda: None
) -> None:
    """Return when all jobs are done, failed or skipped, or after a request to stop. `report` is called whenever an
    evaluation is finished."""
    report()
    told = False
    try:
        while True:
            states = folder.states()
            busy = {*executor.running, *executor.queued}
            ready = [job for job in folder.ready(states) if job.id not in busy]
            if not stop.asked:
                executor.start(ready)
            elif executor.running and not told:
                told = True
                print(
                    f"stopping: {len(executor.running)} running, each saves what it has; Ctrl-C again kills them",
                    flush=True,
                )
            if not executor.running and not executor.queued and (stop.asked or not ready):
                break
            progress.show(states, executor)
            for job in executor.wait():
                state = folder.state(job)
                progress.ended(job, state, folder.states(), executor)
                if job.stage == "evaluate" and state and state.state == "done":
                    report()
    except BaseException:
        stop.asked = True  # or `close` would wait for jobs that run for hours
        raise
    finally:
        executor.close()
