//! `ulvs lab ftp`: whole files by all four ways of FTP, through a VIP with a shorter text than the real
//! servers' and one with a longer, with Debian's vsftpd and curl.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::words::Past;
use super::{Seen, finish, network, section, show};
use crate::lab::topology::{Host, SETTINGS_FILE, Topology};
use crate::lab::{self, Director, Lab};
use crate::rng::Rng;

/// Bytes made and compared at once.
const BLOCK: usize = 1 << 20;
/// How long one transfer may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How the client asks for its data: what curl is told. Where it listens itself its address is named.
const WAYS: [(&str, &[&str]); 4] = [
    ("EPSV", &[]),
    ("PASV", &["--disable-epsv"]),
    ("EPRT", &["--ftp-port", CLIENT]),
    ("PORT", &["--ftp-port", CLIENT, "--disable-eprt"]),
];
/// Stands for the client's address.
const CLIENT: &str = "client";

/// The words of this lab.
#[derive(clap::Args)]
pub(super) struct Ftp {
    #[command(flatten)]
    past: Past,
    /// Size of the file in MiB
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=4096))]
    mib: u32,
}

/// One file that was fetched, or was not.
struct Transfer {
    url: String,
    way: &'static str,
    seconds: f64,
    /// What went wrong.
    fault: Option<String>,
}

/// Makes the network, fetches the file in every way, and shows what came of it.
pub(super) fn run(words: &Ftp) -> io::Result<ExitCode> {
    let (vsftpd, curl) = (find("vsftpd")?, find("curl")?);
    let topology = Topology::ftp(&vsftpd.to_string_lossy());
    lab::check_machine(&topology)?;
    let (nat, json) = (words.past.nat(), words.past.run.json);
    let mut lab = Lab::start(topology.clone(), nat.run.name.as_deref())?;
    if !json {
        show(&network(&lab));
    }
    let folder = lab.folder();
    make_files(&folder, words.mib)?;
    lab.start_director(&Director {
        nic: nat.nic.name().to_string(),
        workers: nat.workers,
        scheduler: nat.scheduler.clone(),
        limits: nat.limits.clone(),
        local_node: false,
    })?;
    let client = topology.host("client").and_then(Host::address);
    let client = client.map_or(String::new(), |address| address.to_string());
    let mut transfers = Vec::new();
    for vip in [topology.vip].iter().chain(&topology.more_vips) {
        for (way, how) in WAYS {
            let url = format!("ftp://{vip}/data");
            let how = how
                .iter()
                .map(|word| if *word == CLIENT { &client } else { *word });
            let how: Vec<&str> = how.collect();
            transfers.push(fetch(lab.name(), &folder, &curl, (url, way), &how));
        }
    }
    let seen = Seen::ask(&lab)?;
    let failed = transfers.iter().filter(|one| one.fault.is_some()).count();
    if json {
        let transfers: Vec<Value> = transfers.iter().map(Transfer::document).collect();
        let document = json!({
            "lab": lab.name(), "mib": words.mib, "failed": failed, "transfers": transfers,
            "story": seen.story, "account": seen.account, "services": seen.services,
        });
        show(&format!("{document:#}\n"));
    } else {
        let heading = format!("{} MiB in every way: {failed} failed", words.mib);
        let lines: Vec<String> = transfers.iter().map(|one| one.line(words.mib)).collect();
        show(&section(&heading, &lines));
        show(&seen.text());
    }
    finish(lab, &words.past.run, failed == 0 && seen.balances())
}

impl Transfer {
    fn line(&self, mib: u32) -> String {
        let Transfer { url, way, .. } = self;
        match &self.fault {
            Some(fault) => format!("{url:<24} {way}  {fault}"),
            None => {
                let rate = f64::from(mib) / self.seconds.max(1e-6);
                format!(
                    "{url:<24} {way}  whole, {:.2} s, {rate:.0} MiB/s",
                    self.seconds
                )
            }
        }
    }

    fn document(&self) -> Value {
        json!({ "url": self.url, "way": self.way, "seconds": self.seconds, "fault": self.fault })
    }
}

/// Where a program is, or which package is missing.
fn find(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/bin"]);
    let mut files = folders.map(|folder| Path::new(folder).join(program));
    files.find(|file| file.is_file()).ok_or_else(|| {
        let text = format!("this lab needs {program}: apt install {program}");
        io::Error::new(ErrorKind::NotFound, text)
    })
}

/// The file that is served, the same in every run, and the folder that vsftpd wants to be empty.
fn make_files(folder: &Path, mib: u32) -> io::Result<()> {
    fs::create_dir_all(folder.join("files"))?;
    fs::create_dir_all(folder.join("empty"))?;
    fs::write(folder.join(SETTINGS_FILE), "")?;
    let mut file = File::create(folder.join("files/data"))?;
    let mut rng = Rng::new(0x0066_7470);
    for _ in 0..mib {
        let words = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
        let block: Vec<u8> = words.flatten().take(BLOCK).collect();
        file.write_all(&block)?;
    }
    Ok(())
}

/// Lets curl fetch the file from within the client, and compares.
fn fetch(
    lab: &str,
    folder: &Path,
    curl: &Path,
    (url, way): (String, &'static str),
    how: &[&str],
) -> Transfer {
    let got = folder.join("got");
    let fetched = curl_in_client(lab, &got, curl, &url, how);
    let (seconds, fault) = match fetched {
        Err(error) => (0.0, Some(error.to_string())),
        Ok(seconds) => match same(&folder.join("files/data"), &got) {
            Ok(true) => (seconds, None),
            Ok(false) => (
                seconds,
                Some("what arrived is not what was sent".to_string()),
            ),
            Err(error) => (seconds, Some(error.to_string())),
        },
    };
    // The next one makes it anew, if this one was ever made.
    let _ = fs::remove_file(&got);
    Transfer {
        url,
        way,
        seconds,
        fault,
    }
}

fn curl_in_client(lab: &str, got: &Path, curl: &Path, url: &str, how: &[&str]) -> io::Result<f64> {
    let seconds = PATIENCE.as_secs().to_string();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["lab", "exec", "--lab", lab, "client", "--"])
        .arg(curl);
    command.args(["-sS", "--max-time", &seconds, "-w", "%{time_total}", "-o"]);
    command.arg(got).args(how).arg(url);
    let done = command.stdin(Stdio::null()).output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
        return Err(io::Error::other(said));
    }
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.trim().parse().map_err(io::Error::other)
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
    loop {
        left.clear();
        right.clear();
        let limit = BLOCK as u64;
        let count = (&mut one).take(limit).read_to_end(&mut left)?;
        (&mut other).take(limit).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}
