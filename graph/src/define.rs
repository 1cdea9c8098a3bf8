//! What each fused op means, in primitives.
