"""The kinds of runs: what each learns, from which data, by which objective."""
