//! Tests on real interfaces, in network namespaces that the tests make themselves.

mod frame_tests;
mod local_tests;
mod long_tests;
mod pcap_tests;
mod preflight_tests;
mod quiet_tests;
mod steer_tests;
mod stream_tests;
mod tun_tests;
mod world_tests;
