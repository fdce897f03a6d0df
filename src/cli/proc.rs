//! `ulvs proc`: prints a text of `/proc/net/ip_vs*` (`config::proc`) from a running director.

use crate::cli::adm::Outcome;
use crate::cli::client::{self, Client};
pub use crate::config::proc::FILES;
use crate::config::{Reply, Request, proc};

/// Status when there is no such file, or nobody to ask.
const FAILED: u8 = 2;

/// `ulvs proc [FILE]`: asks the daemon of this user. Without a file it names those there are.
pub fn run(file: Option<&str>) -> Outcome {
    let Some(file) = file else {
        return Outcome {
            stdout: FILES.map(|name| format!("{name}\n")).concat(),
            ..Outcome::default()
        };
    };
    let path = client::path();
    let mut client = None;
    let text = text(file, &mut |request| {
        if client.is_none() {
            let connected = Client::connect(&path);
            client = Some(connected.map_err(|error| format!("no director at {path}: {error}"))?);
        }
        let client = client.as_mut().expect("it has just been made");
        client.ask(&request)
    });
    match text {
        Ok(stdout) => Outcome {
            stdout,
            ..Outcome::default()
        },
        Err(sentence) => Outcome {
            stderr: format!("ulvs proc: {sentence}\n"),
            status: FAILED,
            ..Outcome::default()
        },
    }
}

/// The text of this file; its name may be the whole path.
///
/// # Errors
/// A sentence: there is no such file, or the daemon does not answer.
pub fn text(
    file: &str,
    ask: &mut dyn FnMut(Request) -> Result<Reply, String>,
) -> Result<String, String> {
    match ask(Request::Ask(proc::question(file)?))? {
        Reply::Listing(listing) => {
            let text = proc::text(file, &listing);
            text.ok_or_else(|| "the daemon answered something else than was asked".to_string())
        }
        Reply::BadRequest(sentence) | Reply::Late(sentence) => Err(sentence),
        other => Err(format!("the daemon answered something else: {other:?}")),
    }
}
