"""Longest texts in tokens: the defaults of pretraining. Downstream tasks have limits of their own, in their `Task`."""

import numpy as np

POST_TOKENS = 40  # [CLS] and [SEP] included
COMMENT_TOKENS = 25  # likewise


def cut_tokens(ids: np.ndarray, max_tokens: int) -> np.ndarray:
    """Return the first tokens of a sequence, with its closing [SEP] kept."""
    return ids if len(ids) <= max_tokens else np.append(ids[: max_tokens - 1], ids[-1])
