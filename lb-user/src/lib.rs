//! Control path.
