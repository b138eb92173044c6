"""The real world: the same algorithm core on MPI and torch.

wrapper/ is what PyTorch users import, collective.py what mpi4py users import; driver.py runs an algorithm's generator on a rank;
kernel.py hands the collective to the C++ engine; gossip/ does without one, by letters between ranks; launching/ starts ranks;
checkpoints/ saves them; seeing/ shows what they do; train.py runs a scenario; bench/ holds the programs that are timed.
"""
