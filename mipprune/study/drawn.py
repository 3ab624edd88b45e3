"""What reports draw of kinds without a picture of their own.  Apart from the kinds, so that a report needs no torch."""

from __future__ import annotations

import dataclasses

__all__ = ["DRAWN", "Drawn"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What the report draws of a kind: a dot per run and the mean of them, or lines over a numeric setting.

    Attributes:
        results: names of results that are numbers; ``"loss of *"`` stands for all that begin so.
        over: a numeric setting: lines through the means with bands from lowest to highest; None for rows of dots.
        together: the results share a unit: a panel per setting with all of them; else a panel per result.
        text: axis label where they are together.
        log: logarithmic axis.
    """

    results: tuple[str, ...]
    over: str | None = None
    together: bool = False
    text: str = ""
    log: bool = False


#: By name of the kind; registering a kind adds its own.
DRAWN: dict[str, Drawn] = {
    "gtap": Drawn(("accuracy",)),
    "ranks": Drawn(("above best: *",), together=True, text="mean loss above the best set's (nats)"),
    "oamip": Drawn(("kept", "accuracy"), over="samples"),
    "train_and_prune": Drawn(("accuracy", "top_eigenvalue")),
    "gap_bound": Drawn(("loose_*",), over="keep", together=True, text="bound / measured gap", log=True),
}
