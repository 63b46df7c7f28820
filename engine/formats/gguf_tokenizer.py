"""A `tokenizers` tokenizer from GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import Fields
from wire.model_card import TokenizerData

_CONTROL, _USER_DEFINED = 3, 4
_UNKNOWN = 2
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
"""Control tokens that end an answer though a file may name only one of them as its EOS."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2_NAMES = frozenset({"gpt-2", "gpt2", "default"})
_DIGITS_NAMES = frozenset({"smollm", "starcoder", "refact", "command-r"})
_LLAMA3_NAMES = frozenset({"llama-bpe", "llama3", "llama-v3"})
_QWEN2_NAMES = frozenset({"qwen2", "deepseek-r1-qwen"})


def tokenizer_from_gguf(fields: Fields, vocab_size: int) -> TokenizerData:
    """Raises SpliceError (bad_model_file) when the tokenizer is missing, inconsistent or of an unknown kind."""
    kind = fields.string("tokenizer.ggml.model")
    tokens = _tokens(fields, vocab_size)
    match kind:
        case "gpt2":
            tokenizer = _byte_level_bpe(fields, tokens)
        case "llama":
            tokenizer = _sentencepiece_bpe(fields, tokens)
        case _:
            raise fields.wrong("tokenizer.ggml.model", "gpt2 or llama")
    types = _token_types(fields, len(tokens))
    special = [AddedToken(tokens[i], special=True, normalized=False) for i in _of_type(types, _CONTROL, _UNKNOWN)]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(tokens[i], normalized=False) for i in _of_type(types, _USER_DEFINED)])
    bos, eos = _token_id(fields, "bos", tokens), _token_id(fields, "eos", tokens)
    ends = [eos, _token_id(fields, "eot", tokens), _token_id(fields, "eom", tokens)]
    ends += [i for i in _of_type(types, _CONTROL) if tokens[i] in _END_OF_TURN]
    starts_with_bos = kind == "llama" or fields.string_or("tokenizer.ggml.pre", "default") in _LLAMA3_NAMES
    return TokenizerData(
        tokenizer_json=tokenizer.to_str(),
        chat_template=fields.string_or("tokenizer.chat_template", None),
        bos_token=None if bos is None else tokens[bos],
        eos_token=None if eos is None else tokens[eos],
        bos_token_id=bos,
        eos_token_ids=tuple(sorted({i for i in ends if i is not None})),
        add_bos=bos is not None and fields.boolean_or("tokenizer.ggml.add_bos_token", starts_with_bos),
    )


def _byte_level_bpe(fields: Fields, tokens: list[str]) -> Tokenizer:
    merges = [tuple(str(merge).split(" ")) for merge in fields.array("tokenizer.ggml.merges")]
    pre = fields.string_or("tokenizer.ggml.pre", "default")
    model = _bpe(
        fields.path,
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        ignore_merges=pre in _LLAMA3_NAMES,
    )
    tokenizer = Tokenizer(model)
    if pre in _QWEN2_NAMES:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(fields, pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(fields: Fields, pre: str) -> Any:
    """The split of text into words before merging, as the model was trained with it."""
    if pre in _GPT2_NAMES:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in _DIGITS_NAMES:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre in _LLAMA3_NAMES or pre in _QWEN2_NAMES:
        words = pre_tokenizers.Split(Regex(_LLAMA3 if pre in _LLAMA3_NAMES else _QWEN2), behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = sorted(_GPT2_NAMES | _DIGITS_NAMES | _LLAMA3_NAMES | _QWEN2_NAMES)
    raise fields.wrong("tokenizer.ggml.pre", f"one of {', '.join(known)}")


def _sentencepiece_bpe(fields: Fields, tokens: list[str]) -> Tokenizer:
    """SentencePiece's BPE has scores where `tokenizers` wants merges: every split into two known pieces is a merge,
    best score first."""
    scores = fields.array("tokenizer.ggml.scores")
    if len(scores) != len(tokens) or not all(isinstance(score, float) for score in scores):
        raise bad_file(fields.path, f"{len(scores)} token scores, expected {len(tokens)} floats", DOWNLOAD_AGAIN)
    vocab = {token: index for index, token in enumerate(tokens)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((-float(score), vocab[left], vocab[right], left, right))
    unknown = fields.integer_or("tokenizer.ggml.unknown_token_id", None)
    if unknown is not None and not 0 <= unknown < len(tokens):
        raise fields.wrong("tokenizer.ggml.unknown_token_id", f"a token id below {len(tokens)}")
    model = _bpe(
        fields.path,
        vocab=vocab,
        merges=[(left, right) for *_, left, right in sorted(ranked)],
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    add_space = fields.boolean_or("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if add_space else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if add_space else steps)
    return tokenizer


def _bpe(path: Path, **arguments: Any) -> models.BPE:
    try:
        return models.BPE(**arguments)
    except Exception as error:  # the library raises bare Exception for merges outside the vocabulary
        raise bad_file(path, f"tokenizer vocabulary and merges do not fit ({error})", DOWNLOAD_AGAIN) from error


def _tokens(fields: Fields, vocab_size: int) -> list[str]:
    tokens = fields.array("tokenizer.ggml.tokens")
    if not all(isinstance(token, str) for token in tokens):
        raise fields.wrong("tokenizer.ggml.tokens", "a list of strings")
    if len(tokens) > vocab_size or len(set(tokens)) != len(tokens):
        raise bad_file(
            fields.path,
            f"field 'tokenizer.ggml.tokens' has {len(tokens)} tokens ({len(set(tokens))} different), "
            f"expected at most vocab size {vocab_size}, all different",
            DOWNLOAD_AGAIN,
        )
    return tokens


def _token_types(fields: Fields, count: int) -> list[int]:
    types = fields.array("tokenizer.ggml.token_type")
    if len(types) != count:
        raise bad_file(fields.path, f"{len(types)} token types for {count} tokens", DOWNLOAD_AGAIN)
    return types


def _of_type(types: list[int], *wanted: int) -> list[int]:
    return [index for index, kind in enumerate(types) if kind in wanted]


def _token_id(fields: Fields, role: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    token_id = fields.integer_or(key, None)
    if token_id is not None and not 0 <= token_id < len(tokens):
        raise fields.wrong(key, f"a token id below {len(tokens)}")
    return token_id
