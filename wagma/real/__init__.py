"""The real world: the same algorithm core on MPI and torch.

optimizer.py is what PyTorch users import, collective.py what mpi4py users import; driver.py runs an algorithm's generator on a
rank; kernel.py hands the collective to the C++ engine; gossip.py does without one, by letters between ranks; launch.py starts
ranks; train.py runs a scenario.
"""
