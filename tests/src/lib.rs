//! Tests that need several crates at once; see `tests/`. There is nothing to use here.
