"""Choosing a token from logits in plain PyTorch: what serves on CPU.

Top-k and top-p find their cut by bisection over the float32 bit patterns instead of sorting the
vocabulary: 32 rounds, exact, ties kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: spreads small numbers over all words


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row, the first of equals: [rows, vocab] to int32 [rows]."""
    return logits.argmax(-1).int()


def choose_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    indices: Tensor,
) -> Tensor:
    """One token id for each row, int32 [rows].

    The likeliest where temperature is 0; else drawn from what top-k, then top-p, then min-p leave of
    softmax(logits / temperature). A row's draw depends on its seed and index alone, never on its neighbours.

    Args:
        logits: [rows, vocab]; all is computed in float32.
        temperature, top_p, min_p: [rows] float32; top_p 1 and min_p 0 keep everything.
        top_k: [rows] int32; 0 keeps everything.
        seeds, indices: [rows] int32; the bits of unsigned words.
    """
    greedy, logits = logits.argmax(-1), logits.float()
    scaled = logits / torch.where(temperature > 0, temperature, 1.0)[:, None]
    scaled -= scaled.amax(-1, keepdim=True)
    if _any(top_k > 0):
        scaled = _keep_top_k(scaled, top_k)
    if _any(top_p < 1):
        scaled = _keep_top_p(scaled, top_p)
    # the largest of `scaled` is 0, so min_p of the largest probability is a bound on scaled itself
    scaled = scaled.masked_fill(scaled < min_p.log()[:, None], -torch.inf)
    drawn = (scaled + gumbel_noise(seeds, indices, logits.shape[-1])).argmax(-1)
    return torch.where(temperature > 0, drawn, greedy).int()


def gumbel_noise(seeds: Tensor, indices: Tensor, vocab: int) -> Tensor:
    """-log(-log(u)) of u uniform in (0, 1), float32 [rows, vocab]; argmax of logits plus it is a draw.

    u is 23 bits of mix(mix(token * GOLDEN + mix(seed)) ^ mix(index + GOLDEN)), `mix` being MurmurHash3's
    last step: words that any device computes alike. With 23 bits u + half a bit is exact in float32;
    a 24th would round up to 1 once in 2**24, whose noise is infinite.
    """
    tokens = torch.arange(vocab, device=seeds.device) * _GOLDEN
    first, second = _mix(seeds.long()), _mix(indices.long() + _GOLDEN)
    words = _mix(_mix(tokens + first[:, None]) ^ second[:, None])
    uniform = ((words >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def _mix(words: Tensor) -> Tensor:
    """32-bit words, in int64, each to another that looks random. Appleby 2011."""
    words = words & _WORD
    words = ((words ^ (words >> 16)) * 0x85EBCA6B) & _WORD
    words = ((words ^ (words >> 13)) * 0xC2B2AE35) & _WORD
    return words ^ (words >> 16)


def _any(wanted: Tensor) -> bool:
    """Whether to do it at all. On a GPU asking would make the host wait."""
    return wanted.device.type != "cpu" or bool(wanted.any())


def _keep_top_k(scaled: Tensor, top_k: Tensor) -> Tensor:
    """Keep the k largest of each row (0: all), ties with the k-th included."""
    wanted = torch.where(top_k > 0, top_k, scaled.shape[-1])[:, None]
    keys = _ordered(scaled)
    bar = _largest_bar(keys, lambda kept: kept.sum(-1, keepdim=True) >= wanted)
    return scaled.masked_fill(keys < bar.int(), -torch.inf)


def _keep_top_p(scaled: Tensor, top_p: Tensor) -> Tensor:
    """Keep the fewest largest whose probability reaches top_p. Holtzman et al. 2020."""
    probs = scaled.softmax(-1)
    # rounding can leave a sum just under 1; a row with top_p 1 keeps everything
    off = (top_p >= 1)[:, None]
    enough = torch.where(off, -1.0, top_p[:, None])
    keys = _ordered(scaled)
    bar = _largest_bar(keys, lambda kept: (probs * kept).sum(-1, keepdim=True) >= enough)
    return scaled.masked_fill((keys < bar.int()) & ~off, -torch.inf)


def _ordered(x: Tensor) -> Tensor:
    """float32 as int32 in the same order."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _largest_bar(keys: Tensor, enough: Callable[[Tensor], Tensor]) -> Tensor:
    """For each row the largest int32 bar for which `enough(keys >= bar)` still holds; [rows, 1]."""
    bar = torch.full((keys.shape[0], 1), -(2**31), dtype=torch.int64, device=keys.device)
    for bit in range(31, -1, -1):
        higher = bar + (1 << bit)
        bar = torch.where(enough(keys >= higher.int()), higher, bar)
    return bar
