"""Communication without collectives: exchanges with neighbours, averages of pairs and barriers (`exchange`), how ranks that gossip wait,
fail and end (`ends`), and the letters that they send: between threads (`letters`) and over MPI (`letters_mpi`).
"""
