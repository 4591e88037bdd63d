//! grouped-attention-cuda
