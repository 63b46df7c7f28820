"""A small real tokenizer and a model whose every token depends on all tokens before it, on seed and choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteFallback, Fuse, Replace, Strip

from wire.model_card import ModelCard
from wire.sampling import FinishReason, SamplingParams

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "Größe, Äpfel, naïve café: 日本語 テキスト 🦊🦊👩‍👩‍👧 emoji",
    "def main(): return {'a': 1, 'b': [2, 3]}\n\n\tindent",
]
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


@cache
def byte_fallback_tokenizer() -> Tokenizer:
    """Shaped like Llama 2's: SentencePiece spaces, `<0x..>` for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "▁the", "th", "he", "é", "日"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [("t", "h")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence([Replace("▁", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@cache
def toy_card(name: str = "toy", max_model_len: int = 4096) -> ModelCard:
    tokenizer = byte_level_tokenizer()
    end = tokenizer.token_to_id("<|im_end|>")
    return ModelCard(
        name=name,
        architecture="toy",
        model_digest="0" * 32,
        vocab_size=tokenizer.get_vocab_size(),
        max_model_len=max_model_len,
        tokenizer_json=tokenizer.to_str(),
        chat_template=TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        bos_token_id=tokenizer.token_to_id("<|im_start|>"),
        eos_token_ids=(end,),
        add_bos=False,
    )


def next_token(tokens: Sequence[int], sampling: SamplingParams, card: ModelCard) -> int:
    """Depends on every token so far; ordinary vocabulary only, so that answers end by length alone."""
    state = hashlib.blake2b(digest_size=8)
    state.update(b",".join(str(token).encode() for token in tokens))
    state.update(f"/{sampling.seed}/{sampling.choice}".encode())
    return 2 + int.from_bytes(state.digest(), "little") % (card.vocab_size - 2)


def reference(prompt: Sequence[int], sampling: SamplingParams, card: ModelCard) -> tuple[list[int], FinishReason]:
    """The answer of an undisturbed model."""
    tokens = list(prompt)
    for _ in range(sampling.max_tokens):
        tokens.append(next_token(tokens, sampling, card))
        if tokens[-1] in sampling.stop_token_ids:
            return tokens[len(prompt) :], FinishReason.STOP
    return tokens[len(prompt) :], FinishReason.LENGTH
