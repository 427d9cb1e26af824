"""edgeq and its peers on the same networks and data, judged by the same code: see ``compare_peers.py``."""
