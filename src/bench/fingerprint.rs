//! Which machine and which programs: what a stranger must know to judge a figure, and to see that two
//! files are not from the same place.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::noise::processors;

/// Which machine and which programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// When it began, in seconds since 1970.
    pub started_unix_s: u64,
    /// Version of ulvs.
    pub ulvs: String,
    /// Was ulvs built with optimisation?
    pub optimised: bool,
    /// Kernel release.
    pub kernel: String,
    /// What the processor calls itself.
    pub processor: String,
    /// Processors that we may use.
    pub processors: usize,
    /// Is this a guest of a hypervisor?
    pub guest: bool,
    /// Memory in mebibytes.
    pub memory_mib: u64,
    /// What the kernel does against the processor's weaknesses, where that costs time.
    pub mitigations: Vec<String>,
    /// How the processors' clocks are governed, if they are.
    pub governor: String,
    /// Load average at the beginning, of one minute.
    pub load: f64,
    /// How many flows connection tracking may hold here.
    pub conntrack_max: Option<u64>,
}

impl Fingerprint {
    /// Of this machine, now.
    pub fn take() -> Fingerprint {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map_or("", |(_, value)| value.trim())
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Fingerprint {
            started_unix_s: since.map_or(0, |time| time.as_secs()),
            ulvs: env!("CARGO_PKG_VERSION").to_string(),
            optimised: !cfg!(debug_assertions),
            kernel: read("/proc/sys/kernel/osrelease"),
            processor: field("model name").to_string(),
            processors: processors(),
            guest: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            memory_mib: memory_mib(&read("/proc/meminfo")),
            mitigations: mitigations(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            load: first_number(&read("/proc/loadavg")).unwrap_or(0.0),
            conntrack_max: read("/proc/sys/net/netfilter/nf_conntrack_max")
                .parse()
                .ok(),
        }
    }

    /// The lines that tables and reports begin with.
    pub fn lines(&self) -> Vec<(String, String)> {
        let build = match self.optimised {
            true => "built for release",
            false => "built WITHOUT optimisation: its figures say nothing",
        };
        let guest = if self.guest {
            ", a virtual machine"
        } else {
            ""
        };
        let mut lines = vec![
            ("ulvs", format!("{}, {build}", self.ulvs)),
            ("kernel", self.kernel.clone()),
            (
                "processor",
                format!("{} × {}{guest}", self.processors, self.processor),
            ),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("load at the beginning", format!("{:.2}", self.load)),
        ];
        if !self.governor.is_empty() {
            lines.push(("clock governor", self.governor.clone()));
        }
        if !self.mitigations.is_empty() {
            lines.push(("mitigations", self.mitigations.join("; ")));
        }
        let owned = lines
            .into_iter()
            .map(|(name, text)| (name.to_string(), text));
        owned.collect()
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_string()
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

fn memory_mib(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(first_number)
        .map_or(0, |kib| kib as u64 / 1024)
}

fn mitigations() -> Vec<String> {
    let folder = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    let mut lines: Vec<String> = folder
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            let what = text.trim().strip_prefix("Mitigation: ")?.to_string();
            Some(format!("{}: {what}", entry.file_name().to_string_lossy()))
        })
        .collect();
    lines.sort();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_one() {
        let found = Fingerprint::take();
        assert!(found.processors >= 1 && found.memory_mib > 0 && !found.kernel.is_empty());
        assert!(found.started_unix_s > 1_700_000_000);
        assert_eq!(memory_mib("MemTotal:  2048 kB\n"), 2);
        let text: String = found
            .lines()
            .iter()
            .map(|(_, text)| text.as_str())
            .collect();
        assert_eq!(text.contains("WITHOUT"), cfg!(debug_assertions));
    }
}
