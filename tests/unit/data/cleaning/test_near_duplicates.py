"""Near-duplicates are found, what isn't one is left alone, in time and memory that follow the rows."""

import tracemalloc

import numpy as np
import pytest

from llmtune.data.cleaning import near_duplicates as module
from llmtune.data.cleaning.fingerprints import signatures_of
from llmtune.data.cleaning.near_duplicates import Bands, bands_for, cluster_near
from llmtune.data.cleaning.word_runs import word_runs

pytestmark = pytest.mark.fast


def clusters(tmp_path, signatures, threshold=0.8):
    path = tmp_path / "signatures.bin"
    np.asarray(signatures, np.uint32).tofile(path)
    return cluster_near(path, threshold)


def pairs_at(likeness, count, seed=0):
    """Rows 2i and 2i + 1 agree in each value with the chance that a MinHash of such likeness does."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2**32, (2 * count, 64), dtype=np.uint32)
    rows[1::2] = np.where(rng.random((count, 64)) < likeness, rows[::2], rows[1::2])
    return rows


def share_found(tmp_path, likeness, threshold, count=2000):
    ids = clusters(tmp_path, pairs_at(likeness, count), threshold).ids
    return float(np.mean(ids[::2] == ids[1::2]))


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_nearly_all_pairs_above_the_threshold_are_found_and_few_below(tmp_path, threshold):
    assert share_found(tmp_path, min(1.0, threshold + 0.05), threshold) >= 0.95
    assert share_found(tmp_path, threshold - 0.2, threshold) <= 0.03
    assert share_found(tmp_path, 0.05, threshold) == 0


def test_control_too_few_bands_find_too_few(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "bands_for", lambda threshold: Bands(2, 16, 49))
    assert share_found(tmp_path, 0.85, 0.8) < 0.5


def test_control_without_a_look_at_the_values_there_are_many_false_ones(tmp_path, monkeypatch):
    bands = bands_for(0.8)
    monkeypatch.setattr(module, "bands_for", lambda threshold: Bands(bands.num_bands, bands.band_size, 0))
    assert share_found(tmp_path, 0.6, 0.8) > 0.2


def test_bands_for_the_default_threshold():
    bands = bands_for(0.8)
    assert bands == Bands(num_bands=10, band_size=6, min_equal=49)
    assert 1 - (1 - 0.85**6) ** 10 > 0.99
    assert bands_for(1.0).min_equal == 64


def test_likeness_goes_by_way_of_others_and_pairs_are_listed(tmp_path):
    rows = pairs_at(0.0, 3)  # six different rows
    rows[3] = rows[1]
    rows[3][:4] = 7
    rows[5] = rows[3]
    rows[5][10:20] = 9  # like row 3; too far from row 1, which it reaches by way of 3
    assert np.count_nonzero(rows[1] == rows[5]) == 50
    found = clusters(tmp_path, rows, 0.85)
    assert found.ids.tolist() == [0, 1, 2, 1, 4, 1]
    assert [(pair.first, pair.other) for pair in found.listed] == [(1, 3), (3, 5)]
    assert found.listed[0].likeness == 60 / 64


def test_the_order_of_rows_does_not_matter(tmp_path):
    rng = np.random.default_rng(3)
    base = rng.integers(0, 2**32, (40, 64), dtype=np.uint32)
    rows = base[rng.integers(0, 40, 3000)]
    rows = np.where(rng.random(rows.shape) < rng.uniform(0.8, 1, (3000, 1)), rows, rng.integers(0, 2**32, rows.shape))
    order = rng.permutation(3000)
    before, after = clusters(tmp_path, rows).ids, clusters(tmp_path, rows[order]).ids
    assert 40 < len(np.unique(before)) < 2000
    unshuffled = np.empty_like(after)
    unshuffled[order] = after
    for cluster in np.unique(before):
        assert len(np.unique(unshuffled[before == cluster])) == 1
    assert len(np.unique(after)) == len(np.unique(before))


def test_a_bucket_of_equal_rows_is_not_quadratic(tmp_path, monkeypatch):
    compared: list[int] = []
    rows_of = module._SignatureFile.rows
    monkeypatch.setattr(
        module._SignatureFile, "rows", lambda self, rows: compared.append(len(rows)) or rows_of(self, rows)
    )
    assert len(np.unique(clusters(tmp_path, np.full((50_000, 64), 7)).ids)) == 1
    assert sum(compared) == 0
    rng = np.random.default_rng(0)
    star = np.where(rng.random((20_000, 64)) < 0.95, np.arange(64), rng.integers(0, 2**32, (20_000, 64)))
    assert len(np.unique(clusters(tmp_path, star).ids)) < 20
    assert 0 < sum(compared) <= bands_for(0.8).num_bands * 20_000


def test_memory_is_a_few_numbers_a_row_and_not_the_signatures(tmp_path):
    path = tmp_path / "signatures.bin"
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(10):
            file.write(rng.integers(0, 2**32, (20_000, 64), dtype=np.uint32).tobytes())
    tracemalloc.start()
    try:
        assert len(np.unique(cluster_near(path, 0.8).ids)) == 200_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 35e6 < path.stat().st_size


def test_no_row_and_one_row(tmp_path):
    assert clusters(tmp_path, np.zeros((0, 64))).ids.tolist() == []
    assert clusters(tmp_path, np.zeros((1, 64))).ids.tolist() == [0]


def test_texts_with_few_words_changed_are_near_duplicates_and_others_are_not(tmp_path):
    rng = np.random.default_rng(0)
    originals = [[f"w{n}" for n in rng.integers(0, 5000, 300)] for _ in range(50)]
    texts = []
    for words in originals:
        changed, half = list(words), list(words)
        changed[150] = "changed"  # 5 of 296 runs
        half[::10] = ["changed"] * 30  # half of the runs
        texts += [" ".join(words), " ".join(changed).upper().replace(" ", ", "), " ".join(half)]
    ids = clusters(tmp_path, signatures_of(word_runs(texts))).ids
    assert ids.tolist() == [number - (number % 3 == 1) for number in range(150)]
