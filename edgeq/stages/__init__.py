"""The stages of the flow, in the order of the story: export, prep, calibrate, choose, insert, tune, package, run.

They live in a package of their own because ``edgeq.export`` and ``edgeq.run`` are functions of the
Python API. No stage imports another; only ``edgeq.pipeline`` imports stages.
"""
