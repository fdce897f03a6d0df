//! Listing: answers to "what is there". It reads what is configured, what lives and what was counted,
//! and changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::check::ENGINE;
use super::controller::Controller;
use super::desired::Desired;
use crate::config::command::{ConnRow, MasqueradedRow, RealRow, ServiceRow};
use crate::config::{Listing, Refusal};
use crate::conn::{Conn, ConnTable};
use crate::lvs::{RealServer, ServiceKey};
use crate::time::Instant;

/// All services, or one.
///
/// # Errors
/// `NoSuchService` if the one asked for is not there.
pub(super) fn services(
    controller: &Controller,
    key: Option<ServiceKey>,
    table_size: u32,
) -> Result<Listing, Refusal> {
    let services = match key {
        Some(key) => {
            let service = controller.services().get(&key);
            vec![service_row(service.ok_or(Refusal::NoSuchService)?)]
        }
        None => controller.services().values().map(service_row).collect(),
    };
    Ok(Listing::Services {
        table_size,
        services,
    })
}

fn service_row(service: &Desired) -> ServiceRow {
    ServiceRow {
        spec: service.spec.clone(),
        stats: service.meter.row(),
        reals: service
            .reals
            .iter()
            .map(|real| real_row(service, real))
            .collect(),
    }
}

fn real_row(service: &Desired, real: &RealServer) -> RealRow {
    let detail = &service.details[&real.live.id];
    RealRow {
        spec: detail.spec,
        active: real.active(),
        inactive: real.inactive(),
        persistent: real.live.persistent.load(Relaxed),
        stats: detail.meter.row(),
    }
}

/// All connection entries, in table order.
pub(super) fn connections(table: &ConnTable, now: Instant) -> Listing {
    let mut rows = Vec::with_capacity(table.len());
    table.for_each(|conn| rows.push(conn_row(table, conn, now)));
    Listing::Connections(rows)
}

/// The connections that masqueraded hosts opened, in table order. In the table the far end is the
/// client, the public one virtual, the host the real server.
pub(super) fn masqueraded(table: &ConnTable, now: Instant) -> Listing {
    let mut rows = Vec::with_capacity(table.masqueraded());
    table.for_each_masqueraded(|conn| {
        rows.push(MasqueradedRow {
            protocol: conn.protocol(),
            host: conn.real(),
            public: conn.virt(),
            target: conn.client(),
            state: conn.state_name().to_string(),
            expires_s: conn.expires_in(now).as_secs(),
        });
    });
    Listing::Masqueraded(rows)
}

fn conn_row(table: &ConnTable, conn: &Arc<Conn>, now: Instant) -> ConnRow {
    ConnRow {
        protocol: conn.protocol(),
        client: conn.client(),
        virt: conn.virt(),
        real: conn.real(),
        state: conn.state_name().to_string(),
        expires_s: conn.expires_in(now).as_secs(),
        engine: table.engine_data(conn).map(|data| {
            let text = String::from_utf8_lossy(data.bytes()).into_owned();
            (ENGINE.to_string(), text)
        }),
        local: conn.local(),
    }
}
