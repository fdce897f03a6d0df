//! Answers: what the director says becomes a status and JSON. Whatever is wrong is told in one form,
//! with its place where it has one, and nothing was changed then unless the sentence says otherwise.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::DoorCounts;
use crate::config::codec::{Place, REPLY_BYTES_MAX};
use crate::config::problem::Problems;
use crate::config::{Listing, Refusal};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What became of a change.
#[derive(Serialize, JsonSchema)]
pub(super) struct Done {
    /// True: it is in force in every worker. False: it was a dry run, and could be done.
    pub done: bool,
}

/// What became of each change, in order.
#[derive(Serialize, JsonSchema)]
pub(super) struct EachDone {
    /// True: those that were not refused are in force in every worker. False: it was a dry run.
    pub done: bool,
    /// Null for each that was not refused.
    pub refused: Vec<Option<Refusal>>,
}

/// What became of a configuration.
#[derive(Serialize, JsonSchema)]
pub(super) struct Applied {
    /// True: the director is what the text says. False: it was a dry run.
    pub done: bool,
    /// The changes, in words that do the same when they are typed.
    pub changes: Vec<String>,
    /// What the text says otherwise and only a start can bring into force.
    pub needs_restart: Vec<String>,
}

/// What went wrong.
#[derive(Serialize, JsonSchema)]
pub(super) struct Wrong {
    error: Fault,
}

/// What went wrong, for programs and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct Fault {
    #[serde(skip)]
    status: StatusCode,
    /// One word, for programs: what the director refused, or what was wrong with the request.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Where in the body, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Which character of the line, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// The text from there on, cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<Box<str>>,
    /// Which command of a batch, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<u32>,
    /// All that is wrong with a configuration, each place underlined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<str>>,
}

impl Fault {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Fault {
        Fault {
            status,
            code: code.to_string(),
            message: message.into(),
            ..Fault::default()
        }
    }

    /// There is no such route.
    pub fn no_such_path(path: &str) -> Fault {
        let path: String = path.chars().take(80).collect();
        let message = format!("there is no {path}; GET / tells what there is");
        Fault::new(StatusCode::NOT_FOUND, "no-such-path", message)
    }

    /// There is this path, but not for this.
    pub fn wrong_method(method: &str) -> Fault {
        let method: String = method.chars().take(20).collect();
        let message = format!("{method} is not for this path; GET / tells what is");
        Fault::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", message)
    }

    /// A word of the path or behind its question mark is wrong.
    pub fn wrong_word(message: impl Into<String>) -> Fault {
        Fault::new(StatusCode::BAD_REQUEST, "wrong-word", message)
    }

    /// The body is longer than `max` bytes.
    pub fn too_long(max: usize) -> Fault {
        let message = format!("the body is longer than {max} bytes");
        Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", message)
    }

    /// The body came to no end.
    pub fn broken_off(why: &str) -> Fault {
        let message = format!("the body cannot be read: {why}");
        Fault::new(StatusCode::BAD_REQUEST, "broken-off", message)
    }

    /// The body is not the JSON that was to come.
    pub fn wrong_json(place: Place) -> Fault {
        Fault {
            line: Some(small(place.line)),
            column: Some(small(place.column)),
            near: Some(place.near.into()),
            ..Fault::new(StatusCode::BAD_REQUEST, "wrong-json", place.what)
        }
    }

    /// The body is no configuration: the first problem, and the report of all.
    pub fn wrong_text(problems: &Problems) -> Fault {
        let first = problems.list().first();
        let place = first.map(|first| problems.line_and_column(first.span.start));
        let what = first.map_or("", |first| first.what.as_str());
        Fault {
            line: place.map(|(line, _)| small(line)),
            column: place.map(|(_, column)| small(column)),
            report: Some(problems.to_string().into()),
            ..Fault::new(StatusCode::BAD_REQUEST, "wrong-text", what)
        }
    }

    /// The body describes no state.
    pub fn no_state(sentence: String) -> Fault {
        Fault::new(StatusCode::BAD_REQUEST, "no-state", sentence)
    }

    /// The director refuses; `command` is its place in a batch.
    pub fn refused(refusal: Refusal, command: Option<usize>) -> Fault {
        let code = serde_json::to_value(refusal).expect("a word");
        let code = code.as_str().unwrap_or_default();
        Fault {
            command: command.map(small),
            ..Fault::new(status_of(refusal), code, refusal.sentence())
        }
    }

    /// It was taken, but is not in force everywhere yet.
    pub fn late(sentence: String) -> Fault {
        Fault::new(StatusCode::GATEWAY_TIMEOUT, "late", sentence)
    }

    /// The director is stopping.
    pub fn stopping() -> Fault {
        let message = "the director is stopping";
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message)
    }

    /// It answered what nobody asked.
    pub fn nonsense() -> Fault {
        let message = "the director answered something else than was asked";
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "nonsense", message)
    }

    /// The control plane could not read the request, which is our own mistake.
    pub fn bad_request(sentence: String) -> Fault {
        Fault::new(StatusCode::BAD_REQUEST, "bad-request", sentence)
    }

    /// What the peer gets. What it did wrong itself is counted.
    pub fn into_answer(self, counts: &DoorCounts) -> Response {
        let status = self.status;
        let unread = ["no-such-path", "wrong-method", "wrong-word", "too-long"];
        let unread = unread.contains(&self.code.as_str()) || status == StatusCode::BAD_REQUEST;
        if unread {
            counts.bad_request();
        }
        let mut answer = json_of(status, &Wrong { error: self });
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not waited for.
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        answer
    }
}

/// A place in a body; none is that long.
fn small(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// Which status a refusal has.
pub(super) const fn status_of(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::NoSuchService
        | Refusal::ServiceNotDefined
        | Refusal::NoSuchDestination
        | Refusal::UnknownTunable => StatusCode::NOT_FOUND,
        Refusal::ServiceExists
        | Refusal::DestinationExists
        | Refusal::SyncRunning
        | Refusal::SyncNotRunning => StatusCode::CONFLICT,
        Refusal::SchedulerNotFound
        | Refusal::Invalid
        | Refusal::OutOfRange
        | Refusal::NoSuchDevice
        | Refusal::NetworkUnreachable
        | Refusal::NoLocalAddress => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::OutOfMemory => StatusCode::INSUFFICIENT_STORAGE,
    }
}

/// A value as JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    json_of(StatusCode::OK, value)
}

fn json_of(status: StatusCode, value: &impl Serialize) -> Response {
    let mut bytes = serde_json::to_vec(value).expect("messages have string keys only");
    bytes.push(b'\n');
    answer(status, JSON, bytes)
}

/// A listing, as `ulvs adm --json` prints it, on one line; not of any length.
pub(super) fn listing(listing: &Listing, counts: &DoorCounts) -> Response {
    let mut bytes = serde_json::to_vec(listing).expect("messages have string keys only");
    if bytes.len() > REPLY_BYTES_MAX {
        let message = format!("the answer is longer than {REPLY_BYTES_MAX} bytes");
        let status = StatusCode::INSUFFICIENT_STORAGE;
        counts.too_long();
        let error = Fault::new(status, "too-long-answer", message);
        return json_of(status, &Wrong { error });
    }
    bytes.push(b'\n');
    answer(StatusCode::OK, JSON, bytes)
}

/// Lines for people, and for programs that read lines.
pub(super) fn text(text: String) -> Response {
    answer(StatusCode::OK, TEXT, text.into_bytes())
}

fn answer(status: StatusCode, kind: HeaderValue, bytes: Vec<u8>) -> Response {
    let mut answer = Response::new(Body::from(bytes));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
