"""`python -m jaxmd_thermal.cli`."""

from jaxmd_thermal.cli.app import main

main()
