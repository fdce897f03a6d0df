//! Tests on real interfaces, in network namespaces that the tests make themselves.

mod frame_tests;
mod long_tests;
mod world_tests;
