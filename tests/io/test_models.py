"""Potentials by name: parameters of the documented sets, unknown names with the nearest known one."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmd_thermal import load_potential
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.models import REGISTRY


@pytest.mark.parametrize(
    "name, epsilon, sigma, cutoff, truncation, start",
    [
        ("lj-argon-cut25", 0.0103206594, 3.4, 8.5, "cut", None),
        ("lj-argon-jmd25", 0.0104, 3.405, 8.5125, "switch", 6.81),
        ("lj-argon-gk", 0.01042, 3.405, 10.5, "switch", 9.0),
    ],
)
def test_argon_sets(name, epsilon, sigma, cutoff, truncation, start):
    p = load_potential(name)
    assert (float(p.epsilon), float(p.sigma)) == (epsilon, sigma)
    assert p.cutoff == pytest.approx(cutoff, rel=1e-15) and p.truncation == truncation
    assert p.switch_start == (None if start is None else pytest.approx(start, rel=1e-15))


def test_every_built_in_name_loads():
    for name in REGISTRY:
        assert load_potential(name).cutoff > 0


def test_a_potential_is_returned_as_it_is():
    p = load_potential("lj-argon-gk")
    assert load_potential(p) is p


@pytest.mark.parametrize(
    "typed, meant", [("lj-argon-gkk", "lj-argon-gk"), ("sw_silicon", "sw-silicon"), ("SW-silicon", "sw-silicon")]
)
def test_unknown_name_names_the_nearest(typed, meant):
    with pytest.raises(InputError, match=f"unknown potential '{typed}', did you mean '{meant}'.*lj-argon-cut25"):
        load_potential(typed)


def test_wrong_kind_of_argument():
    with pytest.raises(InputError, match="loaded from int"):
        load_potential(3)


def test_from_a_file(tmp_path):
    file = tmp_path / "ar.toml"
    file.write_text(
        'type = "LennardJones"\nepsilon = 0.01042\nsigma = 3.405\ncutoff = 10.5\n'
        'truncation = "switch"\nswitch_start = 9.0\n'
    )
    p, q = load_potential(file), load_potential("lj-argon-gk")
    assert p.cutoff == q.cutoff and p.switch_start == q.switch_start and np.asarray(p.epsilon) == np.asarray(q.epsilon)
    for text, message in [
        ('type = "LenardJones"', "did you mean 'LennardJones'"),
        ('type = "LennardJones"\nepsilon = 1.0\nsgima = 1.0', "no option 'sgima', did you mean 'sigma'"),
        ('type = "LennardJones"\nepsilon = 1.0', "sigma"),
        ("type = ", "cannot read the potential"),
        ('type = "StillingerWeber"\nepsilon = 2.0', "takes no options"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load_potential(file)
    (tmp_path / "model.pt").write_text("")
    with pytest.raises(InputError, match=r"only \.toml"):
        load_potential(tmp_path / "model.pt")
