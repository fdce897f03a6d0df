//! What the fuzz targets, the properties and the short fuzz run of CI share: a director in memory that
//! is driven by a tape of bytes. `tests/props.rs` takes this folder in as a module, so that the same
//! driver runs on a stable toolchain.

pub mod drive;
pub mod frames;
pub mod guests;
pub mod tape;
pub mod world;
