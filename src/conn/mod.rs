//! Who is talking to whom: the states of connections, and when they end.

pub mod direction;
pub mod sctp;
pub mod state;
pub mod tcp;
pub mod udp;

pub use direction::Direction;
pub use state::State;
