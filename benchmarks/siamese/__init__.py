"""Why SimSiam and BYOL do not collapse: two time scales, measured.

A siamese network is to give two random views of an image the same representation.
One constant for all images would do, and nothing in the loss forbids it. SimSiam has
a predictor on one side and a stop-gradient on the other; BYOL replaces the other side
by a moving average of the parameters. Kexue.fm archive 7980 explains both by fast and
slow dynamics: along the collapse the encoder moves slowly, while the predictor, and
with it the pull toward collapse, comes to rest fast. In its toy of one parameter each
the speed of the predictor decides how far from collapse the encoder stays.

Here small networks are trained on scikit-learn's digits, with the predictor at 0.1 to
10 times the encoder's rate, with and without the stop-gradient, and with moving
averages of several decays. Every variant is an ordinary chain of this package's
transformations. On the way the spread and the effective rank of the representations
are measured; in the end, how well digits are told apart by the features.

Networks and images are small, so that eight seeds of twenty variants take minutes:
what collapses and what does not is seen at this size too, and the accuracies compare
with one another, not with published ones.
"""
