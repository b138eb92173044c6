"""Many runs instead of one: sweeps, comparisons, calibration, benchmarks. Each is a command too (`wagma.commands`)."""
