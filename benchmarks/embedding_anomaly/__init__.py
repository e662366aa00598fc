"""How sign methods drive the embeddings of rare words apart, and what cures it.

Lion and Tiger move an entry by the sign of its momentum. A word that does not occur
gets no gradient, but its momentum keeps the last sign, so that its row moves on until
weight decay balances it, at one over the decay. A small language model is trained on
the text of the standard library with each of several optimizers, and its word table
is measured on the way.

The training is short, so rate and decay are chosen to show in hundreds of steps what
takes tens of thousands at common values: decay is 1, on Lion's own scale, which puts
the bound at 1, and rate * decay * steps is 1.2. With a decay of 0.01 the bound would
be 100, and the same rows would move the same way without ever nearing it here.

Rows of the output table, and of a tied one, have a gradient at every step. While a
word is not the target it points the same way, so that Lion takes the rows of rare
words to the bound all the same: all in one direction, where rows of the word table
that no gradient reaches go each in its own.
"""
