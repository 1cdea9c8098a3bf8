"""Trains small SentencePiece models and records how they segment difficult text: sentencepiece.json.

Run once with `pip install sentencepiece protobuf`; the result is checked in. The texts are made up here.
"""

import io
import json
import pathlib
import random

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb

WORDS = """a the of and to in is it that was for on are with as his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over did
down only way find use may water long little very after words called just where most know river stone paper window
bottle kettle jacket trail runner cotton leather waterproof running walking unbelievable understanding""".split()
random.seed(7)
corpus = [" ".join(random.choices(WORDS, k=random.randint(3, 14))) + random.choice(".!?") for _ in range(3000)]
corpus += [w.capitalize() + ", " + v + "s: " + str(random.randint(0, 9999)) for w in WORDS for v in WORDS[:20]]
corpus += ["naïve café", "über die Brücke", "aaaa aaa aa a"] * 30

TEXTS = [
    "", " ", "  ", "   a", "a   ", "hello world", "Hello,  World!", "the unbelievable waterproof jacket", "aaaaaaaaaaaaaaa",
    "aaa aaaa aaaaa", "naïve café über", "日本語 テキスト", "🙂🙃", "mixed 日本 and running", "1234567890", "\n", "\n\n\n",
    "line\nline\n\nline", "\ttab\t\ttab", "a\u0301e\u0301", "▁ ▁▁", "<b>bold</b> <unk> <s> </s> <0x0A>", "\u0000\u0001\u007f",
    "word" * 30, " " * 33, "\n" * 7 + " " * 5 + "x", "the  the   the    the", "ababababab", "abcabcabcabc", "\ufeff\u200b\u00a0",
    "e" * 64, "thethethe", "running,walking;stone.paper", "don't won't", "<b><b></b>", "  <b>  ",
]
for _ in range(150):
    alphabet = random.choice(["the a", "aab ", "abc \n", "stonepair w", "é日 a\t", "0123 <b>/"])
    TEXTS.append("".join(random.choices(alphabet, k=random.randint(1, 40))))
for _ in range(60):
    TEXTS.append("".join(random.choice(WORDS + [" ", "  ", ",", "\n", "日", "Ω"]) for _ in range(random.randint(1, 12))))


def train(**options):
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=out, model_type="bpe", character_coverage=0.999,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2, **options)
    proto = pb.ModelProto()
    proto.ParseFromString(out.getvalue())
    return proto


def record(name, proto, prefix):
    model = spm.SentencePieceProcessor(model_proto=proto.SerializeToString())
    pieces = [[p.piece, p.score, p.type] for p in proto.pieces]
    return {"name": name, "prefix": prefix, "pieces": pieces, "cases": [[t, model.encode(t)] for t in TEXTS]}


models = []
fallback = train(vocab_size=700, byte_fallback=True, add_dummy_prefix=True)
models.append(record("bytes, dummy prefix", fallback, True))

unknown = train(vocab_size=400, byte_fallback=False, add_dummy_prefix=True)
models.append(record("unknown characters", unknown, True))

runs = ["▁" * n for n in range(2, 9)] + ["\n" * n for n in range(1, 5)] + ["\t", "\t\t", "<b>", "</b>"]
defined = train(vocab_size=700, byte_fallback=True, add_dummy_prefix=False, user_defined_symbols=runs)
models.append(record("user defined runs, no prefix", defined, False))

# Every piece has the same score, so that the order of joining is by place alone.
equal = train(vocab_size=600, byte_fallback=True, add_dummy_prefix=False)
for piece in equal.pieces:
    piece.score = -1.0 if piece.type == 1 else piece.score
models.append(record("equal scores", equal, False))

# Pieces that only serve to build longer ones.
unused = train(vocab_size=700, byte_fallback=True, add_dummy_prefix=True)
normal = [p for p in unused.pieces if p.type == 1 and len(p.piece) > 1]
for piece in normal[::3]:
    piece.type = 5
models.append(record("unused pieces", unused, True))

target = pathlib.Path(__file__).with_name("sentencepiece.json")
target.write_text(json.dumps(models, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
