//! Whole-system tests: the essrun binary against real servers. There is nothing here; see `tests/`.
