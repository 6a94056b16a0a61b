"""Scores by hand, the paper's own tables, paired comparisons, predictions on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from fedcats.errors import RunError, UserError
from fedcats.metrics import (
    compare,
    paired_interval,
    read_predictions,
    scores,
    wilson,
    write_predictions,
)


def from_matrix(matrix: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and one-hot probabilities that give this confusion matrix."""
    k = len(matrix)
    pairs = [(t, p) for t in range(k) for p in range(k) for _ in range(matrix[t][p])]
    labels, predicted = np.array(pairs).T
    return labels, np.eye(k)[predicted]


def noisy(n: int, k: int, seed: int, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(k, size=n)
    logits = generator.normal(size=(n, k)) + skill * np.eye(k)[labels]
    exp = np.exp(logits)
    return labels, exp / exp.sum(axis=1, keepdims=True)


def test_scores_by_hand():
    labels = [0, 0, 1, 1, 1]
    probabilities = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.5, 0.5], [0.25, 0.75]]
    result = scores(labels, probabilities, ["cat", "dog"])
    assert result["confusion_matrix"] == [[1, 1], [1, 2]]  # the tie goes to the first class
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["precision"] == pytest.approx(2 / 3)
    assert result["recall"] == pytest.approx(2 / 3)
    assert result["f1"] == pytest.approx(2 / 3)
    expected = -np.mean(np.log([0.9, 0.4, 0.8, 0.5, 0.75]))
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    assert result["n"] == 5
    assert result["per_class"]["cat"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert result["per_class"]["dog"]["support"] == 3
    assert result["macro"]["precision"] == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("matrix", "accuracy", "precision", "recall"),
    [
        ([[488, 18], [41, 465]], 0.9417, 0.9627, 0.91897),  # Table I
        ([[464, 42], [24, 482]], 0.9348, 0.9198, 0.9526),  # Table III
    ],
)
def test_the_papers_tables_follow_from_its_matrices(matrix, accuracy, precision, recall):
    result = scores(*from_matrix(matrix))
    assert result["confusion_matrix"] == matrix
    assert result["accuracy"] == pytest.approx(accuracy, abs=6e-5)
    assert result["precision"] == pytest.approx(precision, abs=6e-5)
    assert result["recall"] == pytest.approx(recall, abs=6e-5)


def test_three_classes_are_averaged_over_classes():
    result = scores(*from_matrix([[2, 0, 0], [1, 1, 0], [0, 0, 4]]), ["a", "b", "c"])
    assert result["precision"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert result["recall"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert result["accuracy"] == pytest.approx(7 / 8)
    assert result["macro"]["f1"] == result["f1"]
    assert list(result["per_class"]) == ["a", "b", "c"]


def test_a_class_that_is_never_predicted_scores_zero():
    result = scores([0, 1, 1], [[1, 0], [1, 0], [1, 0]])
    assert (result["precision"], result["recall"], result["f1"]) == (0.0, 0.0, 0.0)
    assert result["confusion_matrix"] == [[1, 0], [2, 0]]
    assert np.isfinite(result["loss"])  # probability 0 of the true class is clipped


def test_a_class_without_test_photos_keeps_its_row():
    result = scores([0, 0], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], ["a", "b", "c"])
    assert result["confusion_matrix"] == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert result["per_class"]["c"]["support"] == 0


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.empty((0, 2)), "expected"),
        ([0, 1], [[0.5, 0.5]], "expected"),
        ([0], [[1.0]], "expected"),
        ([2], [[0.5, 0.5]], "integers from 0 to 1"),
        ([0.0], [[0.5, 0.5]], "integers from 0 to 1"),
        ([0], [[-3.0, 5.0]], "not logits"),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        scores(labels, probabilities)


def test_class_names_must_fit():
    with pytest.raises(ValueError, match="3 class names for 2 columns"):
        scores([0], [[0.5, 0.5]], ["a", "b", "c"])


def test_a_diverged_model_is_named_as_such():
    with pytest.raises(RunError, match="diverged"):
        scores([0, 1], [[0.5, 0.5], [np.nan, np.nan]])


def test_mcnemar_by_hand():
    # 4 photos only the model gets right, 1 only the reference, 3 both, 2 neither
    labels = np.zeros(10, dtype=np.int64)
    model_right = np.array([1, 1, 1, 1, 0, 1, 1, 1, 0, 0])
    reference_right = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
    result = compare(labels, np.eye(2)[1 - model_right], np.eye(2)[1 - reference_right], seed=1)
    counts = [
        result[key]
        for key in ("only_model_right", "only_reference_right", "both_right", "both_wrong")
    ]
    assert counts == [4, 1, 3, 2]
    assert result["mcnemar_p"] == pytest.approx(2 * (1 + 5) / 2**5)
    assert result["accuracy"]["difference"] == pytest.approx(0.3)


def test_a_model_against_itself_differs_by_nothing_but_is_not_known_to():
    labels, p = noisy(50, 2, seed=3)
    result = compare(labels, p, p, seed=1)
    assert result["mcnemar_p"] == 1.0
    for key in ("accuracy", "precision", "recall", "f1"):
        assert result[key]["difference"] == 0.0
        assert result[key]["low"] < 0 < result[key]["high"]
    # nothing of n: 1 - (1 - confidence / 2) ** (1 / n), as Clopper and Pearson have it
    assert result["accuracy"]["high"] == pytest.approx(1 - 0.025 ** (1 / 50))


@pytest.mark.parametrize("k", [2, 3])
def test_the_differences_are_those_of_scores(k):
    labels, p = noisy(300, k, seed=3, skill=2.0)
    _, q = noisy(300, k, seed=4)
    result = compare(labels, p, q, seed=1)
    first, second = scores(labels, p), scores(labels, q)
    for key in ("accuracy", "precision", "recall", "f1"):
        assert result[key]["difference"] == pytest.approx(first[key] - second[key], abs=1e-12)
        assert result[key]["low"] <= result[key]["difference"] <= result[key]["high"]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2000)))
def test_the_paired_interval_says_what_the_exact_test_says(table):
    gained, lost, rest = table
    n = gained + lost + rest
    low, high = paired_interval(gained, lost, n)
    if n == 0:
        assert (low, high) == (-1, 1)
        return
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert (low > 0 or high < 0) == (p < 0.05)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert low < high
    assert paired_interval(lost, gained, n) == (-high, -low)


@pytest.mark.parametrize(
    "table", [(1, 7, 21), (9, 2, 161), (12, 17, 1013), (3, 0, 3), (2, 47, 50), (0, 0, 9), (6, 3, 9)]
)
def test_the_paired_interval_melds_two_clopper_pearson_distributions(table):
    """Fay and Lumbard's definition, by simulation (1, 7, 21: Bentur 2009, their example)."""
    x, n = table[0], table[2]
    m = x + table[1]
    generator = np.random.default_rng(2)

    def beta(a: int, b: int) -> np.ndarray:
        if a and b:
            return generator.beta(a, b, 200_000)
        return np.full(200_000, float(a > 0))

    shares = beta(m, n - m + 1), beta(m + 1, n - m)
    sides = beta(x, m - x + 1), beta(x + 1, m - x)
    low = min(np.quantile(share * (2 * sides[0] - 1), 0.025) for share in shares)
    high = max(np.quantile(share * (2 * sides[1] - 1), 0.975) for share in shares)
    assert paired_interval(*table) == pytest.approx((low, high), abs=0.006)


@pytest.mark.parametrize("n", [3, 9])
def test_the_paired_interval_covers_at_least_what_it_says(n):
    """All tables of n pairs, over a grid of the two probabilities."""
    tables = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    ends = [paired_interval(b, c, n) for b, c in tables]
    for p in np.linspace(0, 1, 11):
        for q in np.linspace(0, 1 - p, 6):
            covered = 0.0
            for (b, c), (low, high) in zip(tables, ends, strict=True):
                if low - 1e-9 <= p - q <= high + 1e-9:
                    share = q / (1 - p) if p < 1 else 0.0
                    covered += binom.pmf(b, n, p) * binom.pmf(c, n - b, min(share, 1.0))
            assert covered >= 0.95 - 1e-9


def hard(labels: list[int], predicted: list[int], k: int) -> np.ndarray:
    return np.eye(k)[np.array(predicted)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_interval_is_a_point_and_each_holds_the_difference(data):
    k = data.draw(st.integers(2, 4))
    triple = st.tuples(*[st.integers(0, k - 1)] * 3)
    rows = data.draw(st.lists(triple, min_size=1, max_size=30))
    labels, first, second = (list(column) for column in zip(*rows, strict=True))
    p, q = hard(labels, first, k), hard(labels, second, k)
    result = compare(labels, p, q, seed=1, resamples=200)
    assert result["accuracy"]["low"] is not None
    for key in ("accuracy", "precision", "recall", "f1"):
        one = result[key]
        assert (one["low"] is None) == (one["high"] is None)
        if one["low"] is not None:
            assert one["low"] <= one["difference"] <= one["high"]
            assert one["low"] < one["high"]
    if k == 2:
        unknown = {*labels} != {0, 1} or 1 not in first or 1 not in second
        assert (result["precision"]["low"] is None) == unknown
        assert (result["recall"]["low"] is None) == (1 not in labels)


def test_one_photo_a_class_says_nothing_about_macro_means():
    labels = list(range(5))
    p, q = hard(labels, labels, 5), hard(labels, [0, 1, 2, 3, 0], 5)
    result = compare(labels, p, q, seed=1)
    assert result["recall"] == {"difference": pytest.approx(0.2), "low": None, "high": None}
    assert result["accuracy"]["low"] < 0.2 < result["accuracy"]["high"]


@pytest.mark.parametrize(("sizes", "k"), [((60, 40), 2), ((2,) * 60, 60), ((15, 5, 40), 3)])
def test_the_other_intervals_cover_about_what_they_say(sizes, k):
    """Also with two photos a class, where a plain bootstrap within classes is too narrow."""
    generator = np.random.default_rng(4)
    labels = np.repeat(np.arange(k), sizes)
    right = {"model": 0.8, "reference": 0.7}

    def predict(n: np.ndarray, share: float) -> np.ndarray:
        wrong = (n + generator.integers(1, k, size=n.shape)) % k
        return np.where(generator.random(n.shape) < share, n, wrong)

    many = np.repeat(labels, 400)
    truth = {
        key: scores(many, np.eye(k)[predict(many, right["model"])])[key]
        - scores(many, np.eye(k)[predict(many, right["reference"])])[key]
        for key in ("precision", "recall")
    }
    trials, hits = 60, {"precision": 0, "recall": 0}
    for trial in range(trials):
        p, q = (np.eye(k)[predict(labels, share)] for share in right.values())
        result = compare(labels, p, q, seed=trial, resamples=400)
        for key in hits:
            hits[key] += result[key]["low"] <= truth[key] <= result[key]["high"]
    assert min(hits.values()) >= 0.85 * trials


@pytest.mark.parametrize("k", [2, 3, 10])
def test_models_that_never_differ_are_not_known_to_be_alike(k):
    labels = np.arange(20) % k
    p = np.eye(k)[labels]
    result = compare(labels, p, p, seed=1)
    for key in ("accuracy", "precision", "recall", "f1"):
        assert result[key]["low"] < -0.01 and result[key]["high"] > 0.01


def test_the_comparison_depends_on_its_seed_alone():
    labels, p = noisy(100, 2, seed=3)
    q = p[::-1]
    assert compare(labels, p, q, seed=1) == compare(labels, p, q, seed=1)
    assert compare(labels, p, q, seed=1) != compare(labels, p, q, seed=2)


def test_compare_refuses_models_of_different_classes():
    with pytest.raises(ValueError, match="differ in shape"):
        compare([0, 1], np.full((2, 2), 0.5), np.full((2, 4), 0.25), seed=1)


def test_wilson_interval():
    # Wilson 1927 at 8 of 10, z = 1.96: centre (8 + z^2/2) / (10 + z^2)
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94332, abs=1e-4))
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3)),
        min_size=1,
        max_size=20,
    )
)
def test_predictions_survive_the_file_exactly(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("predictions") / "sub" / "model.csv"
    labels = np.array([label for label, _ in rows])
    probabilities = np.array([values for _, values in rows], dtype=np.float32)
    classes = ["cat", "dog, big", "p_naïve"]
    files = [f'odd "name", {i}\n.jpg' for i in range(len(rows))]
    write_predictions(path, files, labels, probabilities, classes)
    back = read_predictions(path)
    assert (back.files, back.classes) == (files, classes)
    np.testing.assert_array_equal(back.labels, labels)
    np.testing.assert_array_equal(back.probabilities, probabilities)
    assert scores(back.labels, back.probabilities, classes) == scores(
        labels, probabilities, classes
    )


def test_scores_of_float64_probabilities_survive_the_file(tmp_path: Path):
    labels, probabilities = noisy(500, 2, seed=7)
    write_predictions(tmp_path / "m.csv", ["f"] * 500, labels, probabilities, ["cat", "dog"])
    back = read_predictions(tmp_path / "m.csv")
    assert scores(back.labels, back.probabilities) == scores(labels, probabilities)


def test_predictions_name_the_classes(tmp_path: Path):
    write_predictions(tmp_path / "m.csv", ["a.jpg"], [1], [[0.75, 0.25]], ["cat", "dog"])
    text = (tmp_path / "m.csv").read_text()
    assert text == "file,label,prediction,p_cat,p_dog\na.jpg,dog,cat,0.75,0.25\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "not a table"),
        ("a,b,c,d,e\n", "its columns are a,b,c,d,e"),
        ("file,label,prediction,p_cat,p_dog\nx,fox,cat,0.5,0.5\n", "fox"),
        ("file,label,prediction,p_cat,p_dog\nx,cat,cat,0.5,half\n", "half"),
        ("file,label,prediction,p_cat,p_dog\nx,cat,cat,0.5\n", "not a table"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text, message):
    path = tmp_path / "m.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_predictions(path)
