"""This project beside two simulators that people use: Flower's own and Apple's pfl-research. All
three train the same prompts on the same batches of the same cached image features.

:mod:`.problem` is what they train, :mod:`.learner` how the two others compute it, :mod:`.compare`
runs the three in turn.
"""
