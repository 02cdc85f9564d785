"""Conditioning of several captions as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..protocols import Cond


def collate(conds: Sequence[Cond]) -> Cond:
    """Return the rows of several conditionings as one batch; shorter texts are filled up with zeros at their end.

    Families whose texts differ in length carry a "mask", which the filling leaves False.

    >>> collate([{"mask": torch.ones(1, 2)}, {"mask": torch.ones(1, 1)}])["mask"].tolist()
    [[1.0, 1.0], [1.0, 0.0]]
    """
    return {name: _joined([cond[name] for cond in conds]) for name in conds[0]}


def _joined(rows: Sequence[Tensor]) -> Tensor:
    if len({row.shape[1:] for row in rows}) == 1:
        return torch.cat(list(rows))
    longest = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (*[0, 0] * (row.dim() - 2), 0, longest - row.shape[1])) for row in rows])
