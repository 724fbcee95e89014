"""TensorBoard event files in RUN/tensorboard."""

import io
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.run_folder import RunFolder
from cromic_ds.tracking.jsonl import plain_value
from cromic_ds.tracking.tracker import SampleRow, Tracker, Values


class TensorBoardTracker(Tracker):
    """Scalars as `<kind>/<name>`, samples as pictures and text. A resume at step s hides what was logged after s."""

    def __init__(self, run_folder: Path, resume_step: int | None = None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            hint = "install it or set it to false"
            raise UserError(f"tracking.tensorboard needs the package tensorboard ({error}): {hint}") from error
        # TensorBoard hides purge_step itself as well, hence + 1.
        self._writer = SummaryWriter(str(RunFolder(run_folder).tensorboard), purge_step=(resume_step or 0) + 1)

    def log(self, step: int, values: Values, kind: str) -> None:
        for name, value in values.items():
            number = plain_value(value)
            if isinstance(number, (int, float)):
                self._writer.add_scalar(f"{kind}/{name}", number, step)

    def samples(self, step: int, rows: list[SampleRow]) -> None:
        import numpy as np
        from PIL import Image

        for row in rows:
            if row.jpeg is not None:
                pixels = np.asarray(Image.open(io.BytesIO(row.jpeg)).convert("RGB"))
                self._writer.add_image(f"samples/{row.id}", pixels, step, dataformats="HWC")
            lines = [f"post: {row.post}", *(f"generated: {text}" for text in row.generated)]
            lines += [f"reference: {text}" for text in row.references]
            self._writer.add_text(f"samples/{row.id}", "\n\n".join(lines), step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()
