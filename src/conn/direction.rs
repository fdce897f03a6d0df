//! Which way a packet of a connection goes.

/// Direction of a packet, as the state tables tell them apart (`IP_VS_DIR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Client to server.
    In = 0,
    /// Server to client.
    Out = 1,
    /// Client to server on a connection whose answers have not been seen: the real server sends them
    /// past the director (LVS-DR, LVS-TUN), so the tables have to guess them.
    InOnly = 2,
}
