"""What a machine's messages, collectives and progress threads cost, measured one by one; `wagma.studies.machine` makes figures of it."""
