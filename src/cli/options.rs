//! What `ulvs` itself takes: its programs and their options. The ipvsadm personality reads its own
//! words (`config::ipvsadm`).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::apply::{ApplyArgs, DiffArgs};
use super::bench::BenchArgs;
use super::exec::ExecArgs;
use super::pages::{CompletionsArgs, ManArgs};
use super::sim::SimArgs;
use crate::cli::trace::TraceArgs;
use crate::config::file::{KeepKernelOff, NicKind};

/// A Linux Virtual Server director that lives entirely in user space.
#[derive(Debug, Parser)]
#[command(name = "ulvs", version, propagate_version = true)]
pub struct Ulvs {
    /// Which program.
    #[command(subcommand)]
    pub program: Program,
}

/// The programs in the one binary.
#[derive(Debug, Subcommand)]
pub enum Program {
    /// Run the director.
    Run(RunArgs),
    /// Speak to a running director in the words of ipvsadm; `ulvs adm -h` tells them.
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Adm {
        /// The words of ipvsadm.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Make a running director what a file says, by the fewest changes, all or none.
    Apply(ApplyArgs),
    /// Show by which changes a running director differs from a file; status 1 if it does.
    Diff(DiffArgs),
    /// Start a program that drives the kernel's IPVS, and have it drive a running director.
    Exec(ExecArgs),
    /// Tell the story of every packet of a capture; nothing runs and nothing is sent.
    Trace(TraceArgs),
    /// Print a file of /proc/net as the kernel's IPVS would show it, from a running director.
    Proc {
        /// Which: ip_vs, ip_vs_conn, ip_vs_conn_sync, ip_vs_stats, ip_vs_stats_percpu or ip_vs_app
        file: Option<String>,
    },
    /// List or set the sysctls of net.ipv4.vs in a running director.
    Tune {
        /// NAME to read one, NAME=VALUE to set it; without any, all are listed
        words: Vec<String>,
    },
    /// Print completions for a shell, of ulvs and of ipvsadm's words.
    Completions(CompletionsArgs),
    /// Print a page of the manual.
    Man(ManArgs),
    /// Print the control API as an OpenAPI 3.1 document; docs/api.md shows it with curl.
    Openapi,
    /// Play a director on a simulated network, led by chance, and watch that its laws hold.
    Sim(SimArgs),
    /// Measure a director, and what one would use instead, in networks of their own.
    Bench(BenchArgs),
    /// Make whole networks in namespaces and try a director in them; `ulvs lab -h` tells more.
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Lab {
        /// The words of the lab.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// What a director starts with: a file, or two interfaces and rules.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Configuration file (docs/configuration.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["public", "private", "rules"])]
    pub config: Option<PathBuf>,
    /// Interface where clients come from
    #[arg(long, value_name = "INTERFACE", requires = "private")]
    pub public: Option<String>,
    /// Interface where the real servers are
    #[arg(long, value_name = "INTERFACE", requires = "public")]
    pub private: Option<String>,
    /// Rules to begin with, as ipvsadm-save prints them
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// How frames are taken and given: packet, mmsg or tun
    #[arg(long, value_name = "BACKEND", value_parser = nic_kind)]
    pub nic: Option<NicKind>,
    /// Threads that forward
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// Path of the control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<String>,
    /// How the kernel's own stack is kept off our frames: auto, nft, tc or none
    #[arg(long, value_name = "WAY", value_parser = keep_kernel_off)]
    pub keep_kernel_off: Option<KeepKernelOff>,
    /// Never sleep: less latency, for a whole core per worker
    #[arg(long)]
    pub busy_poll: bool,
    /// Read everything, apply nothing
    #[arg(long)]
    pub check: bool,
}

/// The program that `argv` asks for. Help, and what is wrong with the words, is printed here and ends
/// the process, as people expect it.
pub fn program_of(argv: &[String]) -> Program {
    Ulvs::parse_from(argv).program
}

fn nic_kind(text: &str) -> Result<NicKind, String> {
    one_of(&NicKind::ALL, text)
}

fn keep_kernel_off(text: &str) -> Result<KeepKernelOff, String> {
    one_of(&KeepKernelOff::ALL, text)
}

fn one_of<T: Copy>(all: &[(&str, T)], text: &str) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        format!("one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvs::tunables::WORKERS_MAX;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Ulvs, clap::Error> {
        Ulvs::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_options_fit_together() {
        Ulvs::command().debug_assert();
        assert_eq!(WORKERS_MAX, 64);
        assert!(parse("ulvs run --config f --nic mmsg --workers 2 --check").is_ok());
        assert!(parse("ulvs run --public a --private b --rules f").is_ok());
        for bad in [
            "ulvs run --config f --rules g",
            "ulvs run --public a",
            "ulvs run --nic pcap",
            "ulvs run --workers 0",
            "ulvs run --workers 65",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_words_of_ipvsadm_pass_through() {
        for words in ["-L -n", "-h", "--version", "-A -t 1.2.3.4:80 -p"] {
            let Ok(Program::Adm { words: got }) =
                parse(&format!("ulvs adm {words}")).map(|ulvs| ulvs.program)
            else {
                panic!("{words}");
            };
            assert_eq!(got.join(" "), words);
        }
    }
}
