//! Tests of entries, table, index and wheel: what one thread can show. What takes several stands in
//! tests/threads.rs.

mod entry_tests;
mod index_tests;
mod table_tests;
mod wheel_tests;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Conn, Opening};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{Endpoint, Flow, ForwardMethod, Protocol, RealLive};
use crate::time::{Duration, Instant};

const SEED: u64 = 7;

fn at(secs: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(secs)
}

fn server() -> Arc<RealLive> {
    let endpoint = Endpoint::new([192, 168, 1, 11].into(), 8080);
    Arc::new(RealLive::new(1, endpoint, 1))
}

/// Active, inactive and persistent connections of a real server.
fn counts(server: &RealLive) -> [u32; 3] {
    [&server.active, &server.inactive, &server.persistent].map(|count| count.load(Relaxed))
}

/// From client number `client` to the VIP.
fn tuple(protocol: Protocol, client: u32) -> Tuple {
    let [_, b, c, d] = client.to_be_bytes();
    let source = Endpoint::new([10, b, c, d].into(), 40000);
    let target = Endpoint::new([1, 2, 3, 1].into(), 80);
    Tuple::from(Flow {
        protocol,
        source,
        target,
    })
}

fn opening(tuple: Tuple, server: &Arc<RealLive>) -> Opening {
    Opening {
        tuple,
        real: (pack(server.address()), server.endpoint.port),
        method: ForwardMethod::Masq,
        server: Some(Arc::clone(server)),
        control: None,
        mark: 0,
        template: false,
    }
}

/// Connection of client number `client`, opened at second 0.
fn conn(protocol: Protocol, client: u32, server: &Arc<RealLive>) -> Arc<Conn> {
    Arc::new(Conn::open(
        opening(tuple(protocol, client), server),
        Instant::ZERO,
    ))
}
