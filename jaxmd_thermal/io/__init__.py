"""Files: the only modules, with report and cli, that touch the disk or ASE."""
