//! `ulvs completions` and `ulvs man`: what shells and man(1) read about our words, made from the same
//! tables that read them.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::adm::Outcome;
use super::options::Ulvs;
use super::{about, help};

/// Section of the manual: commands of who runs the system, as ipvsadm(8).
const SECTION: &str = "8";
/// The program that ours can be called as.
const IPVSADM: &str = "ipvsadm";
/// Status when there is no such page.
const FAILED: u8 = 2;

/// Prints completions.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
    /// Of which program: ulvs, or ipvsadm where that is a link to it
    #[arg(value_name = "PROGRAM", value_parser = ["ulvs", IPVSADM], default_value = "ulvs")]
    pub program: String,
}

/// Prints a page of the manual.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Of one program of ulvs, like adm or run; of ipvsadm; if left out, of ulvs itself
    #[arg(value_name = "PROGRAM")]
    pub program: Option<String>,
}

/// `ulvs` as it is described: with the words of ipvsadm where it reads them itself.
fn described() -> clap::Command {
    Ulvs::command().mut_subcommand("adm", |_| about::command("adm", true))
}

/// `ulvs completions SHELL [PROGRAM]`
pub fn completions(args: &CompletionsArgs) -> Outcome {
    let mut command = match args.program.as_str() {
        IPVSADM => about::command(IPVSADM, false),
        _ => described(),
    };
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, args.program.as_str(), &mut text);
    printed(&text)
}

/// `ulvs man [PROGRAM]`
pub fn man(args: &ManArgs) -> Outcome {
    let mut ulvs = described();
    ulvs.build();
    // The words of ipvsadm say better how they go together than a list of them all does.
    let (mut usage, name) = (None, args.program.as_deref());
    if let Some("adm" | IPVSADM) = name {
        usage = Some(help::text(if name == Some(IPVSADM) {
            IPVSADM
        } else {
            "ulvs adm"
        }));
    }
    let command = match name {
        None | Some("ulvs") => Some(ulvs),
        Some(IPVSADM) => Some(about::command(IPVSADM, false)),
        Some(name) => ulvs.find_subcommand(name).cloned(),
    };
    let Some(command) = command else {
        let name = args.program.as_deref().unwrap_or_default();
        return Outcome {
            stderr: format!("ulvs man: no program {name}; `ulvs -h` names them\n"),
            status: FAILED,
            ..Outcome::default()
        };
    };
    let page = Man::new(command).section(SECTION).manual("ulvs");
    let text = match usage {
        None => whole(&page),
        Some(usage) => with_usage(&page, &usage),
    };
    printed(&text.expect("a page fits into memory"))
}

fn whole(page: &Man) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    Ok(text)
}

/// A page that shows a usage as it stands, and then each option by itself.
fn with_usage(page: &Man, usage: &str) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    let usage = usage.replace('\\', "\\e").replace('-', "\\-");
    text.extend_from_slice(b".SH SYNOPSIS\n.nf\n");
    for line in usage.lines() {
        // What begins with a dot or a quote would be a request of roff.
        text.extend_from_slice(format!("\\&{line}\n").as_bytes());
    }
    text.extend_from_slice(b".fi\n");
    page.render_options_section(&mut text)?;
    Ok(text)
}

fn printed(text: &[u8]) -> Outcome {
    Outcome {
        stdout: String::from_utf8_lossy(text).into_owned(),
        ..Outcome::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::OPTIONS;
    use clap::ValueEnum;

    fn page(program: Option<&str>) -> Outcome {
        let program = program.map(str::to_string);
        man(&ManArgs { program })
    }

    fn completions_of(shell: Shell, program: &str) -> String {
        let program = program.to_string();
        completions(&CompletionsArgs { shell, program }).stdout
    }

    /// Every row of the table, by its letter and by its long name, and nothing under the name ipvsadm
    /// that ipvsadm does not have.
    #[test]
    fn every_option_is_in_the_completions_and_in_the_man_page() {
        about::command("adm", true).debug_assert();
        described().debug_assert();
        for (program, name) in [("ulvs", "adm"), (IPVSADM, IPVSADM)] {
            let manual = page(Some(name)).stdout.replace('\\', "");
            for (long, letter, _, option) in OPTIONS {
                let there = program == "ulvs" || !option.is_ours();
                let told = manual.contains(&format!("fB--{long}fR"));
                assert_eq!(told, there, "{name}(8): --{long}");
                let told = manual.contains(&format!("fB-{letter}fR"));
                assert_eq!(told, there && letter != '\0', "{name}(8): -{letter}");
                for shell in Shell::value_variants() {
                    let text = completions_of(*shell, program);
                    let (long_word, letter_word) = match shell {
                        Shell::Fish => (format!("-l {long}"), format!("-s {letter}")),
                        _ => (format!("--{long}"), format!("-{letter}")),
                    };
                    assert_eq!(text.contains(&long_word), there, "{shell}: {long_word}");
                    if letter != '\0' && there {
                        assert!(text.contains(&letter_word), "{shell}: {letter_word}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_program_has_its_page() {
        let whole = page(None);
        assert_eq!((whole.status, whole.stderr.as_str()), (0, ""));
        for program in Ulvs::command().get_subcommands() {
            let name = program.get_name();
            let text = whole.stdout.replace('\\', "");
            assert!(text.contains(&format!("ulvs-{name}(8)")), "{name}: {text}");
            let own = page(Some(name));
            assert!(own.stdout.contains(".SH NAME"), "{name}");
        }
        assert_eq!(page(Some("nosuch")).status, FAILED);
    }
}
