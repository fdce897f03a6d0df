//! AH and ESP follow the entry of the key exchange before them: UDP port 500 at both ends
//! (`ip_vs_proto_ah_esp.c`). They have no states of their own.

use super::lane::Own;
use super::probe::{Probe, Step};
use super::verdict::{DropReason, Verdict};
use super::{Director, Passage, serve, stack};
use crate::conn::Direction;
use crate::lvs::tuple::Tuple;
use crate::lvs::{Endpoint, Flow, Protocol};

/// The port of the key exchange (RFC 7296 section 2).
const IKE_PORT: u16 = 500;
/// Protocol numbers of ESP and AH (RFC 4303, RFC 4302).
const ESP: u8 = 50;
const AH: u8 = 51;

/// Is it an IPsec packet?
pub(super) fn is_ipsec(protocol: u8) -> bool {
    matches!(protocol, ESP | AH)
}

impl Director {
    /// An IPsec packet: it goes where its key exchange went, or it is not ours.
    pub(super) fn follow_ike<P: Probe>(
        &self,
        p: &mut Passage<'_, '_, P>,
        own: &mut Own,
    ) -> Verdict {
        let flow = Flow {
            protocol: Protocol::UDP,
            source: Endpoint::new(p.packet.source(), IKE_PORT),
            target: Endpoint::new(p.packet.target(), IKE_PORT),
        };
        let found = self.table().find(&Tuple::from(flow));
        let found = found.filter(|(conn, _)| !conn.is_gone());
        let Some((conn, direction)) = found.and_then(|found| self.still_alive(found, p)) else {
            return stack::answer(p, own);
        };
        if direction != Direction::Out && !serve::has_server(&conn) {
            return Verdict::Drop(DropReason::RealServerGone);
        }
        if P::ON {
            p.probe.step(Step::Found {
                conn: &conn,
                direction,
            });
        }
        serve::count(&conn, direction, p.packet.ip_len(), own.worker);
        conn.touch(p.now);
        serve::carry(&conn, direction, p, own)
    }
}
