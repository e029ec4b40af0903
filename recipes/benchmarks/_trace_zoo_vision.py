"""Vision of the zoo: classifiers of transformers and timm, detectors and segmenters, images with words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_effnn.recipes.benchmarks._trace_zoo import (
    Batch,
    Entry,
    Settings,
    configured,
    hf,
    part,
    pixels,
    positional,
    repeated,
    words,
)

WIDTH, HIDDEN = 32, 64
COMMON: Settings = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": HIDDEN}  # fmt: skip
VIT = COMMON | {"image_size": 32, "patch_size": 8}
TEXT = COMMON | {"vocab_size": 100, "max_position_embeddings": 32}
STAGES: Settings = {
    "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32,
    "patch_size": 2}  # fmt: skip
RESNET: Settings = {
    "embedding_size": 8, "hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1], "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"]}  # fmt: skip
DETECTOR: Settings = {
    "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": HIDDEN, "decoder_ffn_dim": HIDDEN,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 5}  # fmt: skip
LATENTS = 6


def _perceiver(rows: int, places: int, width: int, layers: int) -> int:
    """Latents attend to places once, then to themselves; heads over the latents by a query of their own."""
    enter = rows * width * width + 2 * places * width * width + 2 * rows * places * width + rows * width * width
    self_attention = 4 * rows * width * width + 2 * rows * rows * width
    return enter + 2 * rows * width * width + layers * (self_attention + 2 * rows * width * width)


PERCEIVER = _perceiver(LATENTS, 20, WIDTH, 2)
"""Latents [6, 32] and 20 inputs of width 32; hidden layers as wide as the latents (widening factor 1)."""


def _classifiers() -> list[Entry]:
    return [
        hf("ViTModel", pixels(), **VIT),
        hf("ViTForImageClassification", pixels(), "eager attention", attn_implementation="eager", **VIT),
        hf("DeiTModel", pixels(), **VIT),
        hf("BeitModel", pixels(), use_relative_position_bias=True, **VIT),
        hf("Data2VecVisionModel", pixels(), use_shared_relative_position_bias=True, **VIT),
        hf("Dinov2Model", pixels(), **COMMON, image_size=32, patch_size=8),
        hf("ViTMSNModel", pixels(), **VIT),
        hf("YolosModel", pixels(), num_detection_tokens=5, **VIT | {"image_size": [32, 32]}),
        hf("SwinModel", pixels(), **STAGES),
        hf("Swinv2Model", pixels(), **STAGES),
        hf("FocalNetModel", pixels(), embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3],
           hidden_sizes=[16, 32], image_size=32, patch_size=2),
        hf("HieraModel", pixels(64), embed_dim=16, image_size=[64, 64], depths=[1, 1, 1], num_heads=[1, 2, 4],
           patch_size=[7, 7], query_stride=[2, 2], masked_unit_size=[4, 4], masked_unit_attention=[True, True, False],
           num_query_pool=2),
        hf("ConvNextModel", pixels(), depths=[1, 1], hidden_sizes=[16, 32], num_stages=2),
        hf("ConvNextV2Model", pixels(), depths=[1, 1], hidden_sizes=[16, 32], num_stages=2),
        hf("ResNetModel", pixels(), **RESNET),
        hf("RegNetModel", pixels(), embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1],
           groups_width=8),
        hf("BitModel", pixels(), embedding_size=32, hidden_sizes=[32, 32], depths=[1, 1], num_groups=8),
        hf("EfficientNetModel", pixels(), image_size=32, hidden_dim=384, width_coefficient=0.3,
           depth_coefficient=0.3),
        hf("MobileNetV1Model", pixels(), depth_multiplier=0.25, image_size=32),
        hf("MobileNetV2Model", pixels(), depth_multiplier=0.25, image_size=32),
        hf("MobileViTModel", pixels(64), hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
           num_attention_heads=4, image_size=64),
        hf("PoolFormerModel", pixels(), hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]),
        hf("PvtModel", pixels(), hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], image_size=32,
           num_attention_heads=[1, 2, 2, 4]),
        hf("CvtModel", pixels(), embed_dim=[8, 16, 32], num_heads=[1, 2, 4], depth=[1, 2, 3]),
        hf("LevitModel", pixels(64), image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 3, 4],
           depths=[1, 1, 1], key_dim=[8, 8, 8]),
        hf("SwiftFormerModel", pixels(64), image_size=64, embed_dims=[16, 16, 32, 32], depths=[1, 1, 1, 1]),
    ]  # fmt: skip


def _dense() -> list[Entry]:
    backbone = ("transformers.ResNetConfig", RESNET)
    plain: Settings = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    swin = ("transformers.SwinConfig", STAGES | {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "embed_dim": 8,
            "out_features": ["stage1", "stage2", "stage3", "stage4"]})  # fmt: skip
    deformable: Settings = {
        "num_feature_levels": 3,
        "disable_custom_kernels": True,
        "two_stage_num_proposals": 5,
        **DETECTOR | {"decoder_layers": 2},
    }
    decoder = ("transformers.DetrConfig", DETECTOR | {"backbone_config": backbone, **plain})
    return [
        hf("DetrForObjectDetection", pixels(64), backbone_config=backbone, **plain, **DETECTOR),
        hf("DetrForObjectDetection", _masked_pixels, "padded", backbone_config=backbone, **plain, **DETECTOR),
        hf("ConditionalDetrModel", pixels(64), backbone_config=backbone, **plain, **DETECTOR),
        hf("DabDetrModel", pixels(64), backbone_config=backbone, hidden_size=WIDTH, **plain, **DETECTOR),
        hf("DeformableDetrForObjectDetection", pixels(64), backbone_config=backbone, **plain, **deformable),
        hf("DeformableDetrForObjectDetection", pixels(64), "two stages", backbone_config=backbone, two_stage=True,
           with_box_refine=True, **plain, **deformable),
        hf("RTDetrModel", pixels(64), backbone_config=("transformers.RTDetrResNetConfig", RESNET), d_model=WIDTH,
           encoder_hidden_dim=WIDTH, encoder_in_channels=[16, 32, 32], feat_strides=[8, 16, 32], encoder_ffn_dim=HIDDEN,
           encoder_attention_heads=4, num_queries=5, decoder_in_channels=[WIDTH] * 3, decoder_ffn_dim=HIDDEN,
           decoder_layers=1, decoder_attention_heads=4, disable_custom_kernels=True),
        hf("MaskFormerForInstanceSegmentation", pixels(64), backbone_config=swin, decoder_config=decoder,
           fpn_feature_size=WIDTH, mask_feature_size=WIDTH),
        hf("Mask2FormerForUniversalSegmentation", pixels(64), backbone_config=swin, feature_size=WIDTH,
           mask_feature_size=WIDTH, hidden_dim=WIDTH, encoder_feedforward_dim=HIDDEN, encoder_layers=1,
           decoder_layers=2, num_attention_heads=4, dim_feedforward=HIDDEN, num_queries=5),
        hf("SegformerForSemanticSegmentation", pixels(64), hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1],
           num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=WIDTH),
        hf("UperNetForSemanticSegmentation", pixels(64), backbone_config=swin, hidden_size=WIDTH,
           auxiliary_in_channels=32, pool_scales=[1, 2]),
        hf("DPTForDepthEstimation", pixels(), neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16,
           backbone_out_indices=[0, 1, 2, 3], **VIT | {"num_hidden_layers": 4}),
        hf("GLPNForDepthEstimation", pixels(64), hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1],
           num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=WIDTH),
        Entry("SamModel", "transformers", _sam,
              lambda n: {"pixel_values": repeated(n, 3, 32, 32), "input_points": torch.full((n, 1, 2, 2), 9.0)}),
        Entry("PerceiverModel", "transformers", lambda: configured("transformers.PerceiverModel", {
              "num_latents": LATENTS, "d_latents": WIDTH, "d_model": WIDTH, "num_self_attends_per_block": 2,
              "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "self_attention_widening_factor": 1,
              "cross_attention_widening_factor": 1}), lambda n: {"inputs": repeated(n, 20, WIDTH)},
              by_hand=PERCEIVER),
    ]  # fmt: skip


def _masked_pixels(n: int) -> Batch:
    mask = torch.ones(n, 64, 64, dtype=torch.long)
    mask[:, :, 48:] = 0
    return {"pixel_values": repeated(n, 3, 64, 64), "pixel_mask": mask}


def _sam() -> Any:
    vision = VIT | {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8}
    prompt = {"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
               "iou_head_hidden_dim": 16}  # fmt: skip
    return configured("transformers.SamModel", {"vision_config": vision, "prompt_encoder_config": prompt,
                                                "mask_decoder_config": decoder})  # fmt: skip


def _captioned(**more: Any) -> Callable[[int], Batch]:
    return lambda n: {"pixel_values": repeated(n, 3, 32, 32), "input_ids": words(n, 8), **more}


def _with_words() -> list[Entry]:
    two: Settings = {"text_config": TEXT, "vision_config": VIT, "projection_dim": 16}
    queries: Settings = {
        "qformer_config": COMMON | {"vocab_size": 100, "encoder_hidden_size": WIDTH},
        "vision_config": VIT,
    }
    llama = TEXT | {"model_type": "llama", "use_cache": False}
    return [
        hf("CLIPModel", _captioned(), **two),
        hf("CLIPVisionModel", pixels(), **VIT),
        hf("SiglipModel", _captioned(), text_config=TEXT, vision_config=VIT),
        hf("ChineseCLIPModel", _captioned(), **two),
        hf("BlipForConditionalGeneration", _captioned(), text_config=TEXT | {"encoder_hidden_size": WIDTH},
           vision_config=VIT),
        Entry("Blip2QFormerModel", "transformers", lambda: configured("transformers.Blip2QFormerModel",
              queries["qformer_config"]),
              lambda n: {"query_embeds": repeated(n, 5, WIDTH), "encoder_hidden_states": repeated(n, 17, WIDTH)}),
        hf("Blip2Model", _blip2, text_config={"model_type": "opt", "vocab_size": 100, "hidden_size": WIDTH,
           "num_hidden_layers": 1, "ffn_dim": HIDDEN, "num_attention_heads": 4, "word_embed_proj_dim": WIDTH,
           "max_position_embeddings": 64}, num_query_tokens=5, image_token_index=99, **queries),
        hf("ViltModel", _captioned(), **VIT, vocab_size=100, max_position_embeddings=32),
        hf("FlavaImageModel", pixels(), **VIT),
        hf("LlavaForConditionalGeneration", _llava, text_config=llama, vision_config=VIT | {
           "model_type": "clip_vision_model"}, image_token_id=99, image_token_index=99, vision_feature_layer=-1),
        hf("OwlViTModel", _owl, **two),
        hf("GitModel", _captioned(), vision_config=VIT, **TEXT),
    ]  # fmt: skip


def _llava(n: int) -> Batch:
    ids = torch.cat([torch.full((n, 16), 99), words(n, 8)], 1)
    return {"input_ids": ids, "pixel_values": repeated(n, 3, 32, 32), "use_cache": False}


def _blip2(n: int) -> Batch:
    ids = torch.cat([torch.full((n, 5), 99), words(n, 8)], 1)
    return {"input_ids": ids, "pixel_values": repeated(n, 3, 32, 32), "attention_mask": torch.ones_like(ids)}


def _owl(n: int) -> Batch:
    return {"input_ids": words(n, 8), "pixel_values": repeated(n, 3, 32, 32)}


TIMM: dict[str, tuple[int, Settings]] = {
    "resnet10t": (64, {}),
    "resnext26ts": (64, {}),
    "legacy_seresnet18": (64, {}),
    "densenet121": (32, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "efficientnet_lite0": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small_050": (64, {}),
    "mobileone_s0": (32, {}),
    "ghostnet_050": (64, {}),
    "regnety_002": (64, {}),
    "nfnet_l0": (64, {}),
    "repvgg_a0": (32, {}),
    "hrnet_w18_small": (64, {}),
    "convmixer_768_32": (28, {}),
    "convnext_atto": (64, {}),
    "inception_next_atto": (64, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "gmlp_ti16_224": (64, {"img_size": 64}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "vit_relpos_small_patch16_224": (64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "vit_small_patch16_rope_224": (64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 2}),
    "samvit_base_patch16_224": (64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "vit_base_patch16_siglip_224": (64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "deit3_small_patch16_224": (64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 2, "depth_token_only": 1}),
    "crossvit_tiny_240": (240, {}),
    "levit_128s": (64, {"img_size": 64}),
    "levit_conv_128s": (64, {"img_size": 64}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64, "depth": 2}),
    "coat_lite_tiny": (64, {"img_size": 64, "embed_dims": (32, 32, 64, 64), "serial_depths": (1, 1, 1, 1)}),
    "coatnet_pico_rw_224": (64, {"img_size": 64}),
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}),
    "maxxvit_rmlp_nano_rw_256": (64, {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6)}),
    "swinv2_cr_tiny_224": (64, {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6)}),
    "davit_tiny": (64, {"embed_dims": (24, 48), "num_heads": (3, 6), "depths": (1, 1)}),
    "gcvit_xxtiny": (64, {"img_size": 64}),
    "mvitv2_tiny": (64, {"img_size": 64}),
    "nest_tiny": (64, {"img_size": 64}),
    "twins_svt_small": (64, {"img_size": 64, "depths": (1, 1, 2, 1)}),
    "pit_ti_224": (64, {"img_size": 64}),
    "tnt_s_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "visformer_tiny": (64, {"img_size": 64}),
    "volo_d1_224": (64, {"img_size": 64}),
    "poolformerv2_s12": (64, {}),
    "caformer_s18": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (224, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (64, {"img_size": 64}),
    "fastvit_t8": (64, {}),
    "mobilevitv2_050": (64, {}),
    "tiny_vit_5m_224": (64, {}),
    "repvit_m0_9": (64, {}),
    "hiera_tiny_224": (64, {"img_size": (64, 64)}),
    "mambaout_femto": (64, {}),
    "sequencer2d_s": (56, {"layers": (1, 1, 1, 1), "embed_dims": (24, 24, 24, 24), "hidden_sizes": (8, 8, 8, 8)}),
    "focalnet_tiny_srf": (64, {}),
    "convit_tiny": (64, {"img_size": 64, "depth": 3, "local_up_to_layer": 2}),
    "botnet26t_256": (64, {"img_size": 64}),
    "lambda_resnet26t": (64, {"img_size": 64}),
    "halonet26t": (256, {}),
    "starnet_s1": (64, {}),
}
"""Side of the image and what makes the network smaller; one of the most different kinds each."""


def _timm(name: str, side: int, smaller: Settings) -> Entry:
    def build() -> Any:
        return part("timm.create_model")(name, pretrained=False, num_classes=10, **smaller)

    return Entry(name, "timm", build, positional((3, side, side)))


def entries() -> list[Entry]:
    """All of them."""
    timm = [_timm(name, side, smaller) for name, (side, smaller) in TIMM.items()]
    return [*_classifiers(), *_dense(), *_with_words(), *timm]
