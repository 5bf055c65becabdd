//! Whole-system tests: a small framework, and one file per promise under `tests/`.

#![forbid(unsafe_code)]
