"""The rest of the zoo: sound, time series, diffusion, medical images, graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn.recipes.benchmarks._trace_zoo import (
    Batch,
    Entry,
    Settings,
    hf,
    part,
    positional,
    repeated,
    words,
)

WIDTH, HIDDEN = 32, 64
SPEECH: Settings = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": HIDDEN,
    "conv_dim": [16, 16, 16], "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "vocab_size": 30}  # fmt: skip
SERIES: Settings = {
    "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 2, "d_model": 16,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip


def _sound() -> list[Entry]:
    whisper: Settings = {
        "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": HIDDEN, "decoder_ffn_dim": HIDDEN, "vocab_size": 100,
        "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": 20, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
    patches: Settings = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": HIDDEN,
    }
    return [
        hf("WhisperModel", lambda n: {"input_features": repeated(n, 20, 60), "decoder_input_ids": words(n, 7),
           "use_cache": False}, **whisper),
        hf("Wav2Vec2Model", _waves, **SPEECH),
        hf("Wav2Vec2Model", _waves, "layer norms", feat_extract_norm="layer", do_stable_layer_norm=True, **SPEECH),
        hf("HubertModel", _waves, **SPEECH),
        hf("WavLMModel", _waves, num_buckets=8, **SPEECH),
        hf("SEWModel", _waves, squeeze_factor=2, **SPEECH),
        hf("ASTModel", lambda n: {"input_values": repeated(n, 64, 32)}, num_mel_bins=32, max_length=64, **patches),
        hf("Speech2TextModel", lambda n: {"input_features": repeated(n, 40, 20), "decoder_input_ids": words(n, 7),
           "use_cache": False}, input_feat_per_channel=20, conv_channels=16, max_source_positions=40,
           **{k: v for k, v in whisper.items() if k not in ("num_mel_bins", "max_source_positions")}),
        hf("EncodecModel", lambda n: {"input_values": repeated(n, 1, 640)}, num_filters=4, hidden_size=16,
           num_lstm_layers=1, upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=16, target_bandwidths=[12.0],
           sampling_rate=8000),
        hf("Wav2Vec2ConformerModel", _waves, **SPEECH),
    ]  # fmt: skip


def _waves(n: int) -> Batch:
    return {"input_values": repeated(n, 800)}


def _series() -> list[Entry]:
    patch: Settings = {
        "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16}  # fmt: skip
    return [
        hf("PatchTSTForPrediction", lambda n: {"past_values": repeated(n, 32, 3)}, num_hidden_layers=2,
           num_attention_heads=2, ffn_dim=32, prediction_length=4, **patch),
        hf("PatchTSMixerForPrediction", lambda n: {"past_values": repeated(n, 32, 3)}, num_layers=2,
           prediction_length=4, **patch),
        hf("TimeSeriesTransformerModel", _past_and_future, **SERIES),
        hf("InformerModel", _past_and_future, **SERIES),
        hf("AutoformerModel", _past_and_future, label_length=4, **SERIES),
    ]  # fmt: skip


def _past_and_future(n: int) -> Batch:
    return {
        "past_values": repeated(n, 10),
        "past_time_features": repeated(n, 10, 2),
        "past_observed_mask": torch.ones(n, 10),
        "future_values": repeated(n, 4),
        "future_time_features": repeated(n, 4, 2),
    }


def _of(library: str, path: str, batch: Callable[[int], Batch], note: str = "", by_hand: int | None = None,
        **settings: Any) -> Entry:  # fmt: skip
    name = path.rpartition(".")[2]
    return Entry(f"{name}, {note}" if note else name, library, lambda: part(path)(**settings), batch, by_hand=by_hand)


def _diffusion() -> list[Entry]:
    blocks: Settings = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    text: Settings = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    coder: Settings = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}

    def conditioned(n: int) -> Batch:
        return {"sample": repeated(n, 4, 16, 16), "timestep": 3, "encoder_hidden_states": repeated(n, 7, 16)}

    def flux(n: int) -> Batch:
        return {"hidden_states": repeated(n, 16, 8), "encoder_hidden_states": repeated(n, 7, 16),
                "pooled_projections": repeated(n, 16), "timestep": torch.full((n,), 0.5),
                "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(7, 3), "guidance": torch.ones(n)}  # fmt: skip

    return [
        _of("diffusers", "diffusers.UNet2DModel", lambda n: {"sample": repeated(n, 3, 16, 16), "timestep": 3},
            sample_size=16, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), **blocks),
        _of("diffusers", "diffusers.UNet2DModel", lambda n: {"sample": repeated(n, 3, 16, 16),
            "timestep": torch.full((n,), 3)}, "a time for each sample", sample_size=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **blocks),
        _of("diffusers", "diffusers.UNet2DConditionModel", conditioned, sample_size=16, cross_attention_dim=16,
            attention_head_dim=4, **text, **blocks),
        _of("diffusers", "diffusers.UNet1DModel", lambda n: {"sample": repeated(n, 2, 32), "timestep": 3},
            in_channels=2, out_channels=2, block_out_channels=(32, 32), extra_in_channels=64,
            down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), up_block_types=("UpBlock1D", "UpBlock1DNoSkip")),
        _of("diffusers", "diffusers.UNet3DConditionModel", lambda n: {"sample": repeated(n, 4, 5, 8, 8),
            "timestep": 3, "encoder_hidden_states": repeated(n, 7, 16)}, sample_size=8, cross_attention_dim=16,
            attention_head_dim=4, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), **blocks),
        _of("diffusers", "diffusers.DiTTransformer2DModel", lambda n: {"hidden_states": repeated(n, 4, 8, 8),
            "timestep": torch.full((n,), 3), "class_labels": torch.full((n,), 4)}, num_attention_heads=4,
            attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8, num_embeds_ada_norm=10,
            norm_num_groups=8),
        _of("diffusers", "diffusers.PixArtTransformer2DModel", lambda n: {"hidden_states": repeated(n, 4, 8, 8),
            "timestep": torch.full((n,), 3), "encoder_hidden_states": repeated(n, 7, 16),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}, num_attention_heads=4,
            attention_head_dim=8, num_layers=2, sample_size=8, cross_attention_dim=32, caption_channels=16,
            norm_num_groups=8),
        _of("diffusers", "diffusers.SD3Transformer2DModel", lambda n: {"hidden_states": repeated(n, 4, 8, 8),
            "timestep": torch.full((n,), 3), "encoder_hidden_states": repeated(n, 7, 16),
            "pooled_projections": repeated(n, 16)}, sample_size=8, in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=4, joint_attention_dim=16, caption_projection_dim=32,
            pooled_projection_dim=16, pos_embed_max_size=8),
        _of("diffusers", "diffusers.FluxTransformer2DModel", flux, in_channels=8, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
            guidance_embeds=True, axes_dims_rope=(4, 4, 8)),
        _of("diffusers", "diffusers.AutoencoderKL", positional((3, 16, 16)), **coder, **blocks),
        _of("diffusers", "diffusers.AutoencoderKL", lambda n: {"": (repeated(n, 3, 16, 16),),
            "sample_posterior": True}, "sampled", **coder, **blocks),
        _of("diffusers", "diffusers.VQModel", positional((3, 16, 16)), num_vq_embeddings=16, **coder, **blocks),
        _of("diffusers", "diffusers.AutoencoderTiny", positional((3, 16, 16)),
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1)),
        _of("diffusers", "diffusers.ControlNetModel", lambda n: conditioned(n) | {
            "controlnet_cond": repeated(n, 3, 32, 32)}, cross_attention_dim=16, attention_head_dim=4,
            down_block_types=text["down_block_types"], conditioning_embedding_out_channels=(8, 16), **blocks),
        _of("diffusers", "diffusers.PriorTransformer", lambda n: {"hidden_states": repeated(n, 16), "timestep": 3,
            "proj_embedding": repeated(n, 16), "encoder_hidden_states": repeated(n, 7, 16)}, num_attention_heads=2,
            attention_head_dim=8, num_layers=2, embedding_dim=16, num_embeddings=7, additional_embeddings=4),
    ]  # fmt: skip


def _unet(spatial: int) -> int:
    """Products of monai's UNet of channels 4, 8, 16 with strides of 2, without residual units, on sides of 16.

    Every layer is one convolution with ``3**spatial`` taps; those of the way up are transposed, made on the smaller
    side, and read what the way down had beside what comes from below.
    """
    taps, half, quarter = (int(side**spatial) for side in (3, 8, 4))
    down = half * taps * 1 * 4 + quarter * taps * 4 * 8
    bottom = quarter * taps * 8 * 16
    up = quarter * taps * (16 + 8) * 4 + half * taps * (4 + 4) * 2
    return down + bottom + up


def _medical() -> list[Entry]:
    unet: Settings = {"in_channels": 1, "out_channels": 2, "channels": (4, 8, 16), "strides": (2, 2)}
    small: Settings = {"in_channels": 1, "out_channels": 2}
    flat, deep = positional((1, 32, 32)), positional((1, 16, 16, 16))

    def net(
        name: str, batch: Callable[[int], Batch], note: str = "", by_hand: int | None = None, **settings: Any
    ) -> Entry:
        return _of("monai", f"monai.networks.nets.{name}", batch, note, by_hand, **settings)

    return [
        net("UNet", positional((1, 16, 16)), "2-D", by_hand=_unet(2), spatial_dims=2, **unet),
        net("UNet", deep, "3-D", by_hand=_unet(3), spatial_dims=3, **unet),
        net("UNet", flat, "residual units", spatial_dims=2, num_res_units=2, **unet),
        net("AttentionUnet", flat, spatial_dims=2, **unet),
        net("BasicUNet", positional((1, 32, 32)), spatial_dims=2, features=(4, 4, 8, 8, 16, 4), **small),
        net("DynUNet", deep, spatial_dims=3, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2],
            filters=[4, 8, 16], **small),
        net("SegResNet", deep, spatial_dims=3, init_filters=8, **small),
        net("SegResNetVAE", deep, input_image_size=(16, 16, 16), spatial_dims=3, init_filters=8, vae_nz=8, **small),
        net("SwinUNETR", positional((1, 64, 64, 64)), feature_size=12, depths=(1, 1, 1, 1), **small),
        net("UNETR", positional((1, 32, 32)), spatial_dims=2, img_size=32, feature_size=4, hidden_size=16, mlp_dim=32,
            num_heads=4, **small),
        net("ViT", deep, in_channels=1, img_size=(16, 16, 16), patch_size=(8, 8, 8), hidden_size=24, mlp_dim=32,
            num_layers=2, num_heads=3, classification=True, num_classes=2),
        net("VNet", positional((1, 32, 32)), spatial_dims=2, **small),
        net("DenseNet", flat, spatial_dims=2, init_features=8, growth_rate=4, block_config=(2, 2), **small),
        net("HighResNet", flat, spatial_dims=2, **small),
        net("AutoEncoder", flat, spatial_dims=2, **unet | {"strides": (2, 2, 2)}),
        net("VarAutoEncoder", flat, spatial_dims=2, in_shape=(1, 32, 32), out_channels=1, latent_size=4,
            channels=(4, 8), strides=(2, 2)),
        net("MedNeXt", flat, spatial_dims=2, init_filters=4, blocks_down=(1, 1), blocks_bottleneck=1,
            blocks_up=(1, 1), **small),
        net("DiffusionModelUNet", lambda n: {"x": repeated(n, 1, 16, 16), "timesteps": torch.full((n,), 3)},
            spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 16), attention_levels=(False, True),
            num_res_blocks=1, num_head_channels=8, norm_num_groups=8),
    ]  # fmt: skip


class GraphNet(nn.Module):
    """Two layers of a kind and a head on the graph's mean, called on a torch-geometric batch."""

    def __init__(self, layer: Callable[[int, int], nn.Module], edges: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.head = layer(8, 16), layer(16, 16), nn.Linear(16, 3)
        self.edges = edges

    def forward(self, data: Any) -> Tensor:
        """Logits, ``[G, 3]``."""
        mean = part("torch_geometric.nn.global_mean_pool")
        more = (data.edge_attr,) if self.edges else ()
        x = self.one(data.x, data.edge_index, *more).relu()
        x = self.two(x, data.edge_index, *more).relu()
        pooled: Tensor = self.head(mean(x, data.batch))
        return pooled


def _graphs(n: int) -> Batch:
    draw = torch.Generator().manual_seed(1)
    source = torch.arange(12)
    edges = torch.stack([torch.cat([source, source]), torch.cat([source.roll(-1), source.roll(-3)])])
    one = part("torch_geometric.data.Data")(
        x=torch.randn(12, 8, generator=draw),
        edge_index=torch.cat([edges, edges.flip(0)], 1),
        edge_attr=torch.randn(48, 4, generator=draw),
    )
    return {"": (part("torch_geometric.data.Batch").from_data_list([one] * n),)}


def _layers(name: str, **settings: Any) -> Callable[[], nn.Module]:
    edges = settings.pop("edges", False)
    kind = f"torch_geometric.nn.{name}"
    return lambda: GraphNet(lambda inner, outer: part(kind)(inner, outer, **settings), edges)


def _gin() -> nn.Module:
    def layer(inner: int, outer: int) -> nn.Module:
        made: nn.Module = part("torch_geometric.nn.GINConv")(
            nn.Sequential(nn.Linear(inner, outer), nn.ReLU(), nn.Linear(outer, outer))
        )
        return made

    return GraphNet(layer)


def _edge_conv() -> nn.Module:
    def layer(inner: int, outer: int) -> nn.Module:
        made: nn.Module = part("torch_geometric.nn.EdgeConv")(
            nn.Sequential(nn.Linear(2 * inner, outer), nn.ReLU(), nn.Linear(outer, outer))
        )
        return made

    return GraphNet(layer)


class Atoms(nn.Module):
    """SchNet with the edges of the batch, not those that a radius search finds."""

    def __init__(self) -> None:
        super().__init__()

        def edges(positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
            near = (batch[:, None] == batch[None]) & ~torch.eye(len(batch), dtype=torch.bool)
            source, target = near.nonzero().t()
            return torch.stack([source, target]), (positions[source] - positions[target]).norm(dim=-1)

        self.net = part("torch_geometric.nn.models.SchNet")(
            hidden_channels=16, num_filters=16, num_interactions=2, num_gaussians=8, interaction_graph=edges
        )

    def forward(self, data: Any) -> Tensor:
        """Energies, ``[G, 1]``."""
        energies: Tensor = self.net(data.z, data.pos, data.batch)
        return energies


def _molecules(n: int) -> Batch:
    one = part("torch_geometric.data.Data")(
        z=torch.tensor([6, 1, 1, 1, 8, 1]), pos=torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    )
    return {"": (part("torch_geometric.data.Batch").from_data_list([one] * n),)}


class Pooled(nn.Module):
    """A graph convolution, a pooling of nodes by their scores, another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = part("torch_geometric.nn.GCNConv")(8, 16), part("torch_geometric.nn.GCNConv")(16, 16)
        self.pool, self.head = part("torch_geometric.nn.TopKPooling")(16, ratio=0.5), nn.Linear(16, 3)

    def forward(self, data: Any) -> Tensor:
        """Logits, ``[G, 3]``."""
        x = self.one(data.x, data.edge_index).relu()
        x, edges, _, batch, _, _ = self.pool(x, data.edge_index, None, data.batch)
        logits: Tensor = self.head(part("torch_geometric.nn.global_max_pool")(self.two(x, edges), batch))
        return logits


def _geometric() -> list[Entry]:
    degree = torch.tensor([0, 0, 0, 0, 12])
    pna: Settings = {"aggregators": ["mean", "max", "std"], "scalers": ["identity", "amplification"], "deg": degree}
    built: list[tuple[str, Callable[[], nn.Module]]] = [
        ("GCNConv", _layers("GCNConv")),
        ("GATConv", _layers("GATConv", heads=2, concat=False)),
        ("GATv2Conv", _layers("GATv2Conv", edge_dim=4, edges=True)),
        ("SAGEConv", _layers("SAGEConv")),
        ("GINConv", _gin),
        ("PNAConv", _layers("PNAConv", edge_dim=4, edges=True, **pna)),
        ("TransformerConv", _layers("TransformerConv", heads=2, concat=False, edge_dim=4, edges=True)),
        ("ChebConv", _layers("ChebConv", K=3)),
        ("TAGConv", _layers("TAGConv")),
        ("ARMAConv", _layers("ARMAConv", num_stacks=2, num_layers=2)),
        ("EdgeConv", _edge_conv),
        ("GMMConv", _layers("GMMConv", dim=4, kernel_size=3, edges=True)),
        ("TopKPooling", Pooled),
    ]
    return [
        *(Entry(name, "torch-geometric", build, _graphs) for name, build in built),
        Entry("SchNet", "torch-geometric", Atoms, _molecules),
    ]


def entries() -> list[Entry]:
    """All of them."""
    return [*_sound(), *_series(), *_diffusion(), *_medical(), *_geometric()]
