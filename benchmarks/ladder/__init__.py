"""What a ladder costs beside full fine-tuning and other parameter-efficient methods.

    python -m benchmarks.ladder                    two encoders, minutes
    python -m benchmarks.ladder --size tiny        seconds, to see that it runs

The steps are those of `benchmarks.finetune`, dropout, clipping and AdamW included, on
random texts: batches of 16 with 128 tokens on an encoder of 8 layers of width 512, and
the main job's batches of 16 with 32 tokens on an encoder of its own encoder's sizes.
FLOPs and temporary bytes are XLA's figures for the compiled step; the steps take turns,
with donated buffers. XLA counts the body of a loop once, so of the attention in a
ladder's side layers, which goes example by example, it sees one example.

Then ladders with side layers pruned from the encoder are compared with fresh ones: the
mean loss of the first epoch, on cached hidden states, by seed.
"""
