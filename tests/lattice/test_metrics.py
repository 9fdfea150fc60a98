"""SRD, SRE and SRME: the published means, and 2 for every way to fail (item 7 of the acceptance)."""

from __future__ import annotations

import csv
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.metrics import srd, sre, srme, summary

REFERENCE = {
    "kappa_TOT_ave": [2.0],
    "mode_kappa_TOT_ave": [[[1.0, 3.0], [6.0, 6.0]]],
    "weights": [2, 6],
    "temperatures": [300.0],
}


def result(scale=1.0, **more):
    modes = scale * np.array([[[1.0, 3.0], [6.0, 6.0]]])
    fields = dict(kappa=scale * 2 * np.eye(3)[None], mode_kappa=modes, weights=np.array([2, 6]), temperatures=[300.0])
    return SimpleNamespace(**{**fields, **more})


def rows(shared, model):
    with open(shared / "data/phonondb103/per_compound_per_model_kappa103.csv") as file:
        return [r for r in csv.DictReader(file) if r["model_key"] == model]


def test_published_means(shared):
    found = rows(shared, "mace-mpa-0")
    assert len(found) == 103
    assert summary([float(r["srme"] or "nan") for r in found]) == pytest.approx(0.4123, abs=1e-4)

    def values(metric):
        return [
            metric({"kappa_TOT_ave": float(r["kappa_ml"])}, {"kappa_TOT_ave": float(r["kappa_dft"])}) for r in found
        ]

    assert summary(values(sre)) == pytest.approx(0.2048, abs=1e-4)
    assert summary(values(srd)) == pytest.approx(-0.1101, abs=1e-4)


def test_values():
    assert srme(result(), REFERENCE) == 0 == sre(result(), REFERENCE)
    # Twice everywhere: 2 * 16/8 / (4 + 2), and the same for the total.
    assert srme(result(2.0), REFERENCE) == pytest.approx(2 / 3) == pytest.approx(sre(result(2.0), REFERENCE))
    assert srd(result(0.5), REFERENCE) == pytest.approx(-2 / 3)
    swapped = result(mode_kappa=np.array([[[3.0, 1.0], [6.0, 6.0]]]))
    assert srme(swapped, REFERENCE) == pytest.approx(2 * 4 / 8 / 4) and sre(swapped, REFERENCE) == 0
    assert srme(result(), result()) == 0 and srme(REFERENCE, REFERENCE) == 0


@pytest.mark.parametrize(
    "bad",
    [
        None,
        result(invalid="12 of 1320 modes are imaginary"),
        {**REFERENCE, "imaginary": True},
        {**REFERENCE, "broken_symmetry": True},
        {**REFERENCE, "kappa_TOT_ave": [float("nan")]},
        {**REFERENCE, "kappa_TOT_ave": None},
        result(kappa=np.full((1, 3, 3), np.nan)),
    ],
)
def test_failures_count_two(bad):
    assert srme(bad, REFERENCE) == 2 == sre(bad, REFERENCE)


def test_modes_that_are_missing_or_of_another_shape_count_two():
    for modes in (np.ones((1, 3, 2)), np.full((1, 2, 2), np.nan)):
        assert srme(result(mode_kappa=modes), REFERENCE) == 2
    assert srme({**REFERENCE, "mode_kappa_TOT_ave": None}, REFERENCE) == 2


def test_reference_entries_agree_with_themselves(shared):
    with gzip.open(shared / "data/phonondb103/kappas_phononDB_PBE_noNAC.json.gz") as file:
        data = json.load(file)
    for key in ("0", "50"):
        entry = {name: column[key] for name, column in data.items()}
        modes, weights = np.array(entry["mode_kappa_TOT_ave"]), np.array(entry["weights"])
        assert modes.sum() / weights.sum() == pytest.approx(entry["kappa_TOT_ave"][0], rel=1e-6)
        assert srme(entry, entry) == 0


def test_errors():
    with pytest.raises(InputError, match="400"):
        srme(result(), REFERENCE, temperature=400)
    with pytest.raises(InputError, match="positive"):
        sre(result(), {"kappa_TOT_ave": 0.0})
    with pytest.raises(InputError, match="mode_kappa_TOT_ave"):
        srme(result(), {"kappa_TOT_ave": 2.0})
