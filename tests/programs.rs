//! Debian's own programs, unchanged, on top of a director: `ipvsadm` and `keepalived` by `ulvs exec`,
//! `ldirectord` by a link named ipvsadm. Each test has a lab of its own; every process ends with it.

#[path = "programs/both.rs"]
mod both;
#[path = "programs/ipvsadm.rs"]
mod ipvsadm;
#[path = "programs/keepalived.rs"]
mod keepalived;
#[path = "programs/ldirectord.rs"]
mod ldirectord;
#[path = "programs/site.rs"]
mod site;
