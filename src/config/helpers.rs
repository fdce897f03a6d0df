//! `[ftp]` of ulvs.toml: connections with a helper that follows FTP. As the kernel's module `ip_vs_ftp`,
//! it is there when it is asked for.

use std::collections::BTreeMap;

use super::command::{Command, FTP_PORTS_MAX};
use super::file::once;
use super::problem::Problems;
use super::section::Section;

const KEYS: &[&str] = &["ports"];
/// The port of the control connection (RFC 959), and the module's default.
const FTP_PORT: u16 = 21;

/// Reads `[ftp]`; `None` if there is none.
pub(super) fn read(top: &Section<'_>, problems: &mut Problems) -> Option<Command> {
    let section = top.table("ftp", "[ftp]", KEYS, problems)?;
    if !section.has("ports") {
        return Some(Command::SetFtpPorts(vec![FTP_PORT]));
    }
    let (mut ports, mut seen) = (Vec::new(), BTreeMap::new());
    for word in section.texts("ports", problems) {
        match word.text.parse::<u16>().ok().filter(|port| *port != 0) {
            Some(port) => {
                once(&mut seen, port, &word.span, "port", problems);
                ports.push(port);
            }
            None => {
                problems.add(
                    word.span,
                    format!("{:?} is no port", word.text),
                    "1 to 65535",
                );
            }
        }
    }
    if ports.len() > FTP_PORTS_MAX {
        let what = format!("more than {FTP_PORTS_MAX} ports");
        problems.add(section.key_span("ports"), what, "");
    }
    Some(Command::SetFtpPorts(ports))
}
