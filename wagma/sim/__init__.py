"""The simulated world: the algorithm core in virtual time.

driver.py runs the ranks' generators as SimPy processes; collective.py carries the decision machines' outputs out as
messages; network.py says what a message costs (LogGP); exchange.py says who sends what to whom in a group; numerics.py says what
the messages contain. cluster.py puts all this into somebody else's SimPy environment.
"""
