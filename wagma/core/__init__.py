"""What a rank decides, free of any world.

What may live here: integers, arrays and pure functions of them. No clock, no randomness, no input or output, no import
but the standard library and numpy. Everything in this package can be enumerated exhaustively in a test, and both
the simulator and the real cluster run exactly this code (or, for the decision machine, its C++ twin, which a differential
test ties to it).
"""
