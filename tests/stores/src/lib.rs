//! Tests of stores over a network, against real servers; everything is in `tests/`.
#![deny(unsafe_code)]
