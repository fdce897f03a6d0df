//! Peers of Debian's packages, with the configurations that we write for them: haproxy, nginx's stream
//! module, nft. Each balances every service over both real servers in turn.

use std::io;

use super::load::FRAMES_PORT;
use super::peer::{Need, Peer, READY_TIMEOUT, REALS, TCP_PORTS, VIP, find, first_line};
use crate::lab::Lab;
use crate::lab::program::Program;
use crate::lab::topology::Between;

/// Connections that a proxy may have open: two sockets each, and room below 20,000 files.
const CONNECTIONS_MAX: u32 = 9500;
/// Threads or processes of a proxy: both processors of a small machine, as it would be set up there.
const THREADS: u32 = 2;
/// Where Debian has nginx's module for TCP and UDP.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// haproxy in TCP mode.
pub(super) struct Haproxy;

impl Peer for Haproxy {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn about(&self) -> &'static str {
        "haproxy, mode tcp, roundrobin, 2 threads"
    }

    fn needs(&self) -> Vec<Need> {
        vec![Need::Program("haproxy", "haproxy")]
    }

    fn between(&self) -> Between {
        Between::Kernel
    }

    fn has_udp(&self) -> bool {
        false
    }

    fn keeps_connections(&self) -> bool {
        true
    }

    fn start(&self, lab: &mut Lab) -> io::Result<Vec<Program>> {
        let file = lab.folder().join("haproxy.cfg");
        std::fs::write(&file, haproxy_config())?;
        let words = [
            path_of("haproxy")?,
            "-db".to_string(),
            "-f".to_string(),
            file.to_string_lossy().into_owned(),
        ];
        let mut program = lab.start_program("director", &words, None)?;
        program.wait_until_listening(TCP_PORTS[0], READY_TIMEOUT)?;
        Ok(vec![program])
    }

    fn version(&self) -> String {
        first_line("haproxy", "-v")
    }
}

fn haproxy_config() -> String {
    let mut text = format!(
        "global\n  maxconn {CONNECTIONS_MAX}\n  nbthread {THREADS}\n\
         defaults\n  mode tcp\n  maxconn {CONNECTIONS_MAX}\n  balance roundrobin\n\
         \x20 timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n"
    );
    for port in TCP_PORTS {
        text.push_str(&format!(
            "listen port{port}\n  bind {VIP}:{port} backlog 4096\n"
        ));
        for (number, real) in REALS.iter().enumerate() {
            text.push_str(&format!("  server s{number} {real}:{port}\n"));
        }
    }
    text
}

/// nginx with its stream module.
pub(super) struct Nginx;

impl Peer for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn about(&self) -> &'static str {
        "nginx, stream module, 2 workers"
    }

    fn needs(&self) -> Vec<Need> {
        vec![
            Need::Program("nginx", "nginx-light"),
            Need::File(STREAM_MODULE, "libnginx-mod-stream"),
        ]
    }

    fn between(&self) -> Between {
        Between::Kernel
    }

    fn keeps_connections(&self) -> bool {
        true
    }

    fn start(&self, lab: &mut Lab) -> io::Result<Vec<Program>> {
        let folder = lab.folder();
        let file = folder.join("nginx.conf");
        let errors = folder.join("nginx.errors");
        let pid = folder.join("nginx.pid");
        let text = nginx_config(&errors.to_string_lossy(), &pid.to_string_lossy());
        std::fs::write(&file, text)?;
        let words = [
            path_of("nginx")?,
            "-e".to_string(),
            errors.to_string_lossy().into_owned(),
            "-c".to_string(),
            file.to_string_lossy().into_owned(),
        ];
        let mut program = lab.start_program("director", &words, None)?;
        program.wait_until_listening(TCP_PORTS[0], READY_TIMEOUT)?;
        Ok(vec![program])
    }

    fn version(&self) -> String {
        first_line("nginx", "-v")
    }
}

fn nginx_config(errors: &str, pid: &str) -> String {
    let files = CONNECTIONS_MAX * 2 + 500;
    let mut text = format!(
        "load_module {STREAM_MODULE};\nuser root;\ndaemon off;\nworker_processes {THREADS};\n\
         worker_rlimit_nofile {files};\npid {pid};\nerror_log {errors} crit;\n\
         events {{ worker_connections {CONNECTIONS_MAX}; }}\nstream {{\n"
    );
    for port in TCP_PORTS {
        text.push_str(&nginx_service(port, "backlog=4096 reuseport", "600s"));
    }
    text.push_str(&nginx_service(FRAMES_PORT, "udp reuseport", "5s"));
    text.push_str("}\n");
    text
}

fn nginx_service(port: u16, how: &str, timeout: &str) -> String {
    let servers = REALS.map(|real| format!("server {real}:{port}; ")).concat();
    format!(
        "  upstream u{port} {{ {servers}}}\n  server {{ listen {VIP}:{port} {how}; \
         proxy_pass u{port}; proxy_timeout {timeout}; }}\n"
    )
}

/// The kernel's own NAT, told by nft.
pub(super) struct Nft;

impl Peer for Nft {
    fn name(&self) -> &'static str {
        "nft"
    }

    fn about(&self) -> &'static str {
        "nft: dnat by numgen inc, connection tracking"
    }

    fn needs(&self) -> Vec<Need> {
        vec![Need::Program("nft", "nftables")]
    }

    fn between(&self) -> Between {
        Between::Kernel
    }

    fn start(&self, lab: &mut Lab) -> io::Result<Vec<Program>> {
        let file = lab.folder().join("nft.rules");
        std::fs::write(&file, nft_rules())?;
        let words = [
            path_of("nft")?,
            "-f".to_string(),
            file.to_string_lossy().into_owned(),
        ];
        let program = lab.start_program("director", &words, None)?;
        program.finish(READY_TIMEOUT)?;
        Ok(vec![])
    }

    fn version(&self) -> String {
        first_line("nft", "--version")
    }
}

fn nft_rules() -> String {
    let tcp = TCP_PORTS.map(|port| port.to_string()).join(", ");
    let map = REALS.iter().enumerate();
    let map: Vec<String> = map
        .map(|(number, real)| format!("{number} : {real}"))
        .collect();
    let to = format!(
        "dnat to numgen inc mod {} map {{ {} }}",
        REALS.len(),
        map.join(", ")
    );
    format!(
        "table ip balance {{\n  chain incoming {{\n    type nat hook prerouting priority dstnat\n\
         \x20   ip daddr {VIP} tcp dport {{ {tcp} }} {to}\n\
         \x20   ip daddr {VIP} udp dport {FRAMES_PORT} {to}\n  }}\n}}\n"
    )
}

fn path_of(program: &str) -> io::Result<String> {
    let found = find(program).ok_or(io::ErrorKind::NotFound)?;
    Ok(found.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn every_service_has_both_real_servers() {
        for text in [haproxy_config(), nginx_config("e", "p"), nft_rules()] {
            for real in REALS {
                assert!(text.contains(&real.to_string()), "{text}");
            }
            for port in TCP_PORTS {
                assert!(text.contains(&port.to_string()), "{text}");
            }
            assert!(text.contains(&VIP.to_string()));
        }
    }

    /// haproxy itself says that it can read what we write for it. nginx and nft would have to be root,
    /// or open ports: the lab tests have them read theirs.
    #[test]
    fn haproxy_takes_its_configuration() {
        let Some(haproxy) = find("haproxy") else {
            println!("skipped: haproxy reads its configuration: apt-get install haproxy");
            return;
        };
        let file = std::env::temp_dir().join(format!("ulvs-haproxy-{}", std::process::id()));
        std::fs::write(&file, haproxy_config()).unwrap();
        let mut command = Command::new(haproxy);
        let output = command
            .arg("-c")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .output();
        std::fs::remove_file(&file).unwrap();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
    }
}
