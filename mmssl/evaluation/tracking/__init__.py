"""`mmssl evaluate propagation`: masks and key points of a first frame carried through a video."""
