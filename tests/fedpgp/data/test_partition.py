import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedpgp.data.partition import partition
from fedpgp.data.partitions.base import SCHEMES
from fedpgp.data.partitions.pathological import reference_classes
from fedpgp.data.pool import apportion
from fedpgp.errors import FedPGPError

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "partitions.safetensors")
EXAMPLES = settings(max_examples=40, deadline=None)


def made_labels(seed: int, images: int, classes: int) -> np.ndarray:
    """Every class occurs; the rest is random."""
    rng = np.random.default_rng(seed)
    return rng.permutation(
        np.concatenate([np.arange(classes), rng.integers(classes, size=max(0, images - classes))])
    )


def assert_assigned_once(parts, images: int):
    assert all(part.dtype == np.int64 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts), "each part is ascending"
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(images)), (
        "disjoint, and nothing left over"
    )


def assert_same_proportions(parts, labels, test_parts, test_labels):
    """Per class, a client's part of the test images is its part of the training images,
    to less than one image."""
    for label in np.unique(labels):
        images, test_images = (labels == label).sum(), (test_labels == label).sum()
        for part, test_part in zip(parts, test_parts, strict=True):
            fraction = (labels[part] == label).sum() / images
            assert abs((test_labels[test_part] == label).sum() - fraction * test_images) < 1


def options_of(scheme: str, classes: int) -> dict:
    return {"superclasses": np.arange(classes) // 3} if scheme == "pachinko" else {}


@EXAMPLES
@given(
    st.sampled_from(sorted(SCHEMES)),
    st.integers(0, 99),
    st.integers(1, 9),
    st.integers(200, 500),
    st.integers(9, 20),
)
def test_every_scheme_assigns_all_images_once_and_test_follows_train(
    scheme, seed, clients, images, classes
):
    labels, test_labels = made_labels(seed, images, classes), made_labels(seed + 1, images, classes)
    rng = np.random.default_rng(seed)
    domains, test_domains = None, None
    if SCHEMES[scheme].by_domain:
        clients = 3 if scheme == "natural" else 3 * ((clients + 2) // 3)
        domains, test_domains = (
            list(np.array(["ink", "oil", "pen"])[rng.permutation(np.arange(images) % 3)])
            for _ in "ab"
        )
    arguments = dict(
        domains=domains,
        test_labels=test_labels,
        test_domains=test_domains,
        **options_of(scheme, classes),
    )
    train, test = partition(labels, clients, scheme, seed, **arguments)
    assert len(train) == len(test) == clients
    assert_assigned_once(train, images)
    assert_assigned_once(test, images)
    assert min(map(len, train)) >= 1 and min(map(len, test)) >= 1
    if domains is None:
        assert_same_proportions(train, labels, test, test_labels)
    again, _ = partition(labels, clients, scheme, seed, **arguments)
    assert all(np.array_equal(a, b) for a, b in zip(train, again, strict=True))
    if scheme == "pathological":
        for part, test_part in zip(train, test, strict=True):
            assert set(labels[part]) == set(test_labels[test_part])


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"natural"}))  # which draws nothing
def test_seeds_differ_and_global_random_state_does_not_matter(scheme):
    labels = made_labels(0, 300, 12)
    arguments = dict(domains=["a", "b"] * 150, **options_of(scheme, 12))
    random.seed(1), np.random.seed(1)
    first = partition(labels, 4, scheme, 0, **arguments)
    random.seed(2), np.random.seed(2)
    before = random.getstate(), np.random.get_state()[1].tolist()
    again = partition(labels, 4, scheme, 0, **arguments)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    other = partition(labels, 4, scheme, 1, **arguments)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@EXAMPLES
@given(st.integers(0, 99), st.integers(1, 12), st.integers(20, 200), st.integers(2, 15))
def test_iid_sizes_and_class_counts_differ_by_at_most_one(seed, clients, images, classes):
    labels = made_labels(seed, images, classes)
    parts = partition(labels, clients, "iid", seed)
    for sizes in [
        [len(p) for p in parts],
        *([int((labels[p] == c).sum()) for p in parts] for c in range(classes)),
    ]:
        assert max(sizes) - min(sizes) <= 1


@EXAMPLES
@given(st.integers(1, 30), st.integers(0, 200), st.integers(0, 99))
def test_apportion_rounds_up_or_down_and_keeps_the_sum(clients, images, seed):
    rng = np.random.default_rng(seed)
    fractions = rng.dirichlet(np.full(clients, 0.3))
    owed, total = np.zeros(clients), np.zeros(clients)
    for _ in range(20):
        counts = apportion(fractions, images, owed)
        assert counts.sum() == images
        assert (np.abs(counts - fractions * images) < 1).all()
        total += counts
    # The same fractions again and again: rounding does not add up against anybody.
    assert (np.abs(total - 20 * fractions * images) < 1.5).all()


def test_dirichlet_beta_says_how_uneven_clients_are():
    labels = made_labels(0, 4000, 10)

    def classes_held(beta):  # how many classes make up most of a client
        parts = partition(labels, 10, "dirichlet", 0, beta=beta)
        return np.mean(
            [(np.bincount(labels[p], minlength=10) > 0.02 * len(p)).sum() for p in parts]
        )

    assert classes_held(0.05) < classes_held(0.5) < classes_held(100) == 10


def test_dirichlet_balance_stops_a_full_client():
    labels = np.sort(made_labels(0, 4000, 40))
    for seed in range(5):
        sizes = [len(p) for p in partition(labels, 10, "dirichlet", seed, beta=0.1)]
        # A client is open until it holds its 400; the class that fills it has about 100.
        assert max(sizes) <= 400 + np.bincount(labels).max()
    unbalanced = [len(p) for p in partition(labels, 10, "dirichlet", 0, beta=0.1, balance=False)]
    assert max(unbalanced) > max(sizes)


def test_dirichlet_min_size_is_kept_or_refused_by_name():
    labels = made_labels(0, 400, 8)
    assert min(len(p) for p in partition(labels, 8, "dirichlet", 3, beta=0.3, min_size=15)) >= 15
    with pytest.raises(
        FedPGPError,
        match=r"beta=0.001 and 40 clients.*client \d+ would have .* image.*raise partition.beta",
    ):
        partition(labels, 40, "dirichlet", 3, beta=0.001, balance=False)
    with pytest.raises(FedPGPError, match="beta=1e-05"):  # 2 classes, each to one client
        partition(made_labels(0, 400, 2), 5, "dirichlet", 3, beta=1e-5, balance=False)


@pytest.mark.parametrize(("classes", "clients"), [(37, 10), (25, 10), (10, 10), (23, 4), (9, 1)])
def test_pathological_assigns_whole_classes_evenly(classes, clients):
    labels = made_labels(1, 20 * classes, classes)
    lists = [set(labels[part]) for part in partition(labels, clients, "pathological", 5)]
    assert sum(map(len, lists)) == classes and set().union(*lists) == set(range(classes))
    assert max(map(len, lists)) - min(map(len, lists)) <= 1


@pytest.mark.parametrize(
    ("classes", "clients", "sizes"),
    [
        (37, 10, [4] * 9 + [1]),
        (47, 10, [5] * 9 + [2]),
        (100, 10, [10] * 10),
        (101, 10, [10] * 9 + [11]),
        (102, 10, [10] * 9 + [12]),
        (19, 10, [2] * 9 + [1]),
        (24, 10, [2] * 9 + [6]),
        (25, 10, [2] * 9 + [7]),  # round(2.5) is 2, half to even
    ],
)
def test_reference_dealing_has_the_public_sizes(classes, clients, sizes):
    assert [len(labels) for labels in reference_classes(classes, clients)] == sizes


def test_shards_give_few_classes_and_even_sizes():
    labels = made_labels(0, 1000, 10)
    parts = partition(labels, 20, "shards", 0, shards_per_client=2)
    assert_assigned_once(parts, 1000)
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    assert max(len(set(labels[part])) for part in parts) <= 4


@EXAMPLES
@given(st.sampled_from(["domain", "domain_dirichlet"]), st.integers(0, 20), st.integers(1, 4))
def test_domain_schemes_keep_domains_apart_and_test_in_its_domain(scheme, seed, per_domain):
    rng = np.random.default_rng(seed)
    domains, test_domains = (
        np.array(["noto", "art", "pen"])[np.r_[0, 1, 2, rng.integers(3, size=397)]] for _ in "ab"
    )
    labels, test_labels = rng.integers(6, size=400), rng.integers(6, size=400)
    train, test = partition(
        labels,
        3 * per_domain,
        scheme,
        seed,
        domains=list(domains),
        test_labels=test_labels,
        test_domains=list(test_domains),
    )
    assert_assigned_once(train, 400)
    assert_assigned_once(test, 400)
    for client, (part, test_part) in enumerate(zip(train, test, strict=True)):
        # Domains in order of appearance, clients domain by domain.
        assert (
            set(domains[part])
            == set(test_domains[test_part])
            == {["noto", "art", "pen"][client // per_domain]}
        )
    for name in ("noto", "art", "pen"):
        mine = [c for c in range(3 * per_domain) if set(domains[train[c]]) == {name}]
        assert_same_proportions(
            [np.searchsorted(np.flatnonzero(domains == name), train[c]) for c in mine],
            labels[domains == name],
            [np.searchsorted(np.flatnonzero(test_domains == name), test[c]) for c in mine],
            test_labels[test_domains == name],
        )


def test_domain_dirichlet_spreads_clients_evenly():
    labels, domains = made_labels(0, 600, 5), ["a", "b", "c"] * 200
    parts = partition(labels, 8, "domain_dirichlet", 0, domains=domains)
    assert Counter(domains[part[0]] for part in parts) == {"a": 3, "b": 3, "c": 2}


def test_pachinko_prefers_superclasses():
    labels = np.tile(np.arange(100), 100)
    parts = partition(labels, 50, "pachinko", 0, superclasses=np.arange(100) // 5, beta=0.1)
    assert_assigned_once(parts, len(labels))
    assert {len(part) for part in parts} == {200}
    biggest = [np.bincount(labels[part] // 5, minlength=20).max() / 200 for part in parts]
    assert np.median(biggest) > 0.3  # iid would be 0.05
    fine = [
        len(set(labels[part][labels[part] // 5 == np.bincount(labels[part] // 5).argmax()]))
        for part in parts
    ]
    assert np.median(fine) == 5  # inside a superclass the classes are mixed


@pytest.mark.parametrize(
    ("scheme", "clients", "extra", "message"),
    [
        ("dirichlett", 4, {}, "did you mean dirichlet"),
        ("dirichlet", 4, {"betta": 1}, "option of partition dirichlet 'betta'; did you mean beta"),
        ("iid", 4, {"beta": 1}, "option of partition iid 'beta'"),
        ("dirichlet", 4, {"beta": 0}, "partition.beta=0"),
        ("dirichlet", 4, {"beta": float("nan")}, "partition.beta=nan"),
        ("iid", 0, {}, "clients=0"),
        ("iid", 121, {}, "there are 120"),
        ("iid", 50, {"min_size": 3}, "there are 120"),
        ("iid", 5, {"min_size": 0}, "min_size=0"),
        ("pathological", 13, {}, "13 clients cannot share 12 classes"),
        ("pathological", 3, {"dealing": "fair"}, "partition.dealing 'fair'"),
        ("shards", 3, {"shards_per_client": 0}, "shards_per_client=0 cannot work"),
        ("shards", 60, {"shards_per_client": 3}, "60 clients x 3 shards"),
        ("domain", 2, {}, "needs a data set with domains"),
        ("domain_dirichlet", 2, {}, "needs a data set with domains"),
        ("domain", 5, {"domains": ["a", "b", "c"] * 40}, "clients=6"),
        ("domain_dirichlet", 2, {"domains": ["a", "b", "c"] * 40}, "at least one client a domain"),
        ("pachinko", 2, {}, "superclasses"),
        ("pachinko", 2, {"superclasses": [0, 1]}, "superclasses names 2 classes"),
    ],
)
def test_what_cannot_work_is_refused_by_name(scheme, clients, extra, message):
    with pytest.raises(FedPGPError, match=message):
        partition(np.arange(120) % 12, clients, scheme, 0, **extra)


def test_reference_dealing_that_leaves_the_last_client_empty_is_refused():
    # round(14 / 9) = 2: seven clients take everything.
    with pytest.raises(FedPGPError, match="client 7 would have no training image"):
        partition(np.arange(140) % 14, 9, "pathological", 0, dealing="reference")


def test_test_images_of_a_strange_domain_are_refused():
    with pytest.raises(FedPGPError, match="test images of sketch"):
        partition(
            [0, 1], 1, "domain", 0, domains=["a", "a"], test_labels=[0], test_domains=["sketch"]
        )
    partition([0, 1], 1, "iid", 0, domains=["a", "a"], test_labels=[0], test_domains=["sketch"])


def test_a_client_without_test_images_is_refused():
    with pytest.raises(FedPGPError, match="no test image"):
        partition(np.zeros(100), 10, "iid", 0, test_labels=np.zeros(5))


# Golden: what the public code does. ---------------------------------------------------------------


def golden_parts(prefix: str) -> list[np.ndarray]:
    indices, offsets = GOLDEN[f"{prefix}/indices"], GOLDEN[f"{prefix}/offsets"]
    return [indices[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.mark.parametrize(
    ("case", "clients"), [("classes23_clients4_shots8", 4), ("classes37_clients10_shots4", 10)]
)
@pytest.mark.parametrize("half", ["all", "base"])
def test_golden_class_disjoint_lists_exactly(case, clients, half):
    labels, test_labels = GOLDEN[f"{case}/train_labels"], GOLDEN[f"{case}/test_labels"]
    if half == "base":  # base labels are the first, so their numbers stay
        base = GOLDEN[f"{case}/base/original_labels"]
        labels, test_labels = labels[np.isin(labels, base)], test_labels[np.isin(test_labels, base)]
        theirs = [set(part) for part in _split_like(f"{case}/base/train")]
    else:
        theirs = [set(labels[part]) for part in golden_parts(f"{case}/all/train")]
    train, test = partition(
        labels, clients, "pathological", 0, test_labels=test_labels, dealing="reference"
    )
    assert [set(labels[part]) for part in train] == theirs
    assert [set(test_labels[part]) for part in test] == theirs
    if half == "all":
        # Their test images of a client are all test images of its classes: the same images as ours.
        assert [set(p.tolist()) for p in test] == [
            set(p.tolist()) for p in golden_parts(f"{case}/all/test")
        ]


def _split_like(prefix: str) -> list[np.ndarray]:
    labels, offsets = GOLDEN[f"{prefix}/relabelled"], GOLDEN[f"{prefix}/offsets"]
    return [labels[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.mark.parametrize(
    ("case", "clients", "scheme", "options"),
    [
        ("homo_clients5", 5, "iid", {}),
        ("noniid-labeldir_clients5_beta0.3", 5, "dirichlet", {"beta": 0.3, "min_size": 10}),
    ],
)
def test_golden_label_skew_by_its_invariants(case, clients, scheme, options):
    """The public code's lists and ours: all assigned once, to all clients, test in the
    proportions of training."""
    labels, test_labels = GOLDEN["cifar10like/y_train"], GOLDEN["cifar10like/y_test"]
    ours = partition(labels, clients, scheme, 7, test_labels=test_labels, **options)
    theirs = [
        [np.sort(p).astype(np.int64) for p in golden_parts(f"cifar10like/{case}/{s}")]
        for s in ("train", "test")
    ]
    for train, test in (ours, theirs):
        assert_assigned_once(train, len(labels))
        assert_assigned_once(test, len(test_labels))
        if scheme == "iid":
            assert max(map(len, train)) - min(map(len, train)) <= 1
        else:
            assert min(map(len, train)) >= 10
            for label in range(10):
                of_class = [(labels == label).sum(), (test_labels == label).sum()]
                for part, test_part in zip(train, test, strict=True):
                    fractions = [
                        (x == label).sum() / n
                        for x, n in zip(
                            (labels[part], test_labels[test_part]), of_class, strict=True
                        )
                    ]
                    assert abs(fractions[0] - fractions[1]) <= 1 / of_class[0] + 1 / of_class[1]


def test_every_client_has_ten_training_and_ten_test_images_as_the_public_code_asks():
    """FedPGP, commit d43045b33f42, datasets/datasplit.py, lines 273 and 309 to 311: the smaller of
    the smallest training and the smallest number of test images must reach min_require_size, else
    everything is drawn again."""
    labels, test_labels = np.repeat(np.arange(10), 500), np.repeat(np.arange(10), 100)
    options = {"beta": 0.3, "test_labels": test_labels}
    plain = [partition(labels, 30, "dirichlet", seed, **options) for seed in range(5)]
    assert min(len(part) for _, test in plain for part in test) < 10  # the rule has something to do
    for seed in range(5):
        train, test = partition(
            labels, 30, "dirichlet", seed, min_size=10, min_test_size=10, **options
        )
        assert min(map(len, train)) >= 10 <= min(map(len, test))
        assert_assigned_once(train, len(labels))
        assert_assigned_once(test, len(test_labels))
    with pytest.raises(
        FedPGPError, match=r"client \d+ would have \d+ test images \(partition.min_test_size=90\)"
    ):
        partition(labels, 11, "dirichlet", 0, min_test_size=90, **options)


def test_pooled_pachinko_draws_on_training_and_test_images_together():
    """FedPGP, commit d43045b33f42, datasets/datasplit.py, lines 345 to 404: one draw over train and
    test behind each other, equal numbers a client, then what is below the number of training images
    is train, the rest test."""
    labels, test_labels = np.tile(np.arange(100), 50), np.tile(np.arange(100), 10)
    options = {"superclasses": np.arange(100) // 5, "beta": 0.3, "test_labels": test_labels}
    train, test = partition(labels, 40, "pachinko", 3, pooled=True, **options)
    assert_assigned_once(train, len(labels))
    assert_assigned_once(test, len(test_labels))
    assert {len(a) + len(b) for a, b in zip(train, test, strict=True)} == {6000 // 40}
    assert len({len(part) for part in train}) > 3  # the ratio differs by client
    pool = np.concatenate([labels, test_labels])
    together = partition(pool, 40, "pachinko", 3, superclasses=np.arange(100) // 5, beta=0.3)
    for mine, rows, rest in zip(together, train, test, strict=True):
        assert mine.tolist() == [*rows, *(rest + len(labels))]
    followed = partition(labels, 40, "pachinko", 3, **options)
    assert {len(part) for part in followed[0]} == {5000 // 40}


def test_golden_pachinko_by_its_invariants():
    theirs = GOLDEN["cifar100/noniid-labeldir100_clients100_beta0.3/train_class_counts"].astype(int)
    from fedpgp.data.datasets.cifar import SUPERCLASSES

    labels = np.tile(np.arange(100), 500)
    parts = partition(labels, 100, "pachinko", 7, superclasses=SUPERCLASSES, beta=0.3)
    ours = np.stack([np.bincount(labels[part], minlength=100) for part in parts])
    assert (ours.sum(0) == 500).all() and (theirs.sum(0) <= 600).all()
    assert (ours.sum(1) == 500).all()
    # As uneven as theirs: the part of a client's images that is of its largest superclass.
    groups = np.eye(20)[list(SUPERCLASSES)]
    largest = [np.median((counts @ groups).max(1) / counts.sum(1)) for counts in (ours, theirs)]
    assert abs(largest[0] - largest[1]) < 0.08


def test_natural_makes_every_site_a_client_with_all_that_it_has():
    labels, sites = [0, 1, 0, 1, 1, 2], ["bern", "oslo", "bern", "bern", "oslo", "rome"]
    test_labels, test_sites = [2, 0, 2, 1], ["bern", "rome", "oslo", "oslo"]
    train, test = partition(
        labels, 3, "natural", 5, domains=sites, test_labels=test_labels, test_domains=test_sites
    )
    assert [part.tolist() for part in train] == [[0, 2, 3], [1, 4], [5]]
    assert [part.tolist() for part in test] == [[0], [2, 3], [1]]
    for clients in (2, 4):
        with pytest.raises(
            FedPGPError, match=r"one client a site: set clients=3 \(bern, oslo, rome\)"
        ):
            partition(labels, clients, "natural", 0, domains=sites)
    with pytest.raises(
        FedPGPError, match="site rome has 1 training image; give it more, or leave it out"
    ):
        partition(labels, 3, "natural", 0, domains=sites, min_size=2)
    with pytest.raises(FedPGPError, match="site rome has no test images; give it more"):
        partition(
            labels,
            3,
            "natural",
            0,
            domains=sites,
            test_labels=[0, 0],
            test_domains=["bern", "oslo"],
        )
    with pytest.raises(FedPGPError, match="needs a data set with domains"):
        partition(labels, 3, "natural", 0)


def test_clients_of_a_site_share_its_images_evenly():
    rng = np.random.default_rng(0)
    labels, sites = rng.integers(0, 3, 90), ["bern"] * 30 + ["oslo"] * 60
    parts = partition(labels, 6, "natural", 5, domains=sites, clients_per_site=3)
    assert [len(part) for part in parts] == [10, 10, 10, 20, 20, 20]
    assert sorted(np.concatenate(parts[:3]).tolist()) == list(range(30))
    whole = np.bincount(labels[30:], minlength=3) / 3
    for part in parts[3:]:
        assert np.abs(np.bincount(labels[part], minlength=3) - whole).max() <= 1
    with pytest.raises(FedPGPError, match=r"has 3 clients a site: set clients=6 \(bern, oslo\)"):
        partition(labels, 2, "natural", 0, domains=sites, clients_per_site=3)
    with pytest.raises(FedPGPError, match="a client of site bern has 10 training images"):
        partition(labels, 6, "natural", 0, domains=sites, clients_per_site=3, min_size=11)
    with pytest.raises(FedPGPError, match="partition.clients_per_site=0 cannot work"):
        partition(labels, 2, "natural", 0, domains=sites, clients_per_site=0)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"pooled": True}, "partition.pooled=true"),
        ({"min_test_size": 2}, "partition.min_test_size=2"),
        ({"test_domains": ["a", "b"]}, "test_domains"),
    ],
)
def test_what_is_about_test_images_needs_some(asked, named):
    with pytest.raises(FedPGPError, match=f"{named} is about test images, and no test labels"):
        partition(made_labels(0, 100, 5), 4, "iid", 0, **asked)


def test_pooled_is_true_or_false():
    labels = made_labels(0, 100, 5)
    with pytest.raises(FedPGPError, match="partition.pooled=both cannot work; it is true or false"):
        partition(labels, 4, "iid", 0, test_labels=labels, pooled="both")
