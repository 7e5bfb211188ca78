"""A real model of transformers, tiny and seeded, whose cache goes through a cluster: what it says stays the same to the token."""

import asyncio
from typing import Any

import kvhive
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kvhive.engine import KVCacheConfig, UltraAdaptiveKVCacheEngine  # noqa: E402
from kvhive.engine.tensors import Growing  # noqa: E402
from kvhive.transformers import CacheStore, CausalLM, engine_config  # noqa: E402
from kvhive.transformers.caches import layout_of  # noqa: E402

PROMPT = [(at * 37 + 11) % 256 for at in range(150)]


def model_of(seed: int = 5, **more: Any) -> Any:
    """A Llama with random weights that are the same wherever they are made."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 256}
    config = transformers.LlamaConfig(**(sizes | more), attn_implementation="eager")
    return transformers.LlamaForCausalLM(config).eval()


def answer(model: Any, prompt: list[int], cache: Any, tokens: int = 12) -> tuple[list[int], Any]:
    """What the model says, greedily; computes what the cache does not cover."""
    said = model.generate(
        torch.tensor([prompt]), past_key_values=cache, max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0
    )
    return said[0, len(prompt) :].tolist(), cache


@pytest.fixture
def store(client: kvhive.Client, request: pytest.FixtureRequest) -> CacheStore:
    return CacheStore(client, request.node.nodeid, model_of().config, dtype=torch.float32)


def test_a_restored_cache_says_the_same(store: CacheStore) -> None:
    model = model_of()
    cold, cache = answer(model, PROMPT, store.restore(PROMPT).cache)
    assert store.save(PROMPT, cache).acknowledged == 9
    restored = store.restore(PROMPT)
    assert (restored.tokens, restored.cache.get_seq_length()) == (144, 144)
    computed = cache.layers[1].keys[:, :, :144]
    assert torch.equal(restored.cache.layers[1].keys, computed), "the very bits"
    warm, cache = answer(model_of(), PROMPT, restored.cache)
    assert warm == cold
    damaged = store.restore(PROMPT).cache
    damaged.layers[0].values[:, :, :64] *= -1
    assert answer(model_of(), PROMPT, damaged)[0] != cold, "what is restored is what is attended to"
    # What was said is the beginning of the next turn.
    turn = PROMPT + cold
    assert store.save(turn, cache, known=np.int64(restored.tokens)).acknowledged == 1
    assert store.restore(turn + [1]).tokens == 160


def test_another_prompt_shares_what_it_begins_with(store: CacheStore) -> None:
    model = model_of()
    _, cache = answer(model, PROMPT, transformers.DynamicCache(config=model.config))
    store.save(PROMPT, cache)
    other = PROMPT[:70] + [3] * 60
    restored = store.restore(other)
    assert restored.tokens == 64
    cold, _ = answer(model, other, transformers.DynamicCache(config=model.config))
    warm, _ = answer(model, other, restored.cache)
    assert warm == cold


def test_one_token_is_left_to_compute(store: CacheStore) -> None:
    model = model_of()
    prompt = PROMPT[:64]
    _, cache = answer(model, prompt, transformers.DynamicCache(config=model.config))
    assert store.save(prompt, cache).acknowledged == 4
    assert store.restore(prompt).tokens == 48
    assert store.restore(prompt[:16]).tokens == 0
    assert store.restore([]).tokens == 0


def test_half_precision_goes_through_bit_by_bit(client: kvhive.Client) -> None:
    model = model_of().to(torch.bfloat16)
    store = CacheStore(client, "half", model.config, dtype=torch.bfloat16, block_tokens=32, extras=[b"adapter"])
    cold, cache = answer(model, PROMPT, store.restore(PROMPT).cache)
    assert store.save(PROMPT, cache).acknowledged == 4
    restored = store.restore(PROMPT)
    assert restored.tokens == 128
    for layer, of_model in zip(restored.cache.layers, cache.layers, strict=True):
        assert torch.equal(layer.values, of_model.values[:, :, :128])
    assert CacheStore(client, "half", model.config, dtype=torch.bfloat16, block_tokens=32).restore(PROMPT).tokens == 0


def test_a_cluster_that_is_gone_costs_a_cold_start(store: CacheStore) -> None:
    with kvhive.EmbeddedNode(memory=1 << 20, block_bytes=store.layout.block_bytes) as node:
        client = node.client(request_timeout=0.3)
        own = CacheStore(client, "gone", model_of().config, dtype=torch.float32)
        _, cache = answer(model_of(), PROMPT, own.restore(PROMPT).cache)
        assert own.save(PROMPT, cache).acknowledged == 9
    assert own.restore(PROMPT).tokens == 0
    assert own.save(PROMPT, cache).acknowledged == 0


def test_what_it_cannot_keep_is_refused(store: CacheStore) -> None:
    other = model_of(num_key_value_heads=4)
    _, cache = answer(other, PROMPT, transformers.DynamicCache(config=other.config))
    with pytest.raises(kvhive.MisuseError, match=r"layer 0 holds \(1, 4, 161, 16\) of torch.float32: expected is \(1, 2,"):
        store.save(PROMPT, cache)
    deeper = model_of(num_hidden_layers=4)
    _, cache = answer(deeper, PROMPT, transformers.DynamicCache(config=deeper.config))
    with pytest.raises(kvhive.MisuseError, match="a cache of 4 layers for a model of 3"):
        store.save(PROMPT, cache)
    wrong: Any = None
    with pytest.raises(kvhive.WrongTypeError, match="cache is of NoneType"):
        store.save(PROMPT, wrong)
    for odd in (True, 1.5, None):
        unfit: Any = odd
        with pytest.raises(kvhive.WrongTypeError, match=f"known {odd}: allowed is a whole number"):
            store.save(PROMPT, transformers.DynamicCache(config=deeper.config), known=unfit)
    for known in (-1, len(PROMPT) + 1):
        with pytest.raises(kvhive.OutOfRangeError, match=f"known {known}: allowed is 0 to {len(PROMPT)}"):
            store.save(PROMPT, transformers.DynamicCache(config=deeper.config), known=known)
    with pytest.raises(kvhive.MisuseError, match="dtype torch.float64"):
        layout_of(other.config, torch.float64, 16)
    sliding = transformers.Gemma2Config(num_hidden_layers=2)
    with pytest.raises(kvhive.MisuseError, match="sliding_attention"):
        layout_of(sliding, torch.float16, 16)
    with pytest.raises(kvhive.MisuseError, match="an encoder"):
        layout_of(transformers.T5Config(), torch.float16, 16)


def test_extras_that_are_no_bytes_are_refused_at_once(client: kvhive.Client) -> None:
    for extras in (["lora-1"], "lora-1", [1]):
        given: Any = extras
        with pytest.raises(kvhive.WrongTypeError, match="extra 0 is .*: allowed is bytes"):
            CacheStore(client, "extras@1", model_of().config, extras=given)


def tokenizer_of(words: int = 64) -> Any:
    """A real tokenizer of words, `w2` and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"</s>": 0, "<unk>": 1} | {f"w{at}": at for at in range(2, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_engine_serves_with_a_causal_lm_and_answers_as_the_model_does(dtype: Any) -> None:
    model, tokenizer = model_of(vocab_size=64).to(dtype), tokenizer_of()
    prompt = " ".join(f"w{at * 7 % 60 + 2}" for at in range(75))
    config = engine_config(model, block_size=16, max_tokens=256, max_memory_mb=64)
    assert (config.num_layers, config.num_heads, config.head_dim) == (3, 2, 16)
    lm = CausalLM(model, tokenizer, config, name="tiny@5")

    async def ask(engine: UltraAdaptiveKVCacheEngine) -> list[Any]:
        return [await engine.process_request({"text": text}) for text in (prompt, prompt, prompt + " w9 w8")]

    with UltraAdaptiveKVCacheEngine(config, model=lm) as engine:
        first, again, other = asyncio.run(ask(engine))
    assert [one["metadata"]["cached_tokens"] for one in (first, again, other)] == [0, 64, 64]
    assert first["result"] == again["result"]
    if dtype == torch.float32:
        # In one piece the numbers differ by a rounding, which turns no choice of these.
        said = answer(model, tokenizer(prompt)["input_ids"], transformers.DynamicCache(config=model.config), 16)[0]
        said = said[: said.index(0)] if 0 in said else said
        assert first["result"] == tokenizer.decode(said)


class Uploading(CausalLM):
    """Counts the tokens whose keys and values go from the host to where the model computes."""

    uploaded = 0

    def _upload(self, cache: Any, part: Any) -> None:
        self.uploaded += part.shape[2]
        super()._upload(cache, part)


@pytest.mark.parametrize(("rounds", "cold"), [(False, 0), (True, 64)])
def test_what_a_causal_lm_has_of_a_request_stays_where_it_computes(rounds: bool, cold: int) -> None:
    model, tokenizer = model_of(vocab_size=64).to(torch.float16), tokenizer_of()
    prompt = " ".join(f"w{at * 7 % 60 + 2}" for at in range(75))
    config = engine_config(model, block_size=16, max_tokens=256, max_memory_mb=64, use_quantization=rounds)
    lm = Uploading(model, tokenizer, config, name="tiny@5")
    answers = []
    with UltraAdaptiveKVCacheEngine(config, model=lm) as engine:
        # Blocks that were rounded come back as they are in the cache; no token of the answer takes the past along once more.
        for uploaded in (cold, 64):
            lm.uploaded = 0
            answers.append(asyncio.run(engine.process_request({"text": prompt, "max_new_tokens": 8}))["result"])
            assert lm.uploaded == uploaded
    assert answers[0] == answers[1] != ""


def test_a_causal_lm_tells_requests_apart_whose_turns_alternate() -> None:
    model = model_of()
    config = engine_config(model, block_size=16, max_tokens=256, max_memory_mb=64)
    prompts = [PROMPT[:48], PROMPT[48:96]]

    def served(lm: CausalLM, order: list[int]) -> list[Any]:
        rooms = [Growing(config, 64) for _ in prompts]
        logits: list[Any] = [None, None]
        for at in order:
            begin = rooms[at].tokens
            more, logits[at] = lm.prefill(prompts[at][begin : begin + 16], rooms[at].filled)
            rooms[at].append(more)
        return [(room.filled.copy(), one) for room, one in zip(rooms, logits, strict=True)]

    alone = served(CausalLM(model, tokenizer_of(), config, name="tiny@5"), [0, 0, 0, 1, 1, 1])
    mixed = served(CausalLM(model, tokenizer_of(), config, name="tiny@5"), [0, 1, 0, 1, 1, 0])
    for (one, said), (other, again) in zip(alone, mixed, strict=True):
        assert (one == other).all() and (said == again).all()


def test_a_causal_lm_that_does_not_fit_is_refused() -> None:
    model, tokenizer = model_of(), tokenizer_of()
    with pytest.raises(ValueError, match="num_heads is 8: the model's is 2"):
        CausalLM(model, tokenizer, KVCacheConfig(num_layers=3, head_dim=16, dtype="float32"), name="tiny@5")
    with pytest.raises(ValueError, match="name"):
        CausalLM(model, tokenizer, engine_config(model), name="")
    assert CausalLM(model, tokenizer, engine_config(model), name="tiny@5").tokenize("") == [0]
