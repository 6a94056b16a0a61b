"""What ``results.json`` holds under ``privacy``, as types; see `fedcats.results`."""

from typing import Annotated, NotRequired, TypedDict


class Estimate(TypedDict):
    """A number measured on photos, with its interval."""

    value: Annotated[float, "on the photos as they are"]
    low: Annotated[float, "lower end of the interval, from photos drawn again"]
    high: Annotated[float, "upper end, likewise"]


class AttackScores(TypedDict):
    """How well an attack tells training photos from others."""

    auc: Annotated[Estimate, "area under the ROC curve; 0.5 is guessing"]
    tpr: Annotated[
        dict[str, Estimate | None],
        "share of the members that is found, by the share of the non-members that is taken for "
        "members (`0.01`, `0.001`); null: the non-members are too few to resolve it",
    ]
    roc: Annotated[list[list[float]], "[false, true positive rate], evenly spaced as logarithms"]


class Membership(TypedDict):
    """Membership inference against one model, or against all clients' updates together."""

    members: Annotated[int, "photos that the model was trained on (pairs of update and photo)"]
    nonmembers: Annotated[int, "photos that it was not trained on, likewise"]
    shadows: Annotated[int, "models that did not train on the photo, for each photo; 0: too few"]
    left_out: Annotated[int, "photos for which there are not as many, likewise"]
    attacks: Annotated[
        dict[str, AttackScores],
        "`loss` (threshold), `lira` (LiRA / FedMIA) and `rmia`; with no `shadows` only the first",
    ]


class PrivateTraining(TypedDict):
    """A training with DP-SGD, over all rounds."""

    photos: Annotated[int, "that it trains on, which count as known to everybody"]
    rate: Annotated[float, "probability of each photo to be in a step (Poisson sampling)"]
    steps: Annotated[int, "in all rounds, set beforehand"]
    noise: Annotated[float, "standard deviation in multiples of the clip; 0: none"]
    epsilon: Annotated[float | None, "at `delta`, of all steps together; null: nothing promised"]


class DifferentialPrivacy(TypedDict):
    """What training by DP-SGD promises of the weights, whatever the attack."""

    unit: Annotated[str, "what is protected"]
    neighbours: Annotated[str, "which two data sets give nearly the same weights"]
    delta: Annotated[float, "of (epsilon, delta)"]
    clip: Annotated[float, "largest length of one photo's gradient"]
    accountant: Annotated[str, "what counted"]
    epsilon: Annotated[
        float | None,
        "the largest of the clients', each of all that it sends in all rounds for one rule; null: "
        "nothing is promised",
    ]
    clients: Annotated[list[PrivateTraining], "by client; empty with `mode=centralized`"]
    centralized: Annotated[
        dict[str, PrivateTraining],
        "by model, `centralized` and `same_steps`, each by itself; empty with "
        "`privacy.centralized=false`",
    ]


class Privacy(TypedDict):
    """What the weights give away of the photos that they were trained on."""

    confidence: Annotated[float, "level of the intervals, which speak of the choice of photos"]
    models: Annotated[dict[str, Membership], "by the names of `models`"]
    clients: NotRequired[
        Annotated[Membership, "all clients' updates of the first round together", "with clients"]
    ]
    hidden: Annotated[
        dict[str, dict[str, Estimate]],
        "what merging hides, by merge rule and attack: the area under the curve against the "
        "clients' updates minus that against the merged model, members each client's own photos, "
        "non-members in both the photos that nobody trained on; from 2 clients on",
    ]
