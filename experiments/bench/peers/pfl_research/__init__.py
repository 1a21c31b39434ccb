"""The problem in pfl-research (Apple), with its own simulated backend. A program and no module: the
package ``pfl`` need not be there.

    python -m experiments.bench.peers.pfl_research FOLDER
"""
