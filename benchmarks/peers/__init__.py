"""One adaptor for each engine. A module here has

NAME             what tables call it
CONFIGURATIONS   its best-known ways to be called; the fastest counts
COUNTED          whether it computes in float32, and so counts as a peer
version()        imports the engine (timed), returns its version; ImportError or OSError: it is not here
prepare(case, threads, configuration) -> shapes.Run
"""
