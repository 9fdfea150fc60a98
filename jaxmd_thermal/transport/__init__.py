"""Thermal conductivity from heat-flux fluctuations (Green-Kubo) and from driven runs (HNEMD), with error bars."""
