//! grouped-attention-conformance
