"""Choosing a token from logits in plain numpy, by sorting: the truth that others are held to."""

import numpy as np


def greedy(logits: np.ndarray) -> np.ndarray:
    """The likeliest token of each row, the first of equals: [rows, vocab] to int32 [rows]."""
    return logits.argmax(-1).astype(np.int32)


def choose_tokens(
    logits: np.ndarray,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
    seeds: np.ndarray,
    indices: np.ndarray,
) -> np.ndarray:
    """One token id for each row, int32 [rows]; arguments as in `torch_ref.py`."""
    chosen = greedy(logits)
    for row in np.flatnonzero(temperature > 0):
        scaled = logits[row].astype(np.float64) / temperature[row]
        scaled[~kept(scaled, top_k[row], top_p[row], min_p[row])] = -np.inf
        noise = gumbel_noise(seeds[row], indices[row], scaled.size)
        chosen[row] = (scaled + noise).argmax()
    return chosen


def kept(scaled: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which tokens top-k, then top-p of what is left, then min-p leave, given scaled logits [vocab].

    Tokens as likely as the last one kept are kept too. Holtzman et al. 2020 for top-p.
    """
    probs = np.exp(scaled - scaled.max())
    if 0 < top_k < probs.size:
        probs[probs < np.sort(probs)[-top_k]] = 0
    largest = np.sort(probs)[::-1]
    if top_p < 1:
        enough = np.searchsorted(np.cumsum(largest), top_p * largest.sum())
        probs[probs < largest[min(enough, probs.size - 1)]] = 0
    return (probs > 0) & (probs >= min_p)


def gumbel_noise(seed: np.integer, index: np.integer, vocab: int) -> np.ndarray:
    """-log(-log(u)) of u uniform in (0, 1), float64 [vocab]; argmax of logits plus it is a draw.

    u is 23 bits of mix(mix(token * GOLDEN + mix(seed)) ^ mix(index + GOLDEN)), `mix` being MurmurHash3's
    last step: words that any device computes alike. With 23 bits u + half a bit is exact in float32.
    """
    golden = 0x9E3779B9  # 2**32 over the golden ratio: spreads small numbers over all words

    def mix(words: np.ndarray) -> np.ndarray:
        words = words & 0xFFFFFFFF
        words = ((words ^ (words >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & np.uint64(0xFFFFFFFF)
        words = ((words ^ (words >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & np.uint64(0xFFFFFFFF)
        return words ^ (words >> np.uint64(16))

    def word(value: int) -> np.ndarray:
        return np.array([value % 2**32], np.uint64)

    tokens = np.arange(vocab, dtype=np.uint64) * np.uint64(golden)
    words = mix(mix(tokens + mix(word(int(seed)))) ^ mix(word(int(index) + golden)))
    uniform = ((words >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23
    return -np.log(-np.log(uniform))
