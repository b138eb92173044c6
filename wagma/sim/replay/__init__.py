"""A recorded run of real ranks, once more in the simulator, with the recording in place of a network and a clock.

script.py puts what the recording says that the world decided into an order for each rank; world.py has the simulator's collective,
exchanges and ranks, which go on only when that order says so; compare.py holds what comes out against the record; run.py leads all
ranks through it. again.py is for recordings of simulations.
"""
