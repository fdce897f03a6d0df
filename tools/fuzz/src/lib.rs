//! What the fuzz targets, the properties and the short fuzz run of CI share: a director in memory that
//! is driven by a tape of bytes, or by what somebody writes. `tests/props.rs` takes this folder in as a
//! module, so that the same drivers run on a stable toolchain.

pub mod drive;
pub mod frames;
pub mod guests;
pub mod tape;
pub mod texts;
pub mod world;
