//! What a route does: words of the path and a body in, a Request to the control plane, its Reply out.
//! Everything is read and judged before anything is asked for, so what is wrong changes nothing.

use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;

use super::answer::{self, Applied, Done, EachDone, Fault};
use super::routes::{Act, ROUTES, Route};
use super::{Api, examples, openapi};
use crate::config::codec::{self, REQUEST_BYTES_MAX};
use crate::config::command::{State, StatusRow};
use crate::config::file::TEXT_BYTES_MAX;
use crate::config::plan::{self, Wanted};
use crate::config::rules::words_of;
use crate::config::words::NumbersOnly;
use crate::config::{Command, Listing, Query, Reply, Request, proc};
use crate::lvs::ServiceKey;

/// How often a plan is made again when somebody else has changed the director meanwhile.
const TRIES: usize = 3;

/// What problems call the body of a request.
const BODY: &str = "body";

/// A route that was asked for, and the words that its path left open.
pub(super) struct Call {
    pub route: &'static Route,
    pub words: Vec<String>,
}

type Answer = Result<Response, Fault>;

/// Does what was asked for.
pub(super) async fn act(api: &Api, call: Call, request: HttpRequest) -> Response {
    let answer = attempt(api, &call, request).await;
    answer.unwrap_or_else(|fault| fault.into_answer(&api.counts))
}

async fn attempt(api: &Api, call: &Call, request: HttpRequest) -> Answer {
    let word = call.words.first().map_or("", String::as_str);
    let takes_dry_run = matches!(call.route.act, Act::Do | Act::Each | Act::Apply);
    let dry_run = read_words(request.uri().query().unwrap_or(""), takes_dry_run)?;
    match &call.route.act {
        Act::Ask(query) => list(api, query.clone()).await,
        Act::AskService => {
            let key: ServiceKey = word
                .parse()
                .map_err(|wrong| Fault::wrong_word(said(&wrong)))?;
            list(api, Query::Services(Some(key))).await
        }
        Act::Do => do_one(api, read_json(request).await?, dry_run).await,
        Act::Each => do_each(api, read_json(request).await?, dry_run).await,
        Act::Apply => apply(api, &read_text(request).await?, dry_run).await,
        Act::Stop => match ask(api, Request::Stop).await? {
            Reply::Done => Ok(answer::json(&Done { done: true })),
            other => Err(fault(other)),
        },
        Act::Rules => Ok(answer::text(rules(&state(api).await?))),
        Act::Story => story(api).await,
        Act::ProcFiles => Ok(answer::json(&proc::FILES)),
        Act::ProcText => proc_text(api, word).await,
        Act::OpenApi => Ok(answer::json(&openapi::document())),
        Act::Index => Ok(answer::text(index())),
        Act::Schedulers => Ok(answer::json(&api.schedulers)),
        Act::Examples => Ok(answer::json(&examples::commands())),
    }
}

fn said(wrong: &impl ToString) -> String {
    wrong.to_string()
}

/// What stands behind the question mark: `dry-run`, where it may.
fn read_words(words: &str, takes_dry_run: bool) -> Result<bool, Fault> {
    let mut dry_run = false;
    for word in words.split('&').filter(|word| !word.is_empty()) {
        dry_run = match word {
            "dry-run" | "dry-run=" | "dry-run=true" if takes_dry_run => true,
            "dry-run=false" if takes_dry_run => false,
            _ => {
                let word: String = word.chars().take(60).collect();
                let may = match takes_dry_run {
                    true => "only dry-run may stand behind the question mark",
                    false => "nothing may stand behind the question mark here",
                };
                return Err(Fault::wrong_word(format!("`{word}`: {may}")));
            }
        };
    }
    Ok(dry_run)
}

async fn read_body(request: HttpRequest, max: usize) -> Result<Vec<u8>, Fault> {
    let body: Body = request.into_body();
    // Who says beforehand that it is too long need not send it.
    if body.size_hint().lower() > max as u64 {
        return Err(Fault::too_long(max));
    }
    match Limited::new(body, max).collect().await {
        Ok(whole) => Ok(whole.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::too_long(max)),
        Err(error) => Err(Fault::broken_off(&error.to_string())),
    }
}

async fn read_json<T: DeserializeOwned>(request: HttpRequest) -> Result<T, Fault> {
    let bytes = read_body(request, REQUEST_BYTES_MAX).await?;
    let read = serde_json::from_slice(&bytes);
    read.map_err(|error| Fault::wrong_json(codec::place(&bytes, &error)))
}

async fn read_text(request: HttpRequest) -> Result<String, Fault> {
    let bytes = read_body(request, TEXT_BYTES_MAX).await?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        Fault::wrong_json(codec::place_of(
            error.as_bytes(),
            good,
            "this byte is not UTF-8 text",
        ))
    })
}

async fn ask(api: &Api, request: Request) -> Result<Reply, Fault> {
    let reply = (api.submit)(request).await;
    reply.ok_or_else(Fault::stopping)
}

/// A reply that is not the one that was to come.
fn fault(reply: Reply) -> Fault {
    match reply {
        Reply::Refused(refusal) => Fault::refused(refusal, None),
        Reply::BadRequest(sentence) => Fault::bad_request(sentence),
        Reply::Late(sentence) => Fault::late(sentence),
        Reply::Done | Reply::Each(_) | Reply::Listing(_) => Fault::nonsense(),
    }
}

async fn question(api: &Api, query: Query) -> Result<Listing, Fault> {
    match ask(api, Request::Ask(query)).await? {
        Reply::Listing(listing) => Ok(listing),
        other => Err(fault(other)),
    }
}

async fn list(api: &Api, query: Query) -> Answer {
    Ok(answer::listing(&question(api, query).await?, &api.counts))
}

async fn do_one(api: &Api, command: Command, dry_run: bool) -> Answer {
    if dry_run {
        return match refusal_of(api, command).await? {
            None => Ok(answer::json(&Done { done: false })),
            Some(fault) => Err(fault),
        };
    }
    match ask(api, Request::Do(command.clone())).await? {
        Reply::Done => Ok(answer::json(&Done { done: true })),
        // Which one of a batch it was is found by asking again, changing nothing.
        Reply::Refused(refusal) => {
            let again = refusal_of(api, command).await?;
            Err(again.unwrap_or_else(|| Fault::refused(refusal, None)))
        }
        other => Err(fault(other)),
    }
}

/// Would it be refused? Of a batch, the first of its commands that would be.
async fn refusal_of(api: &Api, command: Command) -> Result<Option<Fault>, Fault> {
    let (commands, is_batch) = match command {
        Command::Batch(commands) => (commands, true),
        command => (vec![command], false),
    };
    let dry_run = true;
    match ask(api, Request::Each { commands, dry_run }).await? {
        Reply::Each(refusals) => {
            let mut refusals = refusals.into_iter().enumerate();
            let first = refusals.find_map(|(at, refusal)| refusal.map(|refusal| (at, refusal)));
            Ok(first.map(|(at, refusal)| Fault::refused(refusal, is_batch.then_some(at))))
        }
        other => Err(fault(other)),
    }
}

async fn do_each(api: &Api, commands: Vec<Command>, dry_run: bool) -> Answer {
    match ask(api, Request::Each { commands, dry_run }).await? {
        Reply::Each(refused) => Ok(answer::json(&EachDone {
            done: !dry_run,
            refused,
        })),
        other => Err(fault(other)),
    }
}

async fn apply(api: &Api, text: &str, dry_run: bool) -> Answer {
    let wanted = match plan::is_rules(text) {
        true => plan::of_rules(BODY, text, &NumbersOnly),
        false => plan::of_toml(BODY, text, api.schedulers),
    };
    let wanted = wanted.map_err(|wrong| match wrong {
        plan::Fault::Wrong(problems) => Fault::wrong_text(&problems),
        plan::Fault::NoState(sentence) => Fault::no_state(sentence),
    })?;
    let needs_restart = match &wanted.config {
        Some(config) => plan::needs_restart(config, &status(api).await?),
        None => Vec::new(),
    };
    let changes = bring_about(api, &wanted, dry_run).await?;
    Ok(answer::json(&Applied {
        done: !dry_run,
        changes: changes.iter().map(words_of).collect(),
        needs_restart,
    }))
}

/// Has the changes done, all or none; made anew when somebody else came between.
async fn bring_about(api: &Api, wanted: &Wanted, dry_run: bool) -> Result<Vec<Command>, Fault> {
    let mut tries = 1;
    loop {
        let changes = wanted.desired.changes_from(&state(api).await?);
        if changes.is_empty() {
            return Ok(changes);
        }
        let batch = Command::Batch(changes.clone());
        let refused = match dry_run {
            true => refusal_of(api, batch).await?,
            false => match ask(api, Request::Do(batch)).await? {
                Reply::Done => None,
                Reply::Refused(refusal) => Some(Fault::refused(refusal, None)),
                other => return Err(fault(other)),
            },
        };
        match refused {
            None => return Ok(changes),
            Some(fault) if tries == TRIES => return Err(fault),
            Some(_) => tries += 1,
        }
    }
}

async fn state(api: &Api) -> Result<State, Fault> {
    match question(api, Query::State).await? {
        Listing::State(state) => Ok(*state),
        _ => Err(Fault::nonsense()),
    }
}

async fn status(api: &Api) -> Result<StatusRow, Fault> {
    match question(api, Query::Status).await? {
        Listing::Status(status) => Ok(status),
        _ => Err(Fault::nonsense()),
    }
}

/// Nothing is left out that a line can say, thresholds included.
fn rules(state: &State) -> String {
    let mut text = String::new();
    for (spec, reals) in &state.services {
        let service = spec.key;
        let add = |real: &_| Command::AddReal {
            service,
            real: *real,
        };
        let adds = std::iter::once(Command::AddService(spec.clone())).chain(reals.iter().map(add));
        for command in adds {
            text += &words_of(&command);
            text.push('\n');
        }
    }
    text
}

async fn story(api: &Api) -> Answer {
    match question(api, Query::Account).await? {
        Listing::Account(account) => {
            let lines = account.story.iter();
            Ok(answer::text(
                lines.map(|line| format!("{line}\n")).collect(),
            ))
        }
        _ => Err(Fault::nonsense()),
    }
}

async fn proc_text(api: &Api, file: &str) -> Answer {
    let query =
        proc::question(file).map_err(|_| Fault::no_such_path(&format!("/v1/proc/{file}")))?;
    let listing = question(api, query).await?;
    let text = proc::text(file, &listing);
    text.map(answer::text).ok_or_else(Fault::nonsense)
}

fn index() -> String {
    let lines = ROUTES.iter().map(|route| {
        let (method, path, summary) = (route.method.name(), route.path, route.summary);
        format!("{method:<5} {path:<24} {summary}\n")
    });
    lines.collect()
}
