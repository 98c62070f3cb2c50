"""Looking into one pass of a wrapped model: what its adversaries hide, what its layers attend to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from asa_mini.adversary import keep_mask
from asa_mini.attention import allowed_units
from asa_mini.hf import AsaPass, attend
from asa_mini.model import AsaModel
from asa_mini.train.models import given_back


@dataclass
class Recording:
    """Given as `AsaPass(record=...)`, takes an entry at every call of a layer, attacked or not.

    Attributes:
        masks: (B, L, L) boolean, True = kept and allowed; of the attacked half.
        maps: attention weights (B or 2B, H, L, L), if a list is given to take them.
    """

    masks: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] | None = None

    def __call__(self, module, query, key, value, allowed, causal, asa, projections, **kwargs) -> None:
        """See `asa_mini.hf.attend`."""
        length, size = query.shape[2], query.shape[0] // (1 + asa.joint)
        kept = query.new_ones(size, length, length, dtype=torch.bool)  # without an adversary
        if projections is not None:
            kept = keep_mask(*(x.detach() for x in projections)).bool()
        seen = allowed_units(allowed, causal, length, query.device)
        self.masks.append(kept if seen is None else kept & seen[-size:, 0])
        if self.maps is not None:  # the weights are what attention makes of the identity: softmax(S) I
            one_hot = torch.eye(length, dtype=value.dtype, device=value.device)
            one_hot = one_hot.expand(*value.shape[:2], -1, -1)  # (B or 2B, Hkv, L, L)
            aside = replace(asa, kept_units=[], kept_share=[])  # they are counted once
            maps = attend(module, query, key, one_hot, allowed, causal, aside, projections, **kwargs)
            self.maps.append(maps.transpose(1, 2))


@contextmanager
def attackable(wrapped: AsaModel) -> Iterator[PreTrainedModel]:
    """The plain model, dropout off, while a call of it with `asa=AsaPass(...)` meets the adversaries."""
    wrapped.check_wrapped()
    with given_back(wrapped):
        wrapped.train().model.eval()  # attention is ASA's in training mode alone
        yield wrapped.model


@torch.no_grad()
def read_masks(wrapped: AsaModel, **batch: Tensor) -> list[Tensor]:
    """What the adversaries would switch off in a batch, dropout off.

    Args:
        wrapped: a wrapped model; it comes back as it was.
        batch: its keywords without labels, input_ids (B, L) and so on.

    Returns:
        Per layer (B, L, L), boolean, True = kept and allowed; a layer that is not attacked keeps all.
    """
    recording = Recording()
    with attackable(wrapped) as model:
        model(**batch, asa=AsaPass(joint=False, backend=wrapped.asa_config.backend, record=recording))
    return recording.masks
