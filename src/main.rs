//! The one binary: picks a program by its own name or by the first word.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use ulvs::cli::adm::{self, Extra, Outcome};
use ulvs::cli::names::SystemNames;
use ulvs::cli::options::{Program, RunArgs, program_of};
use ulvs::cli::{apply, bench, client, exec, lab, pages, proc, run, sim, trace, tune};
use ulvs::{daemon, web};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let argv: Vec<String> = words
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let called = argv.first().map_or("", String::as_str);
    match called.rsplit('/').next().unwrap_or("") {
        "ipvsadm" => print(&adm::run(&argv, &SystemNames::load())),
        "ipvsadm-save" => print(&adm::run_save(&argv, &SystemNames::load())),
        "ipvsadm-restore" => print(&adm::run_restore(&SystemNames::load())),
        _ => by_first_word(&words, &argv),
    }
}

/// `adm` and `lab` read their own words, `--` included; all others are read in one place.
fn by_first_word(words: &[OsString], argv: &[String]) -> ExitCode {
    match argv.get(1).map(String::as_str) {
        Some("adm") => ipvsadm(&argv[2..]),
        Some("lab") => lab::run(words[2..].to_vec()),
        _ => match program_of(argv) {
            Program::Run(args) => start(&args),
            Program::Apply(args) => print(&apply::run(&args, &SystemNames::load())),
            Program::Diff(args) => print(&apply::run_diff(&args, &SystemNames::load())),
            Program::Exec(args) => exec::run(&args),
            Program::Trace(args) => trace::run(&args),
            Program::Completions(args) => print(&pages::completions(&args)),
            Program::Man(args) => print(&pages::man(&args)),
            Program::Openapi => openapi(),
            Program::Sim(args) => sim::run(&args),
            Program::Adm { words } => ipvsadm(&words),
            Program::Proc { file } => print(&proc::run(file.as_deref())),
            Program::Tune { words } => print(&tune::run(&words)),
            Program::Bench(args) => bench::run(&args),
            Program::Lab { words } => lab::run(words),
        },
    }
}

fn openapi() -> ExitCode {
    let text = serde_json::to_string_pretty(&web::document());
    let stdout = text.expect("a document has string keys only") + "\n";
    print(&Outcome {
        stdout,
        ..Outcome::default()
    })
}

fn ipvsadm(words: &[String]) -> ExitCode {
    let mut argv = vec!["ulvs adm".to_string()];
    argv.extend_from_slice(words);
    let (argv, extra) = Extra::take(&argv);
    print(&adm::run_own(&argv, &SystemNames::load(), extra))
}

fn start(args: &RunArgs) -> ExitCode {
    match run::load(args, &SystemNames::load()) {
        Ok(config) if args.check => match daemon::check(&config) {
            Ok(()) => {
                println!("{}", run::summary(&config));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Ok(config) => {
            let control = config.director.control.clone();
            let again = args.clone();
            let reload = move || run::load(&again, &SystemNames::load());
            let options = daemon::Options {
                control: control.unwrap_or_else(client::path).into(),
                busy_poll: args.busy_poll,
                reload: Some(Arc::new(reload)),
            };
            match daemon::run(&config, &options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error.to_string()),
            }
        }
        Err(message) => fail(&message),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("ulvs: {}", message.trim_end());
    ExitCode::FAILURE
}

/// Prints what a call said. A reader that has gone away is no error of ours.
fn print(outcome: &Outcome) -> ExitCode {
    let _ = std::io::stdout().write_all(outcome.stdout.as_bytes());
    let _ = std::io::stderr().write_all(outcome.stderr.as_bytes());
    ExitCode::from(outcome.status)
}
