//! grouped-attention-cpu
