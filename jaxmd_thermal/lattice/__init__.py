"""Lattice dynamics: force constants, phonons, thermodynamics, and the conductivity of the phonon gas."""
