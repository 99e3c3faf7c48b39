//! What tests of several rooms share: servers that live for one test.
#![deny(unsafe_code)]

pub mod postgres;
