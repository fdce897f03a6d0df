//! The network of LVS-NAT with file servers. Real addresses are longer texts than one VIP and shorter
//! than the other, since FTP carries them as texts.

use super::*;

/// Where FTP listens.
const FTP_PORT: u16 = 21;
/// Stands for the lab's folder in the words that start a server.
pub const FOLDER: &str = "{folder}";
/// In the lab's folder: the settings that the servers read beside those they are started with. Empty.
pub const SETTINGS_FILE: &str = "vsftpd.conf";

/// The second VIP, whose text is longer than that of any real server.
const LONG_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 2, 3, 201));
const INSIDE: Prefix = Prefix::v4(10, 0, 0, 0, 24);
const GATEWAY: Prefix = Prefix::v4(10, 0, 0, 254, 24);

impl Topology {
    /// LVS-NAT for FTP: each real server starts `program`, Debian's vsftpd, for every client.
    pub fn ftp(program: &str) -> Topology {
        let mut topology = Topology::nat(Path::Frames);
        topology.name = "ftp".to_string();
        topology.port = FTP_PORT;
        topology.alone();
        topology.more_vips = vec![LONG_VIP];
        topology.gateway = GATEWAY;
        topology.ports[1].address = GATEWAY;
        topology.segments[1].net = INSIDE;
        for host in &mut topology.hosts {
            if let Role::RealServer { .. } = host.role {
                let number = host.interfaces[0].mac[5] - 10;
                host.interfaces[0].addresses = vec![Prefix::v4(10, 0, 0, number, 24)];
                host.wiring.routes = vec![route(ANYWHERE, GATEWAY)];
            }
        }
        topology.notes = vec![format!("a second VIP: {LONG_VIP}:{FTP_PORT}")];
        // Without a file of ours it reads the machine's own settings after these.
        topology.server = vec![program.to_string(), format!("{FOLDER}/{SETTINGS_FILE}")];
        topology.server.extend(settings());
        topology
    }
}

/// Anonymous reading of one folder, by whoever started it; one process for each client, which finds the
/// connection at its standard input.
fn settings() -> Vec<String> {
    [
        "listen=NO",
        "listen_ipv6=NO",
        "background=NO",
        "anonymous_enable=YES",
        "no_anon_password=YES",
        "local_enable=NO",
        "write_enable=NO",
        "ftp_username=nobody",
        "anon_world_readable_only=NO",
        "run_as_launching_user=YES",
        "connect_from_port_20=YES",
        "seccomp_sandbox=NO",
        "isolate=NO",
        "isolate_network=NO",
        "xferlog_enable=NO",
        "anon_root={folder}/files",
        "secure_chroot_dir={folder}/empty",
    ]
    .map(|setting| format!("-o{setting}"))
    .to_vec()
}
