"""How long things take, as scenarios say it: compute times, stragglers, noise, networks; for both worlds."""
