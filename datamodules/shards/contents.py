"""What samples have besides their images, by the members that an index names: captions, masks, labels, json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from datamodules.account import Account
from datamodules.remote.transports import is_remote
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.tar_index import LABEL_FIELDS, MASK_FIELDS, ShardIndex

_LOCAL, _REMOTE = 32, 2  # indexes that are read of a set of more shards
_KINDS = {"captions": {"txt"}, "masks": {*MASK_FIELDS}, "labels": {*LABEL_FIELDS, "cls"}, "json": {"json"}}


class Contents(NamedTuple):
    """The account of the samples of some shards of a set, `samples` of the whole set."""

    account: Account
    samples: int

    @property
    def whole(self) -> bool:
        """Whether all samples of the set are in the account."""
        return self.account.taken == self.samples


def kinds_of(fields: Iterable[str]) -> tuple[str, ...]:
    """The kinds of an account that a sample of these members has; a caption that is in its json counts as json."""
    fields = set(fields)
    return tuple(kind for kind, members in _KINDS.items() if members & fields)


def account_of(index: ShardIndex) -> Account:
    """The account of one tar's samples, and of its members that are none."""
    account = Account()
    account.aside |= index.aside or {}
    for fields in index.fields:
        account.take(kinds_of(fields))
    return account


def look_into(shards: ShardSet) -> Contents:
    """The account of a set: of up to 32 shards, evenly among all; of 2 where they are remote."""
    count = len(shards.shards)
    most = min(count, _REMOTE if any(is_remote(shard.path) for shard in shards.shards) else _LOCAL)
    account = Account()
    for number in range(most):
        account.add(account_of(shards.index(number * count // most)))
    return Contents(account, len(shards))
