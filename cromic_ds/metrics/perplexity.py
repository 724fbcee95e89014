"""Perplexity per token."""

import math


def perplexity(nll_sum: float, n_tokens: int) -> float:
    """Return exp(Σ token NLL in nats / tokens), both summed over the whole corpus; inf on overflow, nan for 0 tokens."""
    if n_tokens == 0:
        return math.nan
    try:
        return math.exp(nll_sum / n_tokens)
    except OverflowError:
        return math.inf
