"""Training of potentials on energies, forces, stresses and second derivatives, and its evaluation against DFT phonons."""
