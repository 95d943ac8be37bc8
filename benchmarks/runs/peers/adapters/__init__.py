"""One file a peer, run as a subprocess in its environment; none imports Lightning or what this package needs."""
