"""Distances between what two models give for the same texts, and probes of their curvature.

A probe is a function of the dense model's outputs, random in its signs, whose gradients have the curvature of the
distance as their second moment: for a distance with curvature F at the dense outputs, it is ⟨F^½ s, outputs⟩ with
signs s, since E[s sᵀ] = 1. Signs come from hashes of the texts, so they depend on nothing else.

Letters: i texts, c outputs of each, k texts that similarities are to.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

SHARPNESS = 20.0
"""Factor on cosines before they become probabilities, as in the contrastive losses that embedders are trained with."""


def signs(keys: Int64[Tensor, " i"], count: int) -> Float[Tensor, "i c"]:
    """Random signs, `count` for each key; equal keys give equal ones."""
    numbers = keys[:, None] + _mixed(torch.arange(1, count + 1, device=keys.device))
    return 1.0 - 2.0 * (_mixed(numbers) & 1).float()


def text_keys(ids: Int64[Tensor, "b t"], sequence: Tensor, first: Tensor, last: Tensor) -> Int64[Tensor, " i"]:
    """A hash of each text from its tokens, `first` to `last` of its `sequence`."""
    place = torch.arange(ids.shape[1], device=ids.device)
    sums = functional.pad(_mixed(ids).cumsum(1), (1, 0))
    return _mixed(sums[sequence, last + 1] - sums[sequence, first] + place[last - first])


def _mixed(numbers: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Numbers whose bits all depend on all bits of those given (the finalizer of MurmurHash3)."""
    mixed = (numbers ^ (numbers >> 33)) * -49064778989728563
    mixed = (mixed ^ (mixed >> 33)) * -4265267296055464877
    return mixed ^ (mixed >> 33)


def squared_error(scores: Float[Tensor, "i c"], dense: Float[Tensor, "i c"]) -> Float[Tensor, " i"]:
    """Half of the squared difference of scores, whose curvature is 1."""
    return 0.5 * (scores - dense).square().sum(-1)


def label_kl(logits: Float[Tensor, "i c"], dense: Float[Tensor, "i c"]) -> Float[Tensor, " i"]:
    """KL(dense ‖ model) of the distribution over labels, in nats."""
    return functional.kl_div(logits.log_softmax(-1), dense.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def separate_kl(logits: Float[Tensor, "i c"], dense: Float[Tensor, "i c"]) -> Float[Tensor, " i"]:
    """Summed KL(dense ‖ model) of labels that each apply or don't, in nats."""
    yes, no = (functional.logsigmoid(sign * dense) for sign in (1, -1))
    other_yes, other_no = (functional.logsigmoid(sign * logits) for sign in (1, -1))
    return (yes.exp() * (yes - other_yes) + no.exp() * (no - other_no)).sum(-1)


def label_probe(logits: Float[Tensor, "i c"], sign: Float[Tensor, "i c"]) -> Float[Tensor, " i"]:
    """Probe of `label_kl`: its curvature diag(p) - p pᵀ is A Aᵀ with A = diag(√p) - p √pᵀ."""
    p = logits.detach().softmax(-1)
    root = p.sqrt() * sign
    return ((root - p * root.sum(-1, keepdim=True)) * logits).sum(-1)


def separate_probe(logits: Float[Tensor, "i c"], sign: Float[Tensor, "i c"]) -> Float[Tensor, " i"]:
    """Probe of `separate_kl`, whose curvature is diag(p (1 - p))."""
    p = logits.detach().sigmoid()
    return ((p * (1 - p)).sqrt() * sign * logits).sum(-1)


def embedding_distance(
    embeddings: Float[Tensor, "i c"],
    dense: Float[Tensor, "i c"],
    others: Float[Tensor, "k c"],
    same: Bool[Tensor, "i k"],
) -> Float[Tensor, " i"]:
    """Cosine distance of each embedding to the dense one, and the order of its similarities to other texts.

    The second term is the KL between distributions over the other texts, by the sharpened cosines of the dense model's
    embedding and of this one to `others`, which are the dense model's. `same` says which of them is the text itself.
    """
    own, expected, bank = (functional.normalize(vectors, dim=-1) for vectors in (embeddings, dense, others))
    cosine = (own * expected).sum(-1)
    if bool(same.all()):
        return 1 - cosine
    log_q, log_p = (
        (SHARPNESS * vectors @ bank.T).masked_fill(same, torch.finfo(vectors.dtype).min).log_softmax(-1)
        for vectors in (own, expected)
    )
    order = (log_p.exp() * (log_p - log_q)).masked_fill(same, 0.0).sum(-1)
    return 1 - cosine + order


def embedding_probe(embeddings: Float[Tensor, "i c"], sign: Float[Tensor, "i c"]) -> Float[Tensor, " i"]:
    """Probe of the cosine distance, which is half of the squared difference of normalised embeddings."""
    return (functional.normalize(embeddings, dim=-1) * sign).sum(-1)
