"""Miniature tokenizers of the kinds that open_clip's models take from Hugging Face, and
text towers of its wrapper.

The true files are on the hub; these have the same algorithm, the same special tokens at the same
places of a sentence, and a vocabulary learned from a few words. They need the transformers library.
"""

import json
import string
from pathlib import Path

SENTENCES = [
    "a photo of a cat.",
    "x photo of y golden retriever, the tree and b",
    *string.ascii_lowercase,
] * 3


def save_tokenizer(kind: str, folder: Path) -> int:
    """Saves a tokenizer of a kind of :data:`KINDS` as ``transformers`` reads it; returns the
    size of its vocabulary."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, named = KINDS[kind]()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_text_config(model: str, folder: Path, vocabulary: int) -> None:
    """config.json of a small Hugging Face text tower: of the model of which
    open_clip's configuration names."""
    kind = next(kind for kind in TOWERS if kind in model)
    sizes = {"vocab_size": vocabulary, "pad_token_id": 0 if kind == "mt5" else 1}
    (folder / "config.json").write_text(json.dumps({**TOWERS[kind], **sizes}))


def _unigram(front: str, specials: list[str]):
    """Sentencepiece's unigrams (T5, XLM): a word begins with the mark of a space, the first one
    too."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["▁photo", "▁of", "▁cat", "▁golden", "▁retri", "ever", "▁the", "▁and"]
    letters = [mark + letter for letter in string.ascii_letters + ".," for mark in ("▁", "")]
    pieces = [(piece, 0.0) for piece in specials] + [(piece, -2.0) for piece in words]
    pieces += [(piece, -4.0) for piece in ["▁", *letters]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=specials.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _framed(tokenizer, front, "</s>")


def _framed(tokenizer, front: str, end: str):
    """With what stands before and behind a sentence."""
    from tokenizers import processors

    names = [name for name in (front, end) if name]
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{front} $A {end}".strip(), special_tokens=special
    )
    return tokenizer


def _siglip():
    named = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return _unigram("", ["<pad>", "</s>", "<unk>"]), named


def _mt5():
    return _unigram("", ["<pad>", "</s>", "<unk>"]), {
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }


def _xlm():
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _unigram("<s>", ["<s>", "<pad>", "</s>", "<unk>"]), named


def _nllb():
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _unigram("eng_Latn", ["<s>", "<pad>", "</s>", "<unk>", "eng_Latn"]), named


def _gemma():
    """Byte pairs over spaces, without one before the first word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([s + f" {s}" for s in SENTENCES], trainer)
    return _framed(tokenizer, "", "<eos>"), {
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }


def _roberta():
    """Byte pairs whose first word has no space before it, so that it has other tokens
    than the same word later."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials, letters = ["<s>", "<pad>", "</s>", "<unk>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([f"{s} {s} {s.upper()}" for s in SENTENCES], trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _framed(tokenizer, "<s>", "</s>"), named


def _bert():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return _framed(tokenizer, "[CLS]", "[SEP]"), named


KINDS = {
    "siglip2": _gemma,
    "siglip": _siglip,
    "mt5": _mt5,
    "xlm": _xlm,
    "nllb": _nllb,
    "roberta": _roberta,
    "bert": _bert,
}
"""What the name of a Hugging Face tokenizer holds (the first that does) -> how a small
one of its kind is made."""

_BERT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TOWERS = {
    "mt5": {
        "model_type": "mt5",
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
    },
    "nllb": {
        "model_type": "m2m_100",
        "d_model": 32,
        **{
            f"{part}_{what}": 2
            for part in ("encoder", "decoder")
            for what in ("layers", "attention_heads")
        },
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        "max_position_embeddings": 128,
    },
    "xlm-roberta": {"model_type": "xlm-roberta", **_BERT_SIZES, "max_position_embeddings": 128},
    "roberta": {"model_type": "roberta", **_BERT_SIZES, "max_position_embeddings": 128},
}
"""What the name of a Hugging Face text tower holds -> the configuration of a small one."""
