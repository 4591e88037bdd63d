//! grouped-attention-benches
