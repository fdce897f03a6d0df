//! Floor A: who is talking to whom. Entries, the shared table, each worker's own index in front of it,
//! deadlines, and the state grids. Sees flows and times, never bytes.

pub mod defence;
pub mod direction;
pub mod entry;
pub mod helped;
pub mod index;
pub mod sctp;
pub mod state;
pub mod table;
pub mod tcp;
pub mod template;
pub mod udp;
pub mod wheel;
mod whole;

pub use defence::Defences;
pub use direction::Direction;
pub use entry::{Conn, Opening, StepRules};
pub use helped::{Awaits, Helped, Shift};
pub use index::{Index, Spent};
pub use state::State;
pub use table::{ConnTable, Refused, TableFull};
pub use template::EngineData;
pub use wheel::{Due, Wheel};

#[cfg(test)]
mod tests;
