"""A small Llama of transformers, and its GGUF file as convert_hf_to_gguf.py would write it."""

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_mpq.targets.gguf_names import row_orders, tensor_names

HEADS, HEADS_KV = 4, 2


def llama(tied=False, seed=0, hidden=256, biases=False):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96, hidden_size=hidden, intermediate_size=512, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=HEADS_KV, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.06,
        attention_bias=biases,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokens():
    return torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def write_gguf(model, path):
    """Write a float model in float32, heads turned as llama.cpp wants them."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS_KV)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    writer.add_token_scores([-float(number) for number in range(config.vocab_size)])
    writer.add_token_types([3, 3, 3] + [1] * (config.vocab_size - 3))
    heads = {"attn_q": HEADS, "attn_k": HEADS_KV}
    names = tensor_names(model)
    for name, value in model.named_parameters():
        content, tensor = value.detach().numpy(), names[name]
        if (count := heads.get(tensor.split(".")[-2])) is not None:
            content = content[row_orders(len(content), count)[1]]
        writer.add_tensor(tensor, np.ascontiguousarray(content))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
