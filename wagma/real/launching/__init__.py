"""How ranks are started and what is theirs: `launch` runs mpiexec, `supervise` watches one rank and tells by a `channel`;
`announced`, `ranks`, `threads` and `sampler` say which rank this is, with how many threads and which samples.
"""
