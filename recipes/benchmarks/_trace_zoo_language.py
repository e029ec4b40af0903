"""Language models of the zoo: decoders, mixtures of experts, encoders, encoders with decoders."""

from __future__ import annotations

from typing import Any

import torch

from lightning_effnn.recipes.benchmarks._trace_zoo import (
    Batch,
    Entry,
    Settings,
    configured,
    hf,
    ids,
    masked_ids,
    pairs,
    words,
)

WORDS, WIDTH, HIDDEN, LENGTH = 100, 32, 64, 12
COMMON: Settings = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": HIDDEN, "max_position_embeddings": 64}  # fmt: skip
SPECIAL: Settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = COMMON | SPECIAL | {"num_key_value_heads": 2, "use_cache": False}
HEAD: Settings = {"head_dim": 8}
SHORT: Settings = {
    "vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False,
    "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
SEQ2SEQ: Settings = {
    "vocab_size": WORDS, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "max_position_embeddings": 64, "decoder_start_token_id": 2, **SPECIAL}  # fmt: skip
T5: Settings = {
    "vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "d_ff": HIDDEN, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0}  # fmt: skip

ATTENTION = 2 * LENGTH * WIDTH * WIDTH + 2 * LENGTH * WIDTH * WIDTH // 2 + 2 * LENGTH * LENGTH * WIDTH
"""Query and output projections, those of half as many keys and values, the scores and what they weigh."""

LLAMA = 2 * (ATTENTION + 3 * LENGTH * WIDTH * HIDDEN) + LENGTH * WIDTH * WORDS
"""Two layers: attention, then gate, up and down projections; at last the head over the vocabulary."""

MIXTRAL = 2 * (ATTENTION + LENGTH * WIDTH * 4 + LENGTH * 2 * 3 * WIDTH * HIDDEN) + LENGTH * WIDTH * WORDS
"""As Llama, with a router over 4 experts, 2 of which see each token."""

DECODE = 2 * (2 * WIDTH * WIDTH + WIDTH * WIDTH + 2 * 16 * WIDTH + 3 * WIDTH * HIDDEN) + WIDTH * WORDS
"""One token of Llama against a cache of 16 places, all of which are multiplied: what is masked is computed too."""


class CachedLlama(torch.nn.Module):
    """Decode one token with a cache of fixed size, filled up to some place, made anew for each call."""

    def __init__(self, places: int = 16, filled: int = 10) -> None:
        super().__init__()
        self.llama = configured("transformers.LlamaForCausalLM", GROUPED | {"use_cache": True})
        self.places, self.filled = places, filled

    def forward(self, input_ids: torch.Tensor) -> Any:
        """Logits of the next token, ids ``[N, 1]``."""
        from transformers import StaticCache

        cache = StaticCache(config=self.llama.config, max_cache_len=self.places)
        past = torch.zeros(input_ids.shape[0], 2, self.filled, 8)
        for layer in range(2):
            cache.update(past, past, layer, {"cache_position": torch.arange(self.filled)})
        at = torch.tensor([self.filled])
        return self.llama(input_ids, past_key_values=cache, cache_position=at, position_ids=at[None]).logits


def _moe(**more: Any) -> Settings:
    return GROUPED | {"moe_intermediate_size": HIDDEN, "num_experts_per_tok": 2} | more


def _decoder_only() -> list[Entry]:
    return [
        hf("LlamaForCausalLM", ids(), by_hand=LLAMA, **GROUPED),
        hf("LlamaForCausalLM", masked_ids(), "padded", by_hand=LLAMA, **GROUPED),
        hf("LlamaForCausalLM", ids(), "eager attention", by_hand=LLAMA, attn_implementation="eager", **GROUPED),
        Entry("LlamaForCausalLM, one token with a static cache", "transformers", CachedLlama,
              lambda n: {"input_ids": words(n, 1)}, by_hand=DECODE),
        hf("MistralForCausalLM", ids(), sliding_window=4, **GROUPED),
        hf("Qwen2ForCausalLM", masked_ids(), **GROUPED),
        hf("Qwen3ForCausalLM", ids(), **GROUPED, **HEAD),
        hf("GemmaForCausalLM", ids(), **GROUPED, **HEAD),
        hf("Gemma2ForCausalLM", ids(), **GROUPED, **HEAD),
        hf("Gemma3ForCausalLM", ids(), **GROUPED, **HEAD),
        hf("PhiForCausalLM", ids(), **COMMON, use_cache=False),
        hf("Phi3ForCausalLM", ids(), **GROUPED),
        hf("GPT2LMHeadModel", ids(), **SHORT),
        hf("GPT2LMHeadModel", masked_ids(), "padded", **SHORT),
        hf("GPTJForCausalLM", ids(), rotary_dim=8, **SHORT),
        hf("CodeGenForCausalLM", ids(), rotary_dim=8, **SHORT),
        hf("GPTNeoForCausalLM", ids(), vocab_size=WORDS, hidden_size=WIDTH, num_layers=2, num_heads=4,
           attention_types=[[["global", "local"], 1]], max_position_embeddings=64, use_cache=False),
        hf("GPTNeoXForCausalLM", ids(), **COMMON, use_cache=False),
        hf("FalconForCausalLM", ids(), vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2,
           num_attention_heads=4, use_cache=False),
        hf("FalconForCausalLM", masked_ids(), "alibi", vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2,
           num_attention_heads=4, alibi=True, multi_query=False, use_cache=False),
        hf("BloomForCausalLM", ids(), vocab_size=WORDS, hidden_size=WIDTH, n_layer=2, n_head=4, use_cache=False),
        hf("MptForCausalLM", ids(), vocab_size=WORDS, d_model=WIDTH, n_layers=2, n_heads=4, use_cache=False),
        hf("OPTForCausalLM", masked_ids(), vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, ffn_dim=HIDDEN,
           num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=WIDTH, use_cache=False),
        hf("XGLMForCausalLM", ids(), vocab_size=WORDS, d_model=WIDTH, num_layers=2, attention_heads=4,
           ffn_dim=HIDDEN, max_position_embeddings=64, use_cache=False),
        hf("StableLmForCausalLM", ids(), **GROUPED),
        hf("CohereForCausalLM", ids(), **GROUPED),
        hf("Olmo2ForCausalLM", ids(), **GROUPED),
        hf("GraniteForCausalLM", ids(), **GROUPED),
        hf("Starcoder2ForCausalLM", ids(), **GROUPED),
        hf("MambaForCausalLM", ids(), vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, state_size=8,
           use_cache=False),
        hf("Mamba2ForCausalLM", ids(), vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, state_size=8,
           num_heads=8, head_dim=8, n_groups=2, chunk_size=4, use_cache=False),
        hf("RwkvForCausalLM", ids(), vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, context_length=64,
           use_cache=False),
        hf("RecurrentGemmaForCausalLM", ids(), vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=3,
           num_attention_heads=4, intermediate_size=HIDDEN, lru_width=WIDTH, attention_window_size=8,
           use_cache=False),
    ]  # fmt: skip


def _experts() -> list[Entry]:
    latent: Settings = {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    deepseek = _moe(n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1, n_shared_experts=1,
                    num_key_value_heads=4, **latent)  # fmt: skip
    return [
        hf("MixtralForCausalLM", ids(), by_hand=MIXTRAL, num_local_experts=4, **GROUPED),
        hf("MixtralForCausalLM", ids(), "expert by expert", by_hand=MIXTRAL, num_local_experts=4,
           experts_implementation="eager", **GROUPED),
        hf("MixtralForCausalLM", ids(), "all experts at once", by_hand=MIXTRAL, num_local_experts=4,
           experts_implementation="batched_mm", **GROUPED),
        hf("Qwen2MoeForCausalLM", ids(), **_moe(num_experts=4, shared_expert_intermediate_size=HIDDEN)),
        hf("Qwen3MoeForCausalLM", masked_ids(), **_moe(num_experts=4), **HEAD),
        hf("OlmoeForCausalLM", ids(), **_moe(num_experts=4)),
        hf("DeepseekV2ForCausalLM", ids(), **deepseek),
        hf("DeepseekV3ForCausalLM", ids(), **deepseek),
        hf("GptOssForCausalLM", ids(), num_local_experts=4, num_experts_per_tok=2, sliding_window=4, **HEAD, **GROUPED),
        hf("GraniteMoeForCausalLM", ids(), num_local_experts=4, num_experts_per_tok=2, **GROUPED),
        hf("PhimoeForCausalLM", ids(), num_local_experts=4, num_experts_per_tok=2, **GROUPED),
        hf("JambaForCausalLM", ids(), use_mamba_kernels=False, num_experts=4, mamba_d_state=8, mamba_dt_rank=4,
           attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, **GROUPED),
        hf("SwitchTransformersModel", pairs(), num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
           num_experts=4, expert_capacity=64, **T5),
    ]  # fmt: skip


def _encoders() -> list[Entry]:
    funnel: Settings = {
        "vocab_size": WORDS, "block_sizes": [1, 1], "d_model": WIDTH, "n_head": 4, "d_head": 8,
        "d_inner": HIDDEN}  # fmt: skip
    return [
        hf("BertModel", ids(), **COMMON),
        hf("BertModel", masked_ids(), "padded", **COMMON),
        hf("RobertaModel", masked_ids(), **COMMON, pad_token_id=1),
        hf("AlbertModel", ids(), embedding_size=16, **COMMON),
        hf("ElectraModel", ids(), embedding_size=16, **COMMON),
        hf("DebertaV2Model", masked_ids(), relative_attention=True, pos_att_type=["p2c", "c2p"],
           position_buckets=8, **COMMON),
        hf("DistilBertModel", ids(), vocab_size=WORDS, dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=HIDDEN),
        hf("MobileBertModel", ids(), embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16, **COMMON),
        hf("ConvBertModel", ids(), embedding_size=16, head_ratio=2, **COMMON),
        hf("SqueezeBertModel", ids(), embedding_size=WIDTH, **COMMON),
        hf("MPNetModel", ids(), **COMMON),
        hf("RoFormerModel", ids(), embedding_size=WIDTH, **COMMON),
        hf("ModernBertModel", masked_ids(), local_attention=4, global_attn_every_n_layers=2, **COMMON | SPECIAL,
           cls_token_id=1, sep_token_id=2),
        hf("XLNetModel", ids(), vocab_size=WORDS, d_model=WIDTH, n_layer=2, n_head=4, d_inner=HIDDEN,
           use_mems_eval=False),
        hf("LongformerModel", masked_ids(16), attention_window=4, **COMMON),
        hf("BigBirdModel", ids(64), block_size=4, num_random_blocks=2, **COMMON | {"max_position_embeddings": 128}),
        hf("FunnelModel", ids(), **funnel),
        hf("FNetModel", ids(), **COMMON),
        hf("NystromformerModel", ids(16), num_landmarks=4, segment_means_seq_len=16, conv_kernel_size=5, **COMMON),
        hf("YosoModel", ids(), use_expectation=True, **COMMON),
        hf("CanineModel", ids(32), downsampling_rate=4, upsampling_kernel_size=4, local_transformer_stride=16,
           num_hash_functions=4, num_hash_buckets=32, **COMMON),
        hf("ReformerModel", ids(16), attention_head_size=8, attn_layers=["local", "lsh"], axial_pos_embds=False,
           num_attention_heads=4, hidden_size=WIDTH, feed_forward_size=HIDDEN, vocab_size=WORDS, num_buckets=2,
           local_attn_chunk_length=4, lsh_attn_chunk_length=4, max_position_embeddings=64, is_decoder=False,
           hash_seed=0),
        hf("LayoutLMModel", ids(), **COMMON),
        hf("TapasModel", _tapas, **COMMON),
    ]  # fmt: skip


def _tapas(n: int) -> Batch:
    return {"input_ids": words(n), "token_type_ids": torch.zeros(n, LENGTH, 7, dtype=torch.long)}


def _both() -> list[Entry]:
    led = {key: value for key, value in SEQ2SEQ.items() if key != "max_position_embeddings"}
    return [
        hf("T5Model", pairs(), **T5),
        hf("T5Model", pairs(), "gated", feed_forward_proj="gated-gelu", **T5),
        hf("MT5EncoderModel", masked_ids(), **T5),
        hf("LongT5EncoderModel", ids(16), local_radius=3, **T5),
        hf("BartModel", pairs(), **SEQ2SEQ),
        hf("MBartModel", pairs(), **SEQ2SEQ),
        hf("PegasusModel", pairs(), **SEQ2SEQ),
        hf("MarianModel", pairs(), decoder_vocab_size=WORDS, **SEQ2SEQ),
        hf("M2M100Model", pairs(), **SEQ2SEQ),
        hf("BlenderbotModel", pairs(), **SEQ2SEQ),
        hf("LEDModel", pairs(16), attention_window=4, max_encoder_position_embeddings=64,
           max_decoder_position_embeddings=64, **led),
        hf("ProphetNetModel", pairs(), vocab_size=WORDS, hidden_size=WIDTH, encoder_ffn_dim=HIDDEN,
           decoder_ffn_dim=HIDDEN, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4,
           num_decoder_attention_heads=4, max_position_embeddings=64, ngram=2, num_buckets=8),
        hf("NllbMoeModel", pairs(), num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2, **SEQ2SEQ),
    ]  # fmt: skip


def entries() -> list[Entry]:
    """All of them."""
    return [*_decoder_only(), *_experts(), *_encoders(), *_both()]
