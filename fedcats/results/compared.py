"""What ``results.json`` says of two models on the same images, as types; see `fedcats.results`."""

from typing import Annotated, NotRequired, TypedDict


class Difference(TypedDict):
    """A score of the model minus the reference's; negative: the model is worse."""

    difference: Annotated[float, "on the test images"]
    low: Annotated[float | None, "lower end of the interval; null: the images say nothing of it"]
    high: Annotated[float | None, "upper end, likewise"]


class Unbounded(TypedDict):
    """The same of a measure that the images may leave undefined."""

    difference: Annotated[float | None, "on the test images; null: not defined"]
    low: Annotated[float | None, "lower end of the interval; null: the images say nothing of it"]
    high: Annotated[float | None, "upper end, likewise"]


class AtThresholds(TypedDict):
    """Two models of two classes, each at the threshold of its own (`models.*.threshold`)."""

    accuracy: Annotated[float, "of the model, on the test images"]
    reference_accuracy: Annotated[float, "of the reference"]
    difference: Annotated[float, "of the two"]
    low: Annotated[float, "lower end of its interval (Fay and Lumbard 2021)"]
    high: Annotated[float, "upper end"]


class Comparison(TypedDict):
    """A model beside a reference, the centralized one where nothing else is said, on the same test
    images (`fedcats.metrics`).
    """

    n: Annotated[int, "test images"]
    both_right: Annotated[int, "images"]
    only_model_right: Annotated[int, "images that only the model gets right"]
    only_reference_right: Annotated[int, "images that only the reference gets right"]
    both_wrong: Annotated[int, "images"]
    mcnemar_p: Annotated[float, "p value of the exact McNemar test of the accuracy"]
    mcnemar_p_holm: NotRequired[
        Annotated[float, "the same, adjusted for the number of merged models", "in a run"]
    ]
    confidence: Annotated[float, "level of the intervals"]
    resamples: Annotated[int, "draws behind the intervals that are not exact"]
    accuracy: Annotated[Difference, "exact interval (Fay and Lumbard 2021)"]
    precision: Annotated[Difference, "interval from draws"]
    recall: Annotated[Difference, "of two classes an exact interval, of more from draws"]
    f1: Annotated[Difference, "interval from draws"]
    thresholdless: NotRequired[
        Annotated[
            dict[str, Unbounded],
            "of `roc_auc`, `average_precision`, `log_loss`, `brier` and `ece`; of the last three "
            "less is better",
            "in a run",
        ]
    ]
    at_thresholds: NotRequired[
        Annotated[
            AtThresholds,
            "accuracy with thresholds chosen on the held-out images",
            "in a run, of two classes, where images are held out",
        ]
    ]


class Split(TypedDict):
    """A merged model minus the centralized one, in two parts (verdict.md)."""

    fewer_steps: Annotated[Comparison, "`same_steps` beside `centralized`"]
    photos_apart: Annotated[dict[str, Comparison], "by merge rule, beside `same_steps`"]


class Deviation(TypedDict):
    """Standard deviations of one run's difference, by what is drawn anew."""

    seed: Annotated[float, "another seed, on the same images"]
    photo: Annotated[float, "other images, with all seeds alike"]
    interaction: Annotated[float, "other images, what they do to each seed by itself"]


_NO_INTERVAL = "null: fewer than three seeds, or the images give no interval"


class OverSeeds(TypedDict):
    """A measure of the model minus the reference's, over seeds (verdict.md)."""

    by_seed: Annotated[list[float | None], "for each of `seeds`; null: not defined"]
    difference: Annotated[float | None, "their mean"]
    low: Annotated[float | None, f"lower end of its interval; {_NO_INTERVAL}"]
    high: Annotated[float | None, "upper end, likewise"]
    standard_error: Annotated[float | None, "of the difference, likewise"]
    df: Annotated[float | None, "its degrees of freedom, likewise"]
    deviation: Annotated[Deviation | None, "what moves one run's difference, likewise"]
    at_least_as_good: Annotated[
        float | None,
        "probability that with a new seed, on these images, the model is at least as good",
    ]


class Replicated(OverSeeds):
    """A model beside a reference over seeds, in accuracy."""

    title: Annotated[str, "the rule with its parameters, as far as all seeds have the same"]
    seeds: Annotated[list[int], "of the experiments"]
    n: Annotated[int, "test images, the same for all seeds"]
    confidence: Annotated[float, "level of the intervals"]
    margin: Annotated[float, "`margin`, as a share"]
    verdict: Annotated[
        str | None, f"`equivalent`, `worse`, `better` or `undecided`; {_NO_INTERVAL}"
    ]
    p_difference: Annotated[float | None, "of the t test against 0; null as `verdict`"]
    p_difference_holm: Annotated[float | None, "the same, adjusted for the number of models"]
    p_equivalence: Annotated[
        float | None, "larger one of the two one-sided t tests against the margin, likewise"
    ]
    p_equivalence_holm: Annotated[float | None, "the same, adjusted for the number of models"]
    seeds_to_decide: Annotated[
        int | None, "if undecided, how many seeds more would decide; null: not even 1,000"
    ]
    measures: Annotated[
        dict[str, OverSeeds],
        "the same for `precision`, `recall`, `f1`, `roc_auc`, `average_precision`, `log_loss`, "
        "`brier` and `ece`; of the last three less is better",
    ]


class SplitOverSeeds(TypedDict):
    """The same two parts over seeds."""

    fewer_steps: Annotated[Replicated, "`same_steps` beside `centralized`"]
    photos_apart: Annotated[dict[str, Replicated], "by merge rule, beside `same_steps`"]
