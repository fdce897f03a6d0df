//! `ulvs run`, before anything runs: the files that were named become a Config, or a message that says
//! what is wrong with them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::cli::options::RunArgs;
use crate::config::command::Command;
use crate::config::file::{Config, NicKind, TEXT_BYTES_MAX, parse};
use crate::config::rules;
use crate::config::words::Resolver;
use crate::sched;

/// Reads what `args` name. What was said on the command line goes before what the file says.
///
/// # Errors
/// A message for people: the file cannot be read, or all that is wrong in it.
pub fn load(args: &RunArgs, names: &dyn Resolver) -> Result<Config, String> {
    let mut config = match &args.config {
        Some(path) => {
            let text = read(path)?;
            let name = path.display().to_string();
            parse(&name, &text, &sched::NAMES).map_err(|problems| problems.to_string())?
        }
        None => from_words(args, names)?,
    };
    if let Some(nic) = args.nic {
        config.director.nic = nic;
    }
    if let Some(workers) = args.workers {
        config.director.workers = usize::from(workers);
    }
    if let Some(way) = args.keep_kernel_off {
        config.director.keep_kernel_off = way;
    }
    if args.control.is_some() {
        config.director.control.clone_from(&args.control);
    }
    Ok(config)
}

fn from_words(args: &RunArgs, names: &dyn Resolver) -> Result<Config, String> {
    let rules = match &args.rules {
        Some(path) => {
            let text = read(path)?;
            let name = path.display().to_string();
            rules::parse(&name, &text, names).map_err(|problems| problems.to_string())?
        }
        None => Vec::new(),
    };
    match (&args.public, &args.private) {
        (Some(public), Some(private)) => Ok(Config::minimal(public, private, rules)),
        _ if args.nic == Some(NicKind::Tun) => Ok(Config {
            services: rules,
            ..Config::default()
        }),
        _ => Err("give --config FILE, or --public INTERFACE and --private INTERFACE".to_string()),
    }
}

/// A text of bounded length.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let file = match path.as_os_str() == "-" {
        true => File::open("/dev/stdin"),
        false => File::open(path),
    };
    let file = file.map_err(|error| format!("{name}: {error}"))?;
    let read = file.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(format!("{name}: longer than {TEXT_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = good.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        format!("{name}:{line}:{column}: this byte is not UTF-8 text")
    })
}

/// What `--check` says of a good configuration.
pub fn summary(config: &Config) -> String {
    let count = |kind: fn(&Command) -> bool| config.services.iter().filter(|one| kind(one)).count();
    let services = count(|one| matches!(one, Command::AddService(_)));
    let reals = count(|one| matches!(one, Command::AddReal { .. }));
    format!(
        "fine: {}, {}, {} over {}, {}",
        counted(services, "virtual service"),
        counted(reals, "real server"),
        counted(config.ports.len(), "interface"),
        config.director.nic.name(),
        counted(config.director.workers, "worker"),
    )
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::words::NumbersOnly;
    use std::path::PathBuf;

    fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ulvs-run-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let args = RunArgs {
            config: Some("tests/config/good/everything.toml".into()),
            nic: Some(NicKind::Tun),
            workers: Some(7),
            ..RunArgs::default()
        };
        let config = load(&args, &NumbersOnly).unwrap();
        assert_eq!(
            (config.director.nic, config.director.workers),
            (NicKind::Tun, 7)
        );
        let expected = "fine: 5 virtual services, 3 real servers, 2 interfaces over tun, 7 workers";
        assert_eq!(summary(&config), expected);
    }

    #[test]
    fn rules_and_two_interfaces_are_enough() {
        let rules = scratch("rules", b"-A -t 1.2.3.4:80\n");
        let args = RunArgs {
            public: Some("eth0".into()),
            private: Some("eth1".into()),
            rules: Some(rules.clone()),
            ..RunArgs::default()
        };
        let config = load(&args, &NumbersOnly).unwrap();
        assert_eq!((config.services.len(), config.ports.len()), (1, 2));
        std::fs::remove_file(rules).unwrap();
        assert!(load(&RunArgs::default(), &NumbersOnly).is_err());
    }

    #[test]
    fn a_file_that_is_no_text_is_refused_with_its_place() {
        let path = scratch("latin1", b"# ok\nx = \"\xfc\"\n");
        let args = RunArgs {
            config: Some(path.clone()),
            ..RunArgs::default()
        };
        let message = load(&args, &NumbersOnly).unwrap_err();
        assert!(
            message.ends_with(":2:6: this byte is not UTF-8 text"),
            "{message}"
        );
        std::fs::remove_file(path).unwrap();
        let message = load(&args, &NumbersOnly).unwrap_err();
        assert!(message.contains("No such file"), "{message}");
    }
}
