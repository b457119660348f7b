"""What the keys come to: who is strategic, how many points a user has, f, the folder of a run."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from pfl_flower.data.table import DATASETS, PARTITIONS, TOLD
from pfl_flower.objective.table import MODELS
from pfl_flower.run.keys import Keys, Scalar
from pfl_flower.run.personalization import WAYS, Way
from pfl_flower.run.places import changes, named
from pfl_flower.run.presets import settings_of
from pfl_flower.support.errors import KeyFault
from pfl_flower.support.folders import own_path

PATHS = (
    "output-dir",
    "state-dir",
    "data-dir",
    "embedding-weights",
    "model-weights",
    "resume",
    "attack-model",
)
RESULTS = "~/pfl-flower"
"""Where results go when nothing else is said."""
LONGEST = 18
"""Digits of a number in a list: more are nobody's, and Python refuses to read thousands."""
SIZE = re.compile(rf"[1-9]\d{{,{LONGEST - 1}}}")
NUMBERS = re.compile(rf"{SIZE.pattern}(,{SIZE.pattern})*")
SIZES, SHIFTS = "sizes such as 60000,10", "shifts such as 1,2"
USERS = "ids such as 3,7-9, all, or none"
LOCAL_LR_FLOOR = 0.005
"""What the decay of ``local-lr`` stops at where nothing is said."""

DRAWN = "500"
"""Points of a user that draws, unless the run says otherwise."""
HELD_OUT = 0.2
"""Share of one's own points that becomes the common test set, unless the run says otherwise."""
OWN_TESTS = 0.2
"""Share of a user's points that becomes its own test set, unless the run says otherwise."""


@lru_cache(maxsize=64)
def _user_ids(listed: str, users: int) -> frozenset[int]:
    """Return the ids that a list such as ``3,7-9`` names; clients ask in every round."""
    text = listed.replace(" ", "")
    if text in ("", "none"):
        return frozenset()
    if text == "all":
        return frozenset(range(users))
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise KeyFault("strategic-users", listed, USERS)
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        # Before anything is counted: a range may be as long as a memory.
        if any(len(end) > LONGEST or int(end) >= users for end in (first, last or first)):
            raise KeyFault("strategic-users", listed, f"ids 0 to {users - 1}")
        if int(last or first) < int(first):
            raise KeyFault("strategic-users", listed, f"{last}-{first} for {part}, ascending")
        members = range(int(first), int(last or first) + 1)
        if twice := chosen.intersection(members):
            raise KeyFault(
                "strategic-users", listed, f"each id once, and {min(twice)} is there twice"
            )
        chosen.update(members)
    return frozenset(chosen)


class Settings(Keys):
    """The keys, and what is worked out from them."""

    @property
    def synthetic(self) -> bool:
        """Whether the data are made, by models that are known."""
        return DATASETS.row(self.dataset).synthetic

    @property
    def embedded(self) -> bool:
        """Whether images are seen through a network's last layer but one."""
        return DATASETS.row(self.dataset).embedded

    @property
    def way(self) -> Way:
        """What is learned, and whose gradients reports are."""
        return WAYS[self.personalization]

    @property
    def simultaneous(self) -> bool:
        """Whether users report from the model before its update (the paper's experiments)."""
        return self.update_order == "simultaneous"

    @property
    def loss(self) -> str:
        """The loss that the dataset's labels are made for; empty if only the data can tell."""
        return DATASETS.row(self.dataset).loss

    @property
    def linear(self) -> bool:
        """Whether the model is linear in its parameters."""
        return MODELS.row(self.model).linear

    def points_asked(self) -> tuple[int, ...]:
        """Return the number of points that each user is to have; empty for all that fall to it.

        Under a partition a user may have fewer: what it has is the problem's to say.
        """
        text = self.points_per_user
        if not text:
            return () if PARTITIONS.row(self.partition).reads else _sizes(DRAWN, self.users)
        if not NUMBERS.fullmatch(text):
            raise KeyFault("points-per-user", text, SIZES)
        if text.count(",") >= self.users:
            right = f"at most {self.users} sizes, one a user"
            raise KeyFault("points-per-user", text, f"{right}; the last is repeated")
        return _sizes(text, self.users)

    def tested_share(self) -> float:
        """Return the fraction of a user's points that is kept for its own test set."""
        return OWN_TESTS if self.test_share == "auto" else self.test_share

    def held_out(self) -> float:
        """Return the fraction of one's own points that becomes the common test set."""
        if self.holdout != "auto":
            return self.holdout
        own = bool(self.test_data) or PARTITIONS.row(self.partition).shared
        return 0.0 if own else HELD_OUT

    def sizes(self) -> tuple[int, ...]:
        """Return the shape of a point as ``columns`` tells it; empty where it does not."""
        if isinstance(self.columns, str):
            return tuple(int(size) for size in self.columns.split("x"))
        return (self.columns,) if self.columns else ()

    @property
    def away(self) -> bool:
        """Whether users' points lie on nodes alone, and the server reads none of them.

        So it is at a site that tells what they are, where a node can tell what its users have.
        """
        tells = TOLD in DATASETS.row(self.dataset).reads and bool(self.columns)
        return self.site and tells and PARTITIONS.row(self.partition).apart

    def sample_size(self) -> int:
        """Return the number of users asked in a round."""
        return round(self.participation * self.users)

    def sample_scale(self) -> float:
        """Return what the sum of a round's reports is multiplied by."""
        return self.users / self.sample_size() if self.participation_rescale else 1.0

    def strategic(self) -> frozenset[int]:
        """Return the ids of the users that the run makes strategic."""
        return _user_ids(self.strategic_users, self.users)

    def shifts(self) -> tuple[int, ...]:
        """Return what each strategic user's target adds to a class, in the order of their ids."""
        text, count = self.target_shift, max(1, len(self.strategic()))
        if not NUMBERS.fullmatch(text):
            raise KeyFault("target-shift", text, SHIFTS)
        if text.count(",") >= count:
            right = f"at most {count}, one for each strategic user"
            raise KeyFault("target-shift", text, f"{right}; the last is repeated")
        return _sizes(text, count)

    def shift(self, user: int) -> int:
        """Return the shift of a strategic user's target; the first for one the run knows not."""
        chosen = sorted(self.strategic())
        return self.shifts()[chosen.index(user) if user in chosen else 0]

    def allies(self, user: int) -> int:
        """Return how many strategic users share this one's target, itself included."""
        same = [other for other in self.strategic() if self.shift(other) == self.shift(user)]
        return max(1, len(same))

    def tolerance(self) -> int:
        """Return f, the number of strategic users that the aggregation is meant to withstand."""
        given = self.aggregation_tolerance
        return max(1, len(self.strategic())) if given == "" else given

    def local_floor(self) -> float:
        """Return what the decay of the local learning rate stops at."""
        if self.local_lr_floor == "":
            return min(LOCAL_LR_FLOOR, self.local_lr)
        return self.local_lr_floor

    def folder(self) -> Path:
        """Return the absolute folder of the run's results.

        ``output-dir/name``; what has a preset's name and other settings is beside it, under a name
        that says which. An ``output-dir`` that ends in the run's name is that folder itself.
        """
        base = own_path("output-dir", self.output_dir or RESULTS)
        if base.name == self.name:
            return base
        values = self.flat()
        return base / named(self.name, changes(values, settings_of(self.name) or values))

    def state_folder(self, chosen: str = "") -> Path:
        """Return the absolute folder of clients' memory, in ``chosen`` or as ``state-dir`` says."""
        folder, own = chosen or self.state_dir, self.folder()
        return own_path("state-dir", folder) / own.name if folder else own / "state"

    def paths(self) -> dict[str, str]:
        """Return the keys that name a file or a folder, and what they name."""
        words = {"resume": "auto", "attack-model": "exact"}
        values = self.flat()
        named = {key: str(values[key]) for key in PATHS}
        return {key: place for key, place in named.items() if place not in ("", words.get(key))}

    def flat(self) -> dict[str, Scalar]:
        """Return all keys and values as Flower's run config spells them."""
        return self.model_dump(by_alias=True)


@lru_cache(maxsize=8)
def _sizes(text: str, users: int) -> tuple[int, ...]:
    given = [int(size) for size in text.split(",")]
    return tuple(given + given[-1:] * (users - len(given)))
