"""What ``results.json`` holds under ``explained`` (``mode=explain``), as types."""

from typing import Annotated, TypedDict

from fedcats.results.compared import Unbounded


class LastExplains(TypedDict):
    """Share of the variance of the accuracy over orders that goes with who is merged when.

    From a linear model; of drawn orders adjusted for its number of effects. null: no variance.
    """

    last: Annotated[float | None, "who is last"]
    last_two: Annotated[float | None, "who is last, and who before"]
    last_three: Annotated[float | None, "the same of three"]


class Orders(TypedDict):
    """Polyak merges of all clients in random orders, on the test images."""

    beta: Annotated[float, "share of the incoming model"]
    n_eff: Annotated[float, "how many equal shares each merge's shares equal"]
    every: Annotated[bool, "these are all orders that there are"]
    accuracies: Annotated[list[float], "of each order"]
    last: Annotated[list[int], "who is merged last in each"]
    mean: Annotated[float, "of the accuracies"]
    sd: Annotated[float, "their standard deviation"]
    worst: Annotated[float, "the lowest"]
    best: Annotated[float, "the highest"]
    reported: Annotated[float, "accuracy with the run's own order"]
    below: Annotated[float, "share of the orders with a lower accuracy, half of those with equal"]
    plain_mean: Annotated[float, "accuracy of the plain mean, which every order has on average"]
    explained: Annotated[LastExplains, "of the variance"]


class Line(TypedDict):
    """Models on the straight line between two, on the test images."""

    first: Annotated[str, "name in `models`"]
    second: Annotated[str, "name in `models`"]
    loss: Annotated[list[float], "mean cross entropy at each of `points`, nats"]
    accuracy: Annotated[list[float], "likewise"]
    barrier: Annotated[float, "largest excess of the loss over the line between its ends, nats"]
    drop: Annotated[float, "the same of the error, as a share"]


class Layer(TypedDict):
    """The clients' updates in one layer."""

    layer: Annotated[str, "beginning of its state-dict keys"]
    weights: Annotated[int, "how many it has"]
    length: Annotated[list[float], "L2 norm of the update of each of `clients`"]
    relative: Annotated[float | None, "their mean, over the norm of the start; null: that is 0"]
    cosine: Annotated[float | None, "mean over pairs of clients; null: one client"]


class Own(TypedDict):
    """Models on photos of each client: null where a client has none."""

    model: Annotated[str, "name in `models`"]
    trained: Annotated[list[float | None], "accuracy on each client's training photos"]
    held_out: Annotated[list[float | None], "accuracy on each client's held-out photos"]
    trained_by_class: Annotated[
        list[list[float | None]], "the same of each client's photos of each class"
    ]
    held_out_by_class: Annotated[list[list[float | None]], "likewise"]


class Without(TypedDict):
    """Accuracy with a client less that of the same merge without it; above 0: it helps."""

    client: Annotated[int, "who is left out"]
    difference: Annotated[float, "on the test images"]
    low: Annotated[float, "lower end of the exact 95 % interval (Fay and Lumbard 2021)"]
    high: Annotated[float, "upper end"]


class Shapley(TypedDict):
    """Shapley values of the accuracy of the plain mean over coalitions of clients."""

    clients: Annotated[list[int], "the players"]
    values: Annotated[list[float], "of each; they add up to `everybody` less `nobody`"]
    low: Annotated[list[float], "95 % interval of the sampling of coalitions, not of the images"]
    high: Annotated[list[float], "likewise; the value itself where it is exact"]
    nobody: Annotated[float, "accuracy of the model that the clients started from"]
    everybody: Annotated[float, "of the plain mean of all"]
    coalitions: Annotated[int, "merges that were tested"]
    exact: Annotated[bool, "these are all coalitions"]


class OwnThreshold(TypedDict):
    """Accuracy where each model has its own threshold, the best one on the held-out images."""

    threshold: Annotated[float, "probability of `data.positive` above which it is taken"]
    accuracy: Annotated[float, "on the test images"]
    difference: Annotated[float, "less the centralized model's, at its own threshold"]
    low: Annotated[float, "lower end of the exact 95 % interval"]
    high: Annotated[float, "upper end"]


class Thresholdless(TypedDict):
    """One model on the test images, without the threshold of 1/2 that an accuracy has."""

    measures: Annotated[
        dict[str, float | None],
        "`roc_auc`, `average_precision`, `log_loss`, `brier`, `ece`; null: not defined",
    ]
    against: Annotated[
        dict[str, Unbounded],
        "of each measure, less the centralized model's; empty of that, or where there is none",
    ]
    at_own: Annotated[
        OwnThreshold | None, "null: more than two classes, nothing held out, or no centralized one"
    ]


class Explained(TypedDict):
    """Why the merge works, or does not, from the stored sub-models."""

    precision: Annotated[
        str, "`float32` or `bfloat16`: of `orders`, `lines`, `without`, `shapley` and `own.trained`"
    ]
    disagreement: Annotated[
        float, "largest share of images on which a model of the run answers otherwise in it"
    ]
    clients: Annotated[list[int], "whose sub-models are in `lines` and `cosines`"]
    orders: Annotated[list[Orders], "one for each beta; empty with `explain.orders=0`"]
    points: Annotated[list[float], "on each line, from 0 to 1; empty with `explain.points=0`"]
    lines: Annotated[list[Line], "one for each pair of models"]
    layers: Annotated[list[Layer], "in the order of the model"]
    cosines: Annotated[list[list[float]], "of the whole updates of each pair of `clients`"]
    own: Annotated[list[Own], "by model"]
    without: Annotated[dict[str, list[Without]], "by merge rule that is a fold"]
    shapley: Annotated[Shapley | None, "null with `explain.coalitions=0`"]
    thresholds: Annotated[dict[str, Thresholdless], "by name in `models`"]
    seconds: Annotated[dict[str, float], "where the time went"]
