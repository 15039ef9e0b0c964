"""Metrics against hand-made cases, laws, and independent libraries."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retina_lab import metrics
from retina_lab.metrics import Counts

NAN = float("nan")


def plane(drawing):
    """A boolean map from rows of '#' (true) and '.' (false)."""
    return np.array([[c == "#" for c in row] for row in drawing.split()])


def pixels(kind, seed=0, size=4000):
    """Scores and truth of many kinds: (probability float32, truth bool)."""
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < 0.13
    signal = rng.normal(size=size) + 1.8 * truth
    smooth = 1 / (1 + np.exp(1.5 - signal))
    shapes = {
        "smooth": smooth,
        "eight-bit": np.round(smooth * 255) / 255,
        "five levels": np.round(smooth * 4) / 4,
        "saturated": np.clip((smooth - 0.4) * 5, 0, 1),
        "polarised": np.where(rng.random(size) < 0.9, np.round(smooth), smooth),
        "binary": np.round(smooth),
        "constant": np.full(size, 0.3),
        "inverted": 1 - smooth,
        "perfect": np.where(truth, 0.9, 0.1),
        "low values": smooth * 1e-3,
    }
    return shapes[kind].astype(np.float32), truth


KINDS = (
    "smooth",
    "eight-bit",
    "five levels",
    "saturated",
    "polarised",
    "binary",
    "constant",
    "inverted",
    "perfect",
    "low values",
)


# --- Levels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probability", "level"),
    [
        (0.0, 0),
        (1.0, 65535),
        (0.5, 32768),  # 32767.5, the half goes to the even level
        (128 / 255, 128 * 257),
        (1 / 65535, 1),
        (0.49 / 65535, 0),
        (True, 65535),
        (np.float32(254 / 255), 254 * 257),
    ],
)
def test_quantise_known_levels(probability, level):
    assert metrics.quantise(np.array([probability])) == [level]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_level_survives_its_probability(kind):
    levels = np.arange(65536)
    np.testing.assert_array_equal(metrics.quantise((levels / 65535).astype(kind)), levels)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([0.1, NAN], "NaN"),
        ([0.1, np.inf], r"\[0, 1\]"),
        ([0.0, 1.0001], r"\[0, 1\]"),
        ([-1e-9, 0.5], "sigmoid"),
        ([0, 255], "255"),
    ],
)
def test_quantise_refuses(bad, words):
    with pytest.raises(ValueError, match=words):
        metrics.quantise(np.array(bad))


@given(st.floats(0, 1), st.floats(0, 1))
def test_whatever_reaches_the_threshold_is_vessel(p, threshold):
    if p >= threshold:
        assert metrics.binarise(p, threshold)
    elif threshold - p > 1 / 65535:
        assert not metrics.binarise(p, threshold)


# --- Counts and ratios ------------------------------------------------------------------------

#            tp  fp  fn  tn   dice   iou   sens  spec   prec  acc   mcc
RATIO_CASES = [
    ((3, 1, 2, 4), 2 / 3, 1 / 2, 3 / 5, 4 / 5, 3 / 4, 7 / 10, 10 / np.sqrt(600)),
    ((1, 0, 0, 1), 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    ((0, 1, 1, 0), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    ((0, 0, 0, 9), NAN, NAN, NAN, 1.0, NAN, 1.0, NAN),  # no vessel, none marked
    ((0, 0, 5, 4), 0.0, 0.0, 0.0, 1.0, NAN, 4 / 9, NAN),  # nothing marked
    ((0, 2, 0, 2), 0.0, 0.0, NAN, 0.5, 0.0, 0.5, NAN),  # no vessel, two marked
    ((7, 0, 0, 0), 1.0, 1.0, 1.0, NAN, 1.0, 1.0, NAN),  # all vessel
    ((0, 0, 0, 0), NAN, NAN, NAN, NAN, NAN, NAN, NAN),  # no pixel
]
FORMULAS = (
    metrics.dice,
    metrics.iou,
    metrics.sensitivity,
    metrics.specificity,
    metrics.precision,
    metrics.accuracy,
    metrics.mcc,
)


@pytest.mark.parametrize("case", RATIO_CASES, ids=lambda case: str(case[0]))
def test_ratios_by_hand(case):
    counts = Counts(*case[0])
    got = [formula(counts) for formula in FORMULAS]
    assert got == pytest.approx(list(case[1:]), nan_ok=True, abs=1e-15)
    assert all(type(value) is float for value in got)


def test_ratios_work_on_arrays_of_counts():
    cells = np.array([case[0] for case in RATIO_CASES]).T
    for i, formula in enumerate(FORMULAS, start=1):
        wanted = [case[i] for case in RATIO_CASES]
        np.testing.assert_allclose(formula(Counts(*cells)), wanted, atol=1e-15)


def test_mcc_of_a_large_set_does_not_overflow():
    counts = Counts(*(10**9 * np.array([30, 10, 20, 40], dtype=np.int64)))
    assert metrics.mcc(counts) == pytest.approx(metrics.mcc(Counts(30, 10, 20, 40)))


def test_count_by_hand():
    prediction = plane("##.. ##.. ....")
    truth = plane("#.#. #... #...")
    where = plane("###. ###. ....")
    assert metrics.count(prediction, truth) == Counts(tp=2, fp=2, fn=2, tn=6)
    assert metrics.count(prediction, truth, where) == Counts(tp=2, fp=2, fn=1, tn=1)


def test_pooling_is_adding():
    halves = Counts(1, 2, 3, 4) + Counts(10, 20, 30, 40)
    assert halves == Counts(11, 22, 33, 44)
    assert sum([halves, halves], Counts()).total == 220


maps_of_one_shape = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 3)
)


@given(maps_of_one_shape)
def test_count_laws(maps):
    prediction, truth, where = maps
    counts = metrics.count(prediction, truth, where)
    assert counts.total == where.sum()
    assert counts.tp + counts.fn == (truth & where).sum()
    swapped = metrics.count(truth, prediction, where)
    assert (swapped.tp, swapped.fp, swapped.fn) == (counts.tp, counts.fn, counts.fp)
    # what lies outside does not matter
    assert metrics.count(prediction | ~where, truth & where, where) == counts
    if counts.total:
        wanted = oracle.confusion_matrix(truth[where], prediction[where], labels=[0, 1]).ravel()
        assert (counts.tn, counts.fp, counts.fn, counts.tp) == tuple(wanted)


@given(maps_of_one_shape)
def test_ratios_agree_with_scikit_learn(maps):
    prediction, truth, _ = (m.ravel() for m in maps)
    counts = metrics.count(prediction, truth)
    pairs = [
        (metrics.dice, oracle.f1_score),
        (metrics.f1, oracle.f1_score),
        (metrics.iou, oracle.jaccard_score),
        (metrics.sensitivity, oracle.recall_score),
        (metrics.precision, oracle.precision_score),
        (metrics.accuracy, oracle.accuracy_score),
        (metrics.mcc, oracle.matthews_corrcoef),
    ]
    for ours, theirs in pairs:
        value = ours(counts)
        if not np.isnan(value):  # scikit-learn answers 0 there, and warns
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert value == pytest.approx(theirs(truth, prediction), abs=1e-12)
    if counts.tn + counts.fp:
        assert metrics.specificity(counts) == pytest.approx(
            oracle.recall_score(truth, prediction, pos_label=False), abs=1e-12
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[1, 0]], [[True, False]]), "prediction must be boolean, not int"),
        (([[True, False]], [[0.3, 0.1]]), "truth must be boolean, not float"),
        (([[True]], [[True]], [[1]]), "where must be boolean"),
        (([[True, False]], [[True]]), "shapes differ"),
        (([[True]], [[True]], [[True, True]]), "never resized"),
    ],
)
def test_count_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        metrics.count(*arguments)


# --- Curves and areas -------------------------------------------------------------------------


def test_areas_by_hand():
    # Scores .9 .8 .8 .1 with truth 1 1 0 0: of 4 pairs 3 are ordered, one is tied.
    h = metrics.histogram(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 1, 0, 0], bool))
    assert metrics.auc_roc(h) == pytest.approx(3.5 / 4)
    # Precision 1 at recall ½, then 2/3 at recall 1.
    assert metrics.average_precision(h) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert metrics.auc_pr(h) == pytest.approx(1 / 2 * 1 + 1 / 2 * (1 + 2 / 3) / 2)
    fpr, tpr, thresholds = metrics.roc_curve(h)
    np.testing.assert_allclose(fpr, [0, 0, 0.5, 1])
    np.testing.assert_allclose(tpr, [0, 0.5, 1, 1])
    np.testing.assert_allclose(thresholds, [np.inf, 0.9, 0.8, 0.1], atol=1e-5)
    recall, precision, _ = metrics.pr_curve(h)
    np.testing.assert_allclose(recall, [0, 0.5, 1, 1])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 1 / 2])


def scikit_areas(truth, score):
    precision, recall, _ = oracle.precision_recall_curve(truth, score)
    return (
        oracle.roc_auc_score(truth, score),
        oracle.auc(recall, precision),
        oracle.average_precision_score(truth, score),
    )


def our_areas(histogram):
    return (
        metrics.auc_roc(histogram),
        metrics.auc_pr(histogram),
        metrics.average_precision(histogram),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_areas_agree_with_scikit_learn(kind):
    probability, truth = pixels(kind)
    wanted = scikit_areas(truth, metrics.quantise(probability))
    h = metrics.histogram(probability, truth)
    assert our_areas(h) == pytest.approx(wanted, abs=1e-9)
    assert our_areas(h.compact()) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=150)
@given(
    hnp.arrays(np.uint16, st.integers(2, 40), elements=st.integers(0, 65535)),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 5000, 30000]),
)
def test_areas_agree_with_scikit_learn_on_anything(levels, random, coarseness):
    levels = levels // coarseness * coarseness  # heavy ties for the coarse ones
    truth = np.array([random.random() < 0.4 for _ in levels])
    truth[:2] = True, False
    h = metrics.histogram(levels / 65535, truth)
    assert our_areas(h) == pytest.approx(scikit_areas(truth, levels), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_agree_with_scikit_learn(kind):
    probability, truth = pixels(kind)
    levels = metrics.quantise(probability)
    h = metrics.histogram(probability, truth)
    fpr, tpr, thresholds = metrics.roc_curve(h)
    wanted = oracle.roc_curve(truth, levels.astype(float), drop_intermediate=False)
    np.testing.assert_allclose(fpr, wanted[0], atol=1e-12)
    np.testing.assert_allclose(tpr, wanted[1], atol=1e-12)
    np.testing.assert_allclose(thresholds[1:] * 65535, wanted[2][1:], rtol=1e-12)
    assert oracle.auc(fpr, tpr) == pytest.approx(metrics.auc_roc(h), abs=1e-12)

    recall, precision, thresholds = metrics.pr_curve(h)
    wanted = oracle.precision_recall_curve(truth, levels.astype(float))
    np.testing.assert_allclose(precision, wanted[0][::-1], atol=1e-12)
    np.testing.assert_allclose(recall, wanted[1][::-1], atol=1e-12)
    np.testing.assert_allclose(thresholds[1:] * 65535, wanted[2][::-1], rtol=1e-12)
    assert oracle.auc(recall, precision) == pytest.approx(metrics.auc_pr(h), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_at_agree_with_counting_pixels(kind):
    probability, truth = pixels(kind)
    where = np.random.default_rng(1).random(truth.shape) < 0.7
    h = metrics.histogram(probability, truth, where)
    for threshold in (0, 1e-5, 0.3, 0.5, 0.9, 1):
        wanted = metrics.count(metrics.binarise(probability, threshold), truth, where)
        assert metrics.counts_at(h, threshold) == wanted
    every = metrics.counts_at_levels(h)
    for level in (0, 1, 20000, 65535):
        wanted = metrics.counts_at(h, level / 65535)
        assert (every.tp[level], every.fp[level]) == (wanted.tp, wanted.fp)
        assert (every.fn[level], every.tn[level]) == (wanted.fn, wanted.tn)


def test_pooling_histograms_is_joining_pixels():
    (p, t), (q, u) = pixels("smooth", 1), pixels("saturated", 2, 900)
    together = metrics.histogram(np.append(p, q), np.append(t, u))
    added = metrics.histogram(p, t) + metrics.histogram(q, u)
    np.testing.assert_array_equal(added.positives, together.positives)
    np.testing.assert_array_equal(added.negatives, together.negatives)
    with pytest.raises(ValueError, match="levels"):
        added + added.compact()


def test_areas_of_a_stack_are_the_areas_of_each():
    each = [metrics.histogram(*pixels(kind)) for kind in KINDS]
    stack = metrics.ScoreHistogram(
        np.stack([h.positives for h in each]), np.stack([h.negatives for h in each]), each[0].levels
    )
    for formula in (
        metrics.auc_roc,
        metrics.auc_pr,
        metrics.average_precision,
        metrics.ece,
        metrics.brier,
    ):
        wanted = [formula(h) for h in each]
        np.testing.assert_allclose(formula(stack), wanted, atol=1e-12)
        np.testing.assert_allclose(formula(stack.compact()), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("truth", "wanted"),
    [
        #        auc_roc auc_pr average_precision
        ([0, 0], (NAN, NAN, NAN)),  # no vessel
        ([1, 1], (NAN, 1.0, 1.0)),  # no background
        ([], (NAN, NAN, NAN)),  # no pixel
    ],
)
def test_undefined_areas_are_nan(truth, wanted):
    h = metrics.histogram(np.full(len(truth), 0.5), np.array(truth, bool))
    assert our_areas(h) == pytest.approx(wanted, nan_ok=True)
    assert our_areas(h.compact()) == pytest.approx(wanted, nan_ok=True)


def test_ranking_ignores_a_monotone_change_and_mirrors_an_inversion():
    levels = np.random.default_rng(0).integers(0, 256, 500)
    truth = np.random.default_rng(1).random(500) < 0.3
    before = metrics.histogram(levels / 255, truth)
    after = metrics.histogram((levels / 255) ** 2, truth)
    assert our_areas(before) == pytest.approx(our_areas(after), abs=1e-12)
    mirrored = metrics.histogram(1 - levels / 255, truth)
    assert metrics.auc_roc(mirrored) == pytest.approx(1 - metrics.auc_roc(before))


def test_trapezoid_flatters_binary_maps():
    h = metrics.histogram(*pixels("binary"))
    assert metrics.auc_pr(h) > metrics.average_precision(h) + 0.05


# --- Calibration ------------------------------------------------------------------------------


def test_calibration_by_hand():
    # Bins of width ½: {.25 ×4, one vessel}: no gap; {.75 ×2, both vessels}: gap ¼; p = 1 is last.
    p = np.array([0.25] * 4 + [0.75] * 2 + [1.0])
    truth = np.array([1, 0, 0, 0, 1, 1, 0], bool)
    h = metrics.histogram(p, truth)
    promised, happened, size = metrics.reliability_curve(h, bins=2)
    np.testing.assert_allclose(promised, [0.25, 2.5 / 3], atol=1e-5)
    np.testing.assert_allclose(happened, [0.25, 2 / 3])
    np.testing.assert_array_equal(size, [4, 3])
    assert metrics.ece(h, bins=2) == pytest.approx(3 / 7 * (2.5 / 3 - 2 / 3), abs=1e-5)
    wanted = (0.75**2 + 3 * 0.25**2 + 2 * 0.25**2 + 1) / 7
    assert metrics.brier(h) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_brier_and_reliability_agree_with_scikit_learn(kind):
    from sklearn.calibration import calibration_curve

    probability, truth = pixels(kind)
    p = metrics.quantise(probability) / 65535
    h = metrics.histogram(probability, truth)
    assert metrics.brier(h) == pytest.approx(oracle.brier_score_loss(truth, p), abs=1e-9)
    # theirs puts a value on an edge into the lower bin: keep off the edges, which are levels
    off = metrics.quantise(probability) % 4369 != 0
    if off.any():
        promised, happened, size = metrics.reliability_curve(
            metrics.histogram(probability, truth, off)
        )
        wanted = calibration_curve(truth[off], p[off], n_bins=15)
        np.testing.assert_allclose(happened[size > 0], wanted[0], atol=1e-9)
        np.testing.assert_allclose(promised[size > 0], wanted[1], atol=1e-9)


@pytest.mark.parametrize("kind", ["smooth", "low values", "inverted"])
def test_ece_agrees_with_torchmetrics(kind):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    probability, truth = pixels(kind)
    p = torch.tensor(metrics.quantise(probability) / 65535, dtype=torch.float32)
    wanted = functional.binary_calibration_error(p, torch.tensor(truth), n_bins=15)
    ours = metrics.ece(metrics.histogram(probability, truth))
    assert ours == pytest.approx(float(wanted), abs=1e-5)


def test_calibration_without_pixels_is_nan():
    h = metrics.histogram(np.empty(0), np.empty(0, bool))
    assert np.isnan(metrics.ece(h))
    assert np.isnan(metrics.brier(h))


@pytest.mark.parametrize("level", [0, 4368, 4369, 8738, 65534, 65535])
def test_a_level_on_an_edge_falls_to_the_upper_bin(level):
    _, _, size = metrics.reliability_curve(metrics.histogram([level / 65535], [True]))
    assert np.flatnonzero(size) == [min(level // 4369, 14)]


# --- Topology ---------------------------------------------------------------------------------

BETTI_CASES = [
    ("... ... ...", (0, 0)),
    ("### ### ###", (1, 0)),  # fills the image: the ring outside is no hole
    ("### #.# ###", (1, 1)),
    (".#. #.# .#.", (1, 1)),  # a diamond closes by corners
    ("#.. .#. ..#", (1, 0)),  # a diagonal is one piece
    ("#.# ... #.#", (4, 0)),
    ("##### #.#.# #####", (1, 2)),
    ("##### #...# #.#.# #...# #####", (2, 1)),  # an island in a lake
    ("#.# #.# ###", (1, 0)),  # open to the border: no loop
    ("##### #.### ###.# #####", (1, 2)),  # two holes that touch nowhere
    ("##### #.### ##.## #####", (1, 2)),  # holes that touch by a corner are two
]


@pytest.mark.parametrize(("drawing", "wanted"), BETTI_CASES)
def test_betti_numbers_by_hand(drawing, wanted):
    assert metrics.betti_numbers(plane(drawing)) == wanted


@settings(deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_betti_numbers_make_the_euler_number(vessels):
    from skimage.measure import euler_number

    pieces, holes = metrics.betti_numbers(vessels)
    assert pieces - holes == euler_number(np.pad(vessels, 1), connectivity=2)


def test_betti_errors_are_taken_inside_the_mask():
    prediction, truth = plane("###.# #.#.. ###.#"), plane("###.. #.#.. ###..")
    assert metrics.betti_errors(prediction, truth) == (2, 0)
    assert metrics.betti_errors(prediction, truth, plane("###.. ###.. ###..")) == (0, 0)
    assert metrics.betti_errors(prediction, truth, plane("..... ...## ...##")) == (1, 0)
    assert metrics.betti_errors(plane("#### #### ####"), plane("#### #..# ####")) == (0, 1)


def test_cldice_by_hand():
    # Lines one pixel wide are their own skeletons. Three pixels are common: of the five drawn
    # that is 3/5, of the six wanted 1/2; harmonic mean 6/11.
    prediction = plane(".......... .#####.... ..........")
    truth = plane(".......... ...######. ..........")
    assert metrics.cldice(prediction, truth) == pytest.approx(6 / 11)


@pytest.mark.parametrize(
    ("prediction", "truth", "wanted"),
    [
        ("... ...", "... ...", NAN),
        ("... ...", "### ...", 0.0),
        ("### ...", "... ...", 0.0),
        ("### ... ...", "... ... ###", 0.0),
        ("### ... ...", "### ... ...", 1.0),
    ],
)
def test_cldice_of_special_cases(prediction, truth, wanted):
    assert metrics.cldice(plane(prediction), plane(truth)) == pytest.approx(wanted, nan_ok=True)


def test_cldice_cares_for_connection_not_for_width():
    thin = np.zeros((21, 60), bool)
    thin[10, 5:55] = True
    thick = np.zeros_like(thin)
    thick[8:13, 5:55] = True
    counts = metrics.count(thick, thin)
    assert metrics.cldice(thick, thin) > 0.95 > 0.5 > metrics.dice(counts)


def test_cldice_is_cut_to_the_mask_first():
    truth = plane("###### ...... ######")
    where = plane("###### ###### ......")
    assert metrics.cldice(plane("###### ...... ......"), truth, where) == 1.0
    assert metrics.cldice(plane("###### ...... ......"), truth) < 1.0


@settings(deadline=None)
@given(maps_of_one_shape)
def test_cldice_laws(maps):
    prediction, truth, where = maps
    value = metrics.cldice(prediction, truth, where)
    assert np.isnan(value) or 0 <= value <= 1
    assert np.isnan(value) == (not (prediction & where).any() and not (truth & where).any())
    assert value == pytest.approx(metrics.cldice(truth, prediction, where), nan_ok=True)
    assert (metrics.skeleton(prediction) <= prediction).all()


def test_topology_checks_its_maps():
    with pytest.raises(ValueError, match="boolean"):
        metrics.cldice(np.ones((3, 3)), np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.betti_errors(np.ones((3, 3), bool), np.ones((3, 4), bool))
