"""What ``results.json`` holds, as types.

Every key carries its meaning, and one that is not always there the condition: from these texts
``python docs/generate.py`` makes ``docs/results.md``.

Scores, shares and p values are numbers from 0 to 1; clients are counted from 0; class names and
files (relative to the data folder) are as the data has them.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from fedcats.results.compared import AtThresholds as AtThresholds
from fedcats.results.compared import Comparison as Comparison
from fedcats.results.compared import Difference as Difference
from fedcats.results.compared import OverSeeds as OverSeeds
from fedcats.results.compared import Replicated as Replicated
from fedcats.results.compared import Split as Split
from fedcats.results.compared import SplitOverSeeds as SplitOverSeeds
from fedcats.results.compared import Unbounded as Unbounded
from fedcats.results.data import Audit as Audit
from fedcats.results.data import Copy as Copy
from fedcats.results.data import Data as Data
from fedcats.results.data import Digests as Digests
from fedcats.results.data import NearDuplicate as NearDuplicate
from fedcats.results.data import Shard as Shard
from fedcats.results.explained import Explained
from fedcats.results.privacy import DifferentialPrivacy, Privacy

Score = Literal["accuracy", "precision", "recall"]
Measure = Literal["accuracy", "precision", "recall", "f1", "loss"]


class Ratios(TypedDict):
    """Three scores; one with an empty denominator is 0."""

    precision: Annotated[float, "of what is taken for the class, the share that is of it"]
    recall: Annotated[float, "of what is of the class, the share that is taken for it"]
    f1: Annotated[float, "harmonic mean of the two"]


class ClassScores(Ratios):
    """Of one class."""

    support: Annotated[int, "images that are of the class"]


class Scores(TypedDict):
    """Of one model on one set of images."""

    accuracy: Annotated[float, "share of the images that is classified right"]
    precision: Annotated[float, "of two classes that of `data.positive`, of more the macro mean"]
    recall: Annotated[float, "likewise"]
    f1: Annotated[float, "likewise"]
    loss: Annotated[float, "mean cross entropy, nats"]
    n: Annotated[int, "images"]
    confusion_matrix: Annotated[
        list[list[int]], "rows: true class, columns: predicted class, in the order of data.classes"
    ]
    per_class: Annotated[dict[str, ClassScores], "by class name"]
    macro: Annotated[Ratios, "unweighted means over the classes"]


class Validation(TypedDict):
    """Of a model on held-out training images."""

    accuracy: Annotated[float, "share of the images that is classified right"]
    loss: Annotated[float, "mean cross entropy, nats"]
    n: Annotated[int, "images"]


class EpochRecord(TypedDict):
    """One epoch of training."""

    loss: Annotated[float, "mean training loss of an image, nats"]
    seconds: Annotated[float, "wall-clock time, when it was trained (perhaps in an earlier run)"]
    validation: NotRequired[
        Annotated[
            Validation,
            "after it, of a client's model on the client's own held-out images, of one trained in "
            "one place on those of all clients",
            "with `validate=true`, where there are such images and the model's outputs are finite",
        ]
    ]


class Training(TypedDict):
    """How a model was trained; a client's: in the first round."""

    examples: Annotated[int, "images that it was trained on"]
    steps: Annotated[int, "optimizer steps in all"]
    epochs: Annotated[list[EpochRecord], "in their order"]


class Traffic(TypedDict):
    """Weights between server and clients in a round; in a simulation they do not travel."""

    down: Annotated[int, "bytes to all clients that were asked"]
    up: Annotated[int, "bytes from all clients that were merged, of what the rule needs"]


_HELD = "where images are held out"
_TRAINED = "of `centralized`, `same_steps` and `submodel/<client>`"
_MERGED = "of merged models"
_MEANS = "of merged models that are weighted means of the clients' (and of `krum`, which takes one)"


class Tested(Scores):
    """Of one model on the test images, and on the held-out ones where there are any."""

    validation: NotRequired[
        Annotated[Validation, "on the held-out training images of all clients", _HELD]
    ]
    by_client: NotRequired[
        Annotated[
            list[float | None],
            "accuracy on each client's held-out images; null: it has none",
            _HELD,
        ]
    ]


class Threshold(TypedDict):
    """The probability of `data.positive`, of two classes, above which to say that class."""

    value: Annotated[float, "best on the held-out images, of equal ones that nearest to 0.5"]
    accuracy: Annotated[float, "with it, on the test images"]


class Model(Tested):
    """One tested model."""

    thresholdless: Annotated[
        dict[str, float | None],
        "`roc_auc`, `average_precision`, `log_loss`, `brier` and `ece`; null: not defined",
    ]
    threshold: NotRequired[
        Annotated[Threshold, "chosen for it", "of two classes, where images are held out"]
    ]

    file: Annotated[str | None, "its weights in the run folder; null: not saved (`save_models`)"]
    predictions: Annotated[str, "its predictions in the run folder"]
    training: NotRequired[Annotated[Training, "how it was trained", _TRAINED]]
    key: NotRequired[
        Annotated[str | None, "of its weights in the store; null: `store.enabled=false`", _TRAINED]
    ]
    title: NotRequired[Annotated[str, "the rule with its parameters, for a reader", _MERGED]]
    clients: NotRequired[
        Annotated[list[int], "who was merged in the last round, in that order", _MERGED]
    ]
    bytes: NotRequired[Annotated[Traffic, "of the last round", _MERGED]]
    effective_weights: NotRequired[
        Annotated[list[float], "share of each of `clients` in the merged weights", _MEANS]
    ]
    global_weight: NotRequired[
        Annotated[
            float,
            "share of the model that the round started from; the other shares add up to the rest",
            "of `polyak` with `strategy.start=global`, unless beta is 1",
        ]
    ]
    n_eff: NotRequired[
        Annotated[
            float, "1 / sum of the squares of these shares: how many equal ones they equal", _MEANS
        ]
    ]
    optimizer: NotRequired[
        Annotated[dict[str, float], "its settings, see `strategy`", "of `fedavgm` and `fedadam`"]
    ]
    settings: NotRequired[
        Annotated[
            dict[str, float | str | None],
            "the rule's own, see `strategy`",
            "of rules that have some and are not named above",
        ]
    ]
    chosen: NotRequired[
        Annotated[str, "what was chosen, on what; never on test images", "if anything was"]
    ]
    chosen_from: NotRequired[
        Annotated[
            dict[str, float],
            "accuracy of each candidate on the held-out images, by its title",
            "of `scale` with `auto`",
        ]
    ]
    beta: NotRequired[Annotated[float, "share of the incoming model", "of `polyak`"]]
    beta_chosen_from: NotRequired[
        Annotated[
            dict[str, float],
            "accuracy of each candidate's merge of the first round on the held-out images",
            "of `polyak` with `strategy.beta=auto`",
        ]
    ]


class RoundTraining(TypedDict):
    """What the clients of a round did together."""

    examples: Annotated[int, "images"]
    epochs: Annotated[int, "of each"]
    steps: Annotated[int, "optimizer steps"]
    loss: Annotated[float, "mean over clients of the last epoch's training loss, nats"]
    seconds: Annotated[float, "sum over clients, when they were trained"]
    validation: NotRequired[
        Annotated[
            Validation,
            "after the last epoch, of each client's model on its own held-out images, all together",
            "likewise with `validate=true`",
        ]
    ]


class RoundScores(Scores):
    """A rule's merged model after a round."""

    bytes: Annotated[Traffic, "of the round"]
    clients: Annotated[list[int], "who was merged, in that order"]
    own: Annotated[
        list[float | None],
        "accuracy of their own models, as they were merged; null: one without finite answers, or "
        "no longer in the store",
    ]
    training: Annotated[RoundTraining, "of these clients"]


class Machine(TypedDict):
    """Where it ran; of a real federation the server."""

    processor: Annotated[str, "model, as the system names it"]
    cores: Annotated[int, "that the process could use"]
    workers: Annotated[int, "`runner.workers`, by default the cores"]
    device: Annotated[str, "`cpu` or `cuda`"]


class Weights(TypedDict):
    """The initial weights that all clients and the baseline start from."""

    source: Annotated[str, "`imagenet`, `imagenet_features`, `none` or a file"]
    sha256: Annotated[str, "SHA-256 of all of them, hexadecimal"]
    note: Annotated[str, "why this source, or what is to be known of the file; may be empty"]
    missing: Annotated[list[str], "state-dict keys that the file lacks: they start at random"]
    only_linear: Annotated[
        bool, "whether nothing but a last linear layer is trained: merging then averages logits"
    ]


class StoreUse(TypedDict):
    """Trainings by name: `centralized`, `same_steps`, `submodel/<client>`, and from the second
    round on `<rule>/submodel/<client>`, once for each round. With several `seeds` those of all of
    them, each with `seed <seed>, ` before it.
    """

    enabled: Annotated[bool, "`store.enabled`"]
    trained: Annotated[list[str], "in this run"]
    reused: Annotated[list[str], "taken from the store"]
    resumed: Annotated[dict[str, int], "went on from a checkpoint, after so many epochs"]
    damaged: Annotated[list[str], "trained since the store's entry was damaged"]


class AttackUse(TypedDict):
    """The simulated attack."""

    name: Annotated[str, "`label_flip`, `scale` or `sign_flip`"]
    clients: Annotated[list[int], "who attacks"]
    factor: Annotated[float, "`attack.factor`; without meaning for `label_flip`"]


class Published(TypedDict, total=False):
    """What a paper printed of a model; any of it may be missing."""

    accuracy: Annotated[float, "share"]
    precision: Annotated[float, "share"]
    recall: Annotated[float, "share"]
    confusion_matrix: Annotated[list[list[int]], "rows: true class, columns: predicted class"]
    training_loss: Annotated[float, "mean of the last epoch, nats"]
    minutes: Annotated[float, "training time"]


class Paper(TypedDict):
    """Published figures to set beside the run's (`conf/paper`)."""

    name: Annotated[str, "the option of `paper`"]
    title: NotRequired[Annotated[str, "of the paper", "if the option has it"]]
    n: NotRequired[Annotated[int, "test images there", "if the option has it"]]
    models: NotRequired[
        Annotated[dict[str, Published], "by the names of `models`", "if the option has it"]
    ]


_Varied = TypedDict(
    "_Varied",
    {
        "strategy.beta": Annotated[float | None, "of `polyak`; null of other rules"],
        "strategy.order": Annotated[
            str | None, "null of what merges in one order only, or does not merge"
        ],
    },
)


class GridRow(Scores, _Varied):
    """One merge of the grid, with its scores on the test images."""

    model: Annotated[str, "the rule"]
    clients: Annotated[list[int], "who is merged, in that order"]
    predictions: Annotated[str, "its predictions in the run folder"]
    sha256: Annotated[str, "of its probabilities on the test images: of equal models it is equal"]
    validation: NotRequired[Annotated[Validation, "on the held-out training images", _HELD]]
    bytes: Annotated[float, "that a client sends for it, mean over the clients"]
    title: NotRequired[Annotated[str, "the rule with its parameters, for a reader", "of rules"]]
    chosen: NotRequired[
        Annotated[
            str,
            "why it stands for its rule: what was chosen, on what; never on test images",
            "of one row of each rule, if there is a reason",
        ]
    ]


class MergeGrid(TypedDict):
    """All merges of `mode=merge`."""

    points: Annotated[int, "combinations that were asked for"]
    rows: Annotated[list[GridRow], "one for each merge that differs"]


class Seconds(TypedDict):
    """Wall-clock time in seconds."""

    data: Annotated[float, "to find, check and decode the images and the initial weights"]
    training: Annotated[float, "of the baseline and the clients side by side, merges included"]
    evaluation: Annotated[float, "of the tests and the comparison"]
    total: Annotated[float, "until the results are written"]


Round = dict[str, int | RoundScores]
"""`round`: its number, from 1; and by rule the scores of its merged model after that round."""


class Results(TypedDict):
    """All of `results.json`."""

    schema: Annotated[int, "version of this description: 1"]
    status: Annotated[str, "`complete`; `without its report` if that could not be written"]
    date: Annotated[str, "when it was trained, ISO 8601 with the offset from UTC"]
    command: Annotated[str, "as it was given; empty where a program or `flwr run` gave none"]
    config: Annotated[dict[str, Any], "the resolved configuration, see configuration.md"]
    seed: Annotated[int, "`seed`, or the first of `seeds`, of which everything else here speaks"]
    versions: Annotated[dict[str, str], "of fedcats, python, torch, torchvision, flwr and ray"]
    machine: Annotated[Machine, "where it ran"]
    data: Annotated[Data, "the images"]
    weights: Annotated[Weights, "the initial weights"]
    store: Annotated[StoreUse, "what was trained and what was found in the store"]
    models: Annotated[
        dict[str, Model],
        "by name: `centralized`, `same_steps` (in one place, with as many steps as a client; "
        "unless `reference=[full]`), `submodel/<client>` (of the first round), each merge rule",
    ]
    comparison: Annotated[
        dict[str, Comparison],
        "by merge rule; empty where there is no centralized or no merged model",
    ]
    split: NotRequired[
        Annotated[
            Split,
            "what comes with fewer steps, and what with keeping photos apart",
            "where there are `same_steps` and a merged model",
        ]
    ]
    split_over_seeds: NotRequired[
        Annotated[SplitOverSeeds, "the same over seeds", "likewise, with `seeds`"]
    ]
    replication: NotRequired[
        Annotated[
            dict[str, Replicated],
            "by merge rule; the other seeds' own results are in `seed-<seed>/results.json`, where "
            "`seeds` names that seed alone",
            "with `seeds`",
        ]
    ]
    seconds: Annotated[Seconds, "where the time went; with `seeds`, of all of them"]
    rounds: NotRequired[
        Annotated[
            list[Round],
            "after each round: `round`, its number from 1, and by rule its merged model's scores",
            "with `rounds` above 1",
        ]
    ]
    grid: NotRequired[Annotated[MergeGrid, "all merges", "with `mode=merge`"]]
    explained: NotRequired[Annotated[Explained, "why", "with `mode=explain`"]]
    attack: NotRequired[Annotated[AttackUse, "the simulated attack", "unless `attack=none`"]]
    privacy: NotRequired[
        Annotated[
            Privacy,
            "what weights give away",
            "with `privacy=measure`, or `privacy=dp privacy.measure=true`",
        ]
    ]
    dp: NotRequired[Annotated[DifferentialPrivacy, "what is promised", "with `privacy=dp`"]]
    not_scored: NotRequired[
        Annotated[
            dict[str, str],
            "clients' models (`submodel/<client>`) without scores, and why",
            "when the outputs of one are not finite",
        ]
    ]
    failures: NotRequired[
        Annotated[
            dict[str, str],
            "who was left out (`round 1, client 3`, `seed 2, round 1, client 3`) and why",
            "with `strategy.on_failure=survivors`, when a client failed",
        ]
    ]
    paper: NotRequired[Annotated[Paper, "published figures", "unless `paper=none`"]]
