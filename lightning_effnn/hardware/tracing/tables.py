"""Names of aten operations that are neither views nor products, by what they do, and what they cost.

Torch's own tags say which operations are pointwise, reductions or views; the names here are those it
does not tag, or tags too widely (``clone`` is "pointwise"). In-place and ``out=`` variants share a name.
"""

from __future__ import annotations

import torch


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_OPERATIONS = 4
"""Simple operations of one transcendental function, division or root: a table look-up with linear
interpolation (index, subtract, multiply, add)."""

FUNCTIONS = _names(
    """
    acos acosh addcdiv angle asin asinh atan atan2 atanh celu cos cosh digamma div elu elu_backward
    erf erfc erfinv exp exp2 expm1 floor_divide fmod gelu gelu_backward glu glu_backward hypot i0
    igamma igammac lgamma log log10 log1p log2 log_sigmoid_backward log_sigmoid_forward logaddexp
    logaddexp2 logit logit_backward mish mish_backward mvlgamma polar polygamma pow reciprocal
    remainder rsqrt selu sigmoid sigmoid_backward silu silu_backward sin sinc sinh softplus
    softplus_backward sqrt tan tanh tanh_backward xlogy
    """
)
FEW_OPERATIONS = {
    "addcmul": 2,
    "lerp": 2,
    "hardsigmoid": 3,
    "hardswish": 4,
    "hardswish_backward": 4,
    "_prelu_kernel": 2,
    "_prelu_kernel_backward": 3,
    "native_dropout": 2,
    "_fused_dropout": 2,
}
UNTAGGED_ELEMENTWISE = _names(
    """
    _add_relu addr affine_grid_generator complex elu_backward floor_divide _fused_dropout
    gelu_backward glu glu_backward hardshrink_backward hardsigmoid_backward hardswish
    hardswish_backward hardtanh_backward leaky_relu_backward linalg_cross log_sigmoid_backward
    log_sigmoid_forward masked_fill _masked_scale mish_backward native_dropout polar _prelu_kernel
    _prelu_kernel_backward rrelu_with_noise rrelu_with_noise_backward rsub softplus_backward
    softshrink_backward threshold_backward
    """
)
SAME_VALUES = _names("abs hardtanh masked_fill maximum minimum neg relu threshold where")
"""Elementwise operations whose results are values of their inputs, or zero: a format's grid is kept."""

FREE = _names(
    """
    alias _assert_async _linalg_check_errors _assert_scalar _assert_tensor_metadata _coalesced _cudnn_init_dropout_state
    dense_dim detach _dimI _dimV empty empty_like empty_permuted empty_strided _fused_sdp_choice
    _has_compatible_shallow_copy_type _has_same_storage_numel is_coalesced is_pinned is_same_size
    is_set_to item lift lift_fresh _local_scalar_dense new_empty new_empty_strided _nnz qscheme
    record_stream _reshape_alias resize resize_as set _sparse_compressed_tensor_unsafe
    _sparse_compressed_tensor_with_dims _sparse_coo_tensor_unsafe _sparse_coo_tensor_with_dims
    _sparse_coo_tensor_with_dims_and_tensors _sparse_csr_tensor_unsafe sparse_dim sparse_resize
    sparse_resize_and_clear sym_constrain_range sym_constrain_range_for_size sym_numel sym_size
    sym_storage_offset sym_stride unsafe_split unsafe_split_with_sizes _unsafe_view
    """
)
"""No data moves: allocation, shapes, and views that are not declared as such."""

FACTORIES = _names(
    """
    arange bartlett_window bernoulli blackman_window empty empty_permuted empty_strided eye full
    hamming_window hann_window kaiser_window linspace logspace normal ones rand randint randn
    randperm scalar_tensor tril_indices triu_indices zeros
    """
)
"""Made from sizes alone: they depend on the batch if one of their axes has the batch's size."""

MOVES = FACTORIES | _names(
    """
    alias_copy as_strided_copy as_strided_scatter block_diag cat cauchy channel_shuffle
    _chunk_cat constant_pad_nd _convert_indices_from_coo_to_csr
    _convert_indices_from_csr_to_coo copy _copy_from diag_embed diagonal_backward
    diagonal_copy diagonal_scatter _efficientzerotensor expand_copy exponential fill flip full_like
    geometric index_fill log_normal masked_scatter _mkldnn_reshape
    _mkldnn_transpose narrow_copy _neg_view_copy new_full new_ones new_zeros
    _new_zeros_with_same_feature_meta ones_like _pack_padded_sequence permute_copy _pin_memory
    pixel_shuffle pixel_unshuffle poisson rand_like randint_like randn_like random range
    reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d replication_pad2d
    replication_pad3d _reshape_copy roll rot90 select_backward select_copy select_scatter
    slice_backward slice_copy slice_scatter sparse_mask _sparse_mask_projection split_copy
    split_with_sizes_copy squeeze_copy _stack stack t_copy _to_copy _to_dense to_dense to_mkldnn
    to_padded_tensor _to_sparse _to_sparse_csc _to_sparse_csr transpose_copy tril triu unbind_copy
    unfold_copy uniform unsqueeze_copy upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d values_copy
    view_copy zero zeros_like
    """
)
GATHERS = _names(
    """
    bucketize embedding gather im2col index index_select masked_select nonzero nonzero_static
    repeat_interleave searchsorted take _unsafe_index _unsafe_masked_index
    """
)
SCATTERS = _names(
    """
    bincount col2im _embedding_bag_backward _embedding_bag_dense_backward
    _embedding_bag_per_sample_weights_backward embedding_dense_backward embedding_renorm histc
    index_add index_copy index_put _index_put_impl index_reduce max_unpool2d max_unpool3d put
    reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward
    replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward scatter
    scatter_add scatter_reduce _segment_reduce_backward unfold_backward _unsafe_index_put
    _unsafe_masked_index_put_accumulate
    """
)
REDUCTIONS = _names(
    """
    allclose cummax _cummax_helper cummin _cummin_helper cumprod cumsum dist equal _is_all_true
    _is_any_true linalg_vector_norm _logcumsumexp logcumsumexp segment_reduce trace
    """
)
UNTAGGED_REDUCTIONS = _names(
    """
    all amax amin aminmax any argmax argmin count_nonzero linalg__powsum logsumexp max mean min nansum native_norm
    norm prod std std_mean sum var var_mean
    """
)
"""Tagged by newer versions of torch."""
SORTS = _names(
    """
    argsort _coalesce isin kthvalue median mode msort multinomial nanmedian sort topk _unique
    _unique2 unique_consecutive unique_dim unique_dim_consecutive
    """
)
SOFTMAXES = _names(
    """
    _log_softmax _log_softmax_backward_data _masked_softmax _masked_softmax_backward _safe_softmax
    _softmax _softmax_backward_data _sparse_softmax _sparse_softmax_backward_data
    """
)
BATCH_NORMS = _names(
    """
    batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts
    _batch_norm_no_update batch_norm_stats batch_norm_update_stats _batch_norm_with_update
    _batch_norm_with_update_functional cudnn_batch_norm miopen_batch_norm native_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training
    """
)
OTHER_NORMS = _names(
    """
    _fused_rms_norm native_group_norm native_layer_norm renorm _weight_norm_interface
    """
)
NORM_BACKWARDS = _names(
    """
    batch_norm_backward batch_norm_backward_elemt batch_norm_backward_reduce
    cudnn_batch_norm_backward _fused_rms_norm_backward miopen_batch_norm_backward
    native_batch_norm_backward native_group_norm_backward native_layer_norm_backward
    _weight_norm_interface_backward
    """
)
POOLS = _names(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d
    _adaptive_avg_pool3d_backward adaptive_avg_pool3d_backward adaptive_max_pool2d
    adaptive_max_pool2d_backward adaptive_max_pool3d adaptive_max_pool3d_backward avg_pool2d
    avg_pool2d_backward avg_pool3d avg_pool3d_backward fractional_max_pool2d
    fractional_max_pool2d_backward fractional_max_pool3d fractional_max_pool3d_backward
    max_pool2d_backward max_pool2d_with_indices max_pool2d_with_indices_backward
    max_pool3d_with_indices max_pool3d_with_indices_backward mkldnn_max_pool2d mkldnn_max_pool3d
    """
)
TAPS = {
    "upsample_linear1d": 2,
    "upsample_bilinear2d": 4,
    "_upsample_bilinear2d_aa": 4,
    "upsample_trilinear3d": 8,
    "upsample_bicubic2d": 16,
    "_upsample_bicubic2d_aa": 16,
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 1,
    "upsample_nearest3d": 1,
    "_upsample_nearest_exact1d": 1,
    "_upsample_nearest_exact2d": 1,
    "_upsample_nearest_exact3d": 1,
    "grid_sampler_2d": 4,
    "grid_sampler_3d": 8,
    "cudnn_grid_sampler": 4,
    "_grid_sampler_2d_cpu_fallback": 4,
}
"""Inputs read for one output of an interpolation; each is a multiplication and an addition."""

LOSSES = _names(
    """
    binary_cross_entropy binary_cross_entropy_with_logits _ctc_loss _cudnn_ctc_loss huber_loss
    mse_loss multi_margin_loss multilabel_margin_loss_forward nll_loss2d_forward nll_loss_forward
    smooth_l1_loss soft_margin_loss
    """
)
LOSS_OPERATIONS = 4  # difference, function or square, weight, sum
FOURIER = _names("_fft_c2c _fft_c2r _fft_r2c")

MATRIX_PRODUCTS = _names(
    """
    mm _int_mm _scaled_mm _scaled_mm_v2 _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu
    _weight_int4pack_mm_with_scales_and_zeros _grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2
    addmm _addmm_activation _sparse_addmm addbmm baddbmm bmm _sparse_mm _sparse_mm_reduce_impl mv addmv dot vdot
    _dyn_quant_matmul_4bit
    """
)
WITH_BIAS = _names("addmm _addmm_activation _sparse_addmm addbmm baddbmm addmv")
"""The factors come behind what is added to their product."""
TRANSPOSED = _names("_weight_int8pack_mm mkldnn_linear linear _weight_int4pack_mm_with_scales_and_zeros")
"""The second factor is [columns, inner]."""
CONVOLUTIONS = _names(
    """
    convolution _convolution convolution_overrideable cudnn_convolution cudnn_convolution_transpose
    cudnn_convolution_relu mkldnn_convolution miopen_convolution miopen_convolution_transpose
    miopen_depthwise_convolution _slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d
    slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d _conv_depthwise2d conv_depthwise3d
    """
)
SOLVES = _names(
    """
    cholesky_solve _cholesky_solve_helper _linalg_solve_ex linalg_lu_solve linalg_ldl_solve linalg_solve_triangular
    triangular_solve linalg_lstsq
    """
)
ATTENTIONS = _names(
    """
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable flex_attention
    """
)
CUMULATIVE = _names(
    "cummax _cummax_helper cummin _cummin_helper cumprod cumsum _logcumsumexp logcumsumexp sort argsort topk"
)
MASKS = (torch.bool, torch.uint8)
"""Types of an index that says of each element whether it is taken."""
RANDOM = _names("bernoulli normal rand randint randn randperm rand_like randint_like randn_like multinomial uniform")
"""Drawn anew at each inference: no constants."""
LIKE = _names("empty_like full_like ones_like zeros_like _efficientzerotensor _new_zeros_with_same_feature_meta")
"""Of the size of another."""
NEW = _names("new_empty new_full new_ones new_zeros")
"""Of a size that is given."""
COPIES = _names("clone contiguous _conj_copy _lazy_clone detach_copy lift_fresh_copy")
"""The same values in another order of memory: a chip reads them where they are, in whatever order."""
