//! The program: picks what to do by its first word.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(word) if word == "lab" => ulvs::cli::lab::run(words.collect()),
        _ => {
            eprintln!("usage: ulvs lab …");
            ExitCode::from(2)
        }
    }
}
